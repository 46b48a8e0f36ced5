"""How well a Parakeet hears: transcripts with NeMo's own decoding, word errors, figures and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from triton_voice.checkpoints.parakeet import LOOKAHEADS
from triton_voice.evaluation.words import WordErrors, word_errors
from triton_voice_training.hearing import Trial

#: Clips that are transcribed at once.
JUDGED_AT_ONCE = 100
#: Left and right context in encoder frames; this one, of 160 ms, is the served default.
QUICK_LOOKAHEAD = [70, 1]
#: Length of an encoder frame.
FRAME_MS = 80
#: Examples that the figures show, and mistakes.
EXAMPLES, MISTAKES = 8, 20


def decode_plainly(model: Any) -> Any:
    """Has the model decode without CUDA graphs, which need packages that not every machine has; returns it."""
    from omegaconf import OmegaConf, open_dict

    decoding = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    with open_dict(decoding):
        decoding.greedy.use_cuda_graph_decoder = False
    model.change_decoding_strategy(decoding, verbose=False)
    return model


def parameters(model: torch.nn.Module) -> int:
    """Returns how many numbers were learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def transcribe(model: Any, trial: Trial, lookahead: list[int]) -> list[str]:
    """Transcribes the clips of a trial with NeMo's own decoding, offline, at one lookahead ([left, right] frames)."""
    was_training = model.training
    model.eval()
    model.encoder.set_default_att_context_size(lookahead)
    texts: list[str] = []
    for first in range(0, len(trial.texts), JUDGED_AT_ONCE):
        samples = trial.samples[first : first + JUDGED_AT_ONCE]
        audio = trial.audio[first : first + JUDGED_AT_ONCE, : int(samples.max())]
        encoded, frames = model.forward(input_signal=audio, input_signal_length=samples)
        heard = model.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
        texts += [each.text for each in heard]
    model.encoder.set_default_att_context_size(list(LOOKAHEADS[0]))
    model.train(was_training)
    return texts


def errors(model: Any, trial: Trial, lookahead: list[int]) -> WordErrors:
    """Counts the word errors of a trial."""
    return word_errors(zip(trial.texts, transcribe(model, trial, lookahead), strict=True))


def judge(model: Any, trials: dict[str, Trial]) -> dict[str, Any]:
    """Measures a finished model.

    Args:
        model: A restored checkpoint.
        trials: By name; `seen` and `unseen` voices and `empty` clips among them.

    Returns:
        Word error rates by trial and latency in milliseconds, those of each voice never heard, how many empty clips
        were given a text, the part of texts that is exact with case and punctuation, and examples.
    """
    figures: dict[str, Any] = {"parameters": parameters(model), "word_error_rate": {}}
    for name, trial in trials.items():
        if name == "empty":
            continue
        figures["word_error_rate"][name] = rates = {}
        for lookahead in LOOKAHEADS:
            rates[str(FRAME_MS * (lookahead[1] + 1))] = round(errors(model, trial, list(lookahead)).rate, 5)
    stranger, heard = trials["unseen"], transcribe(model, trials["unseen"], QUICK_LOOKAHEAD)
    figures["unseen_voices_160_ms"] = {
        voice: round(word_errors((t, h) for t, h, v in zip(stranger.texts, heard, stranger.voices, strict=True)
                                 if v == voice).rate, 5)
        for voice in sorted(set(stranger.voices))
    }  # fmt: skip
    nothing = [transcribe(model, trials["empty"], list(lookahead)) for lookahead in LOOKAHEADS]
    figures["empty_clips"] = len(nothing) * len(nothing[0])
    figures["empty_clips_with_text"] = sum(bool(text) for texts in nothing for text in texts)
    seen = trials["seen"]
    at_160 = transcribe(model, seen, QUICK_LOOKAHEAD)
    wrong = [(t, h) for t, h in zip(seen.texts, at_160, strict=True) if word_errors([(t, h)]).errors]
    figures["examples"] = list(zip(seen.texts, at_160, strict=True))[:EXAMPLES]
    figures["misheard"] = wrong[:MISTAKES]
    figures["exact_text"] = round(sum(t == h for t, h in zip(seen.texts, at_160, strict=True)) / len(at_160), 4)
    return figures


def restore(path: Path, device: torch.device) -> Any:
    """Restores an exported model in full precision, as the server does."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    model = EncDecRNNTBPEModel.restore_from(str(path), map_location=device).float().eval()
    decode_plainly(model)
    model.preprocessor.featurizer.dither = 0.0
    return model


def plot(log: Path, out: Path) -> None:
    """Draws losses and word error rates of a log over its steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in ("ctc", "rnnt"):
        found = [(row["step"], row[name]) for row in rows if name in row]
        left.plot(*zip(*found, strict=True), label=name) if found else None
    left.set(xlabel="step", ylabel="loss per token", yscale="log")
    left.legend()
    for name, label in (("seen", "voices of the training"), ("unseen", "voices never heard")):
        found = [(row["step"], 100 * row[name]) for row in rows if name in row]
        right.plot(*zip(*found, strict=True), marker=".", label=label) if found else None
    right.set(xlabel="step", ylabel="word error rate, % (held-out sentences, 160 ms)", ylim=(0, 40))
    right.legend()
    figure.savefig(out, dpi=100)
