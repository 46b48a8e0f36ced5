"""Makes a Parakeet checkpoint with random weights: the class and configuration keys of the published ones.

The shapes of size `full` follow the public 0.6B streaming family (`nvidia/nemotron-speech-streaming-en-0.6b`): 24
layers of 1024, 128 mel bands, 8x subsampling, 1024 BPE pieces. Its transcripts are random pieces that depend on the
audio.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triton_voice.checkpoints.pack import repack

Size = Literal["tiny", "full"]

LOOKAHEADS = ([70, 13], [70, 6], [70, 1], [70, 0])
SAMPLE_RATE = 16000
LOGIT_SCALE = 12.0
BLANK_RATE = 0.9
"""Share of joint evaluations that shall be blank; speech at 80 ms a frame sits near this."""

TEXT = """the quick brown fox jumps over the lazy dog
hello world this is a test of a streaming speech recogniser
please turn on the lights in the kitchen and play some music
what time is it in new york and how is the weather today
i would like to book a table for two at seven in the evening
could you repeat that more slowly i did not hear you
yes no maybe one two three four five six seven eight nine ten
thank you very much goodbye and have a nice day"""


@dataclass(frozen=True)
class Shape:
    """Dimensions of one size."""

    mels: int
    layers: int
    width: int
    heads: int
    subsampling_channels: int
    predictor: int
    predictor_layers: int
    joint: int
    vocabulary: int
    bias: bool


SHAPES: dict[str, Shape] = {
    "tiny": Shape(80, 4, 64, 4, 32, 64, 1, 64, 96, True),
    "full": Shape(128, 24, 1024, 8, 256, 640, 2, 640, 1024, False),
}


def _tokenizer_lines(vocabulary: int) -> list[str]:
    """Returns what the tokenizer of a random checkpoint learns from."""
    lines = TEXT.splitlines()
    if vocabulary > 200:  # the built-in text is too small for 1024 pieces: add pseudo-words
        rng = random.Random(0)
        words = [
            "".join(rng.choice("bcdfghjklmnpqrstvwxyz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
            for _ in range(6000)
        ]
        lines += [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
    return lines


def train_tokenizer(folder: Path, lines: Iterable[str], vocabulary: int) -> None:
    """Learns byte pairs and writes what NeMo's `tokenizer.type: bpe` wants.

    Args:
        folder: For tokenizer.model, tokenizer.vocab and vocab.txt; made if missing.
        lines: Texts to learn from; the same lines give the same bytes.
        vocabulary: Number of pieces.
    """
    import sentencepiece as spm

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # trained from memory: a file's name would end up inside the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocabulary, model_type="bpe",
        character_coverage=1.0, bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue())
    scored = (f"{pieces.id_to_piece(i)}\t{pieces.get_score(i):g}\n" for i in range(pieces.get_piece_size()))
    (folder / "tokenizer.vocab").write_text("".join(scored))
    with (folder / "vocab.txt").open("w") as vocab:
        for i in range(1, pieces.get_piece_size()):
            piece = pieces.id_to_piece(i)
            vocab.write((piece[1:] if piece.startswith("▁") and len(piece) > 1 else "##" + piece) + "\n")


def config(tokenizer_dir: Path, shape: Shape) -> dict[str, Any]:
    """Returns the model configuration, keys as in NeMo's `fastconformer/cache_aware_streaming` examples."""
    return {
        "sample_rate": SAMPLE_RATE,
        "compute_eval_loss": False,
        "log_prediction": False,
        "skip_nan_grad": False,
        "model_defaults": {"enc_hidden": shape.width, "pred_hidden": shape.predictor, "joint_hidden": shape.joint},
        "tokenizer": {"dir": str(tokenizer_dir), "type": "bpe"},
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE, "normalize": "NA", "window_size": 0.025, "window_stride": 0.01,
            "window": "hann", "features": shape.mels, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5, "pad_to": 0,
            "log": True,
        },
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "freq_masks": 0, "time_masks": 0, "freq_width": 27, "time_width": 0.05,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": shape.mels, "feat_out": -1, "n_layers": shape.layers, "d_model": shape.width,
            "subsampling": "dw_striding", "subsampling_factor": 8,
            "subsampling_conv_channels": shape.subsampling_channels, "causal_downsampling": True,
            "reduction": None, "reduction_position": None, "reduction_factor": 1, "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos", "n_heads": shape.heads,
            "att_context_size": [list(c) for c in LOOKAHEADS], "att_context_style": "chunked_limited",
            "att_context_probs": [1 / len(LOOKAHEADS)] * len(LOOKAHEADS), "xscaling": False, "untie_biases": True,
            "pos_emb_max_len": 5000, "use_bias": shape.bias, "conv_kernel_size": 9, "conv_norm_type": "layer_norm",
            "conv_context_size": "causal", "dropout": 0.1, "dropout_pre_encoder": 0.1, "dropout_emb": 0.0,
            "dropout_att": 0.1, "stochastic_depth_drop_prob": 0.0,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder", "normalization_mode": None,
            "random_state_sampling": False, "blank_as_pad": True,
            "prednet": {
                "pred_hidden": shape.predictor, "pred_rnn_layers": shape.predictor_layers, "t_max": None,
                "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint", "log_softmax": None, "preserve_memory": False,
            "fuse_loss_wer": False, "fused_batch_size": -1,
            "jointnet": {"joint_hidden": shape.joint, "activation": "relu", "dropout": 0.2},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
        "optim": {"name": "adamw", "lr": 1e-3},
    }  # fmt: skip


def _calibrate(model: Any, scale: float, blank_rate: float) -> None:
    """Makes the random joint emit tokens that depend on the input, now and then, as a trained one does.

    Left alone it either never emits or emits `max_symbols` tokens on every frame. The logits are spread, each token's
    is centred over random pairs of frame and predictor state, and the blank's is put at the `blank_rate` quantile of
    the best other one.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    samples = SAMPLE_RATE * 8
    t = torch.arange(samples) / SAMPLE_RATE
    sweep = torch.cumsum(200 + 900 * torch.sin(2 * torch.pi * 0.7 * t).abs(), 0)
    audio = 0.3 * torch.sin(2 * torch.pi * sweep / SAMPLE_RATE) * torch.sin(2 * torch.pi * 1.3 * t).abs()
    audio += 0.02 * torch.randn(samples, generator=generator)
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=audio[None], length=torch.tensor([samples]))
        encoded, _ = model.encoder(audio_signal=features, length=length)  # (1, width, frames)
        blank = model.joint.num_classes_with_blank - 1
        tokens = torch.randint(0, blank, (1, 64), generator=generator)
        predicted, _, _ = model.decoder(targets=tokens, target_length=torch.tensor([64]))  # (1, predictor, 65)
        output = model.joint.joint_net[-1]
        output.weight.mul_(scale)
        output.bias.zero_()
        hidden = model.joint.enc(encoded.transpose(1, 2)[0])[:, None] + model.joint.pred(predicted.transpose(1, 2)[0])
        logits = output(model.joint.joint_net[:-1](hidden)).flatten(0, 1)
        output.bias[:blank] = -logits[:, :blank].mean(0)
        output.weight[blank].zero_()
        best = (logits[:, :blank] + output.bias[:blank]).max(-1).values
        output.bias[blank] = torch.quantile(best, blank_rate)


def make(out: Path, size: Size = "tiny", seed: int = 0, languages: tuple[str, ...] = ()) -> Path:
    """Makes the checkpoint.

    Args:
        out: Folder for `parakeet.nemo`.
        size: `tiny` (0.5 M parameters, 2 MB) or `full` (618 M parameters, 2.5 GB).
        seed: Seed of the weights.
        languages: Makes a prompt-conditioned model, as Nemotron 3.5's, that is told one of these per stream.

    Returns:
        Path of the checkpoint.
    """
    import torch
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from nemo.collections.asr.models.rnnt_bpe_models_prompt import EncDecRNNTBPEModelWithPrompt
    from omegaconf import OmegaConf

    shape = SHAPES[size]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder), _tokenizer_lines(shape.vocabulary), shape.vocabulary)
        torch.manual_seed(seed)
        settings = config(Path(folder), shape)
        if languages:
            settings["model_defaults"] |= {
                "initialize_prompt_feature": True,
                "num_prompts": len(languages),
                "prompt_dictionary": {name: index for index, name in enumerate(languages)},
            }
        kind = EncDecRNNTBPEModelWithPrompt if languages else EncDecRNNTBPEModel
        model = kind(cfg=OmegaConf.create(settings)).eval()
        model.preprocessor.featurizer.dither = 0.0
        _calibrate(model, LOGIT_SCALE, BLANK_RATE)
        path = out / "parakeet.nemo"
        model.save_to(str(path))
        return repack(path, {folder: "tokenizer"})
