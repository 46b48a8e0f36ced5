"""Trains Magpie-tiny: NeMo's decoder_ce Magpie with baked speakers, on the codes that `codec` has frozen.

The network is NeMo's, module by module; the loop is our own, since in NeMo's `process_batch` most of the time goes to
tables of codes (see `levels`) and to waiting for lengths. The loss has the same terms: the local transformer's codes,
the end, and the alignment of speech and text with its beta-binomial prior.

    python -m triton_voice_training.magpie --codec build/codec --out build/magpie --minutes 15
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from triton_voice_training import cast
from triton_voice_training.cast import Stage
from triton_voice_training.codec import (
    CODEC_FILE,
    CODES_FILE,
    HELD_OUT,
    encode_stage,
    held_out_stage,
    on_device,
    pack,
    save_codes,
)  # fmt: skip
from triton_voice_training.codec_net import Quantizer
from triton_voice_training.levels import LevelTables
from triton_voice_training.lines import Batch, Lines, prior
from triton_voice_training.runs import LOG_FILE, Average, Run, draw_log, learning_rate, pick_device, set_rate

if TYPE_CHECKING:
    from triton_voice.checkpoints.magpie import Shape

MAGPIE_FILE = "magpie.nemo"
#: Averaged weights in half precision, to begin another training with.
WEIGHTS_FILE = "weights.pt"

RATE, WARM_UP = 2e-3, 300
#: Parts of the budget between which the prior fades, and the alignment loss with it.
PRIOR_UNTIL, PRIOR_GONE = 0.12, 0.35
ALIGNMENT_SCALE, ALIGNMENT_SCALE_LATER = 0.2, 0.05
END_SCALE = 5.0
#: Part of the lines that are spoken without text and speaker, for classifier-free guidance.
UNGUIDED = 0.1
#: What makes the model robust to its own mistakes: part of the lines whose past is disturbed, greatest part of their
#: levels that are off by one, and part of their frames that are another line's.
DISTURBED, OFF_BY_ONE, FOREIGN = 0.6, 0.3, 0.04
#: What makes it listen to its text, not to its past alone: part of the lines that forget frames of their past, each
#: line a part of them between none and all.
FORGETFUL = 0.6
#: Sentences without meaning that are learned beside the codec's script, for the same reason.
SALAD = 12_000
SALAD_FILE = "salad.npz"
AVERAGE_DECAY = 0.999
CLIP = 1.0
LOG_STEPS = 100
#: What is drawn of the log.
CURVES = {
    "codes": "codes, nats each, past disturbed",
    "held_out_codes": "codes, nats each, held-out sentences, past given",
    "held_out_misread": "what another sentence's text costs them, nats each: how much is taken from the text",
    "alignment": "alignment, nats a token",
    "held_out_alignment": "alignment, held-out sentences",
}
SAVE_EVERY_S = 120
#: Log-probability of the blank in the alignment loss, as in NeMo's `ForwardSumLoss`.
BLANK = -1.0
#: Defaults of sampling that the checkpoint carries.
TEMPERATURE, TOP_K, CFG_SCALE = 0.3, 80, 1.5


class MagpieTraining:
    """State and steps of the training.

    Args:
        shape: Sizes.
        codec: Folder that the codec's training wrote.
        held_out: Speech to measure.
        lexicon: Words with their IPA; what it lacks is spelled.
        run: Budget and folder.
        device: To train on.
        batch: Lines a step.
        dropout: Of the transformers.
        seed: Of weights and batches.
        start: Weights of an earlier training, `WEIGHTS_FILE`; a state in the run's folder goes before them.
        more: Codes of further lines, in the form of the codec's `CODES_FILE`.
    """

    def __init__(
        self, shape: Shape, codec: Path, held_out: Stage, lexicon: Mapping[str, str], run: Run, device: torch.device,
        batch: int, dropout: float, seed: int, start: Path | None = None, more: Path | None = None,
    ) -> None:  # fmt: skip
        from triton_voice.checkpoints.magpie import build_magpie

        torch.manual_seed(seed)
        self.run, self._device, self._batch = run, device, batch
        scratch = run.folder / "lexicon"
        scratch.mkdir(exist_ok=True)
        self.model: Any = build_magpie(shape, codec / CODEC_FILE, scratch, lexicon, can_end=True).to(device)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.model.local_transformer.apply(_without_dropout)
        with torch.no_grad():
            self.model.baked_context_embedding.weight.mul_(0.1)
        self.model.baked_context_embedding.requires_grad_(True)
        self._context = (shape.speaker_frames, shape.width)
        self._aligned = tuple(shape.alignment_layers)
        quantizer = Quantizer(self.model._codec_model, device)
        self.tables = LevelTables(quantizer.groups, quantizer.sizes, shape.width, shape.local_width).to(device)
        self.end = nn.Linear(shape.width, 1).to(device)

        texts, speakers, codes, begins = read_codes([codec / CODES_FILE, *([more] if more else [])])
        levels = quantizer.levels(torch.from_numpy(codes).to(device).T[None])
        levels = levels[0].T.unflatten(1, (quantizer.groups, -1)).to(torch.int8)
        self.lines = Lines(self.model, texts, speakers, levels, begins, device, seed)
        audio = torch.from_numpy(held_out.audio).view(-1, cast.SAMPLES_PER_FRAME).to(device)
        levels = encode_stage(self.model._codec_model, quantizer, audio).unflatten(1, (quantizer.groups, -1))
        self._unseen = Lines(self.model, held_out.texts, held_out.speakers, levels, held_out.begins, device, seed)

        self._learned = self._parameters()
        if start is not None:
            _Parameters(self._learned).load_state_dict(torch.load(start, map_location=device))
        self._optimizer = torch.optim.AdamW(
            self._learned.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=device.type == "cuda"
        )
        self._average = Average(self._learned, AVERAGE_DECAY)
        self._random = torch.Generator().manual_seed(seed + 1)
        self._noise = torch.Generator(device).manual_seed(seed + 2)
        stored_state = run.resume(**self._parts())
        if stored_state:
            self._random.set_state(stored_state["batches"])
            self._noise.set_state(stored_state["noise"])

    def _parts(self) -> dict[str, Any]:
        return {"learned": _Parameters(self._learned), "optimizer": self._optimizer, "average": self._average}

    def _parameters(self) -> dict[str, nn.Parameter]:
        model = self.model
        modules = {"text_embedding": model.text_embedding, "encoder": model.encoder, "decoder": model.decoder,
                   "baked_context_embedding": model.baked_context_embedding, "tables": self.tables, "end": self.end,
                   "local_transformer": model.local_transformer,
                   "local_transformer_in_projection": model.local_transformer_in_projection}  # fmt: skip
        return {f"{name}.{key}": own for name, module in modules.items() for key, own in module.named_parameters()}

    def train(self) -> None:
        """Trains until the budget is used, saving and measuring on the way."""
        saved = self.run.seconds
        self._train_mode(True)
        for _ in self.run.steps():
            if self.run.seconds - saved > SAVE_EVERY_S:  # before a step: the state counts the steps that it has taken
                self.measure()
                self.save()
                saved = self.run.seconds
            values = self._learn()
            if self.run.step % LOG_STEPS == 0:
                said = {name: float(value) for name, value in values.items()}
                if not np.isfinite(list(said.values())).all():
                    raise FloatingPointError(f"Magpie's training diverged at step {self.run.step}: {said}")
                self.run.log(**said)
        self.measure()
        self.save()

    def save(self) -> None:
        """Keeps the state, the model as it is, and the curves."""
        self.run.save(**self._parts(), batches=self._random.get_state(), noise=self._noise.get_state())
        weights = {name: own.half().cpu() for name, own in self._average.state_dict().items()}
        torch.save(weights, self.run.folder / WEIGHTS_FILE)
        self.export(self.run.folder / MAGPIE_FILE)
        log = self.run.folder / LOG_FILE
        if log.exists():
            draw_log(log, self.run.folder / "magpie.png", CURVES)

    @torch.no_grad()
    def measure(self) -> None:
        """Logs the losses of held-out lines, their past being given."""
        self._average.swap()
        self._train_mode(False)
        batch = self._unseen.take(torch.arange(len(self._unseen)))
        values = self.losses(batch, fade=1.0)
        by_length = torch.argsort(batch.text_lengths, stable=True)
        other = torch.empty_like(by_length)
        other[by_length] = by_length.roll(1)
        texts = {"text": batch.text[other.to(self._device)], "text_lengths": batch.text_lengths[other]}
        values["misread"] = self.losses(replace(batch, **texts), fade=1.0)["codes"] - values["codes"]
        self.run.log(**{f"held_out_{name}": float(value) for name, value in values.items()})
        self._train_mode(True)
        self._average.swap()

    def export(self, path: Path) -> None:
        """Writes a Magpie `.nemo` in half precision with averaged weights."""
        from triton_voice.checkpoints.magpie import CODEC_HUB_NAME

        self._average.swap()
        self.tables.fill(self.model, self.end.weight[0], self.end.bias[0])
        parameters = self.model.cfg.inference_parameters
        parameters.temperature, parameters.topk, parameters.cfg_scale = TEMPERATURE, TOP_K, CFG_SCALE
        codec, self.model.cfg.codecmodel_path = self.model.cfg.codecmodel_path, CODEC_HUB_NAME
        pack(self.model, path)
        self.model.cfg.codecmodel_path = codec
        self._average.swap()

    def _train_mode(self, on: bool) -> None:
        self.model.train(on)
        self.model._codec_model.eval()

    def _learn(self) -> dict[str, Tensor]:
        progress = self.run.progress
        fade = min(1.0, max(0.0, (progress - PRIOR_UNTIL) / (PRIOR_GONE - PRIOR_UNTIL)))
        set_rate(self._optimizer, learning_rate(progress, self.run.step, RATE, WARM_UP))
        values = self.losses(self.lines.draw(self._batch, self._random), fade)
        scale = ALIGNMENT_SCALE + fade * (ALIGNMENT_SCALE_LATER - ALIGNMENT_SCALE)
        loss = values["codes"] + END_SCALE * values["end"] + scale * values["alignment"]
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learned.values(), CLIP)
        self._optimizer.step()
        self._average.update(self.run.step)
        return {name: value.detach() for name, value in values.items()}

    def losses(self, batch: Batch, fade: float) -> dict[str, Tensor]:
        """Computes the loss's terms.

        Args:
            batch: Lines.
            fade: How far the prior has faded, 0 to 1.

        Returns:
            `codes`, nats a code of the local transformer; `end`, nats a frame of the end's detection; `alignment`,
            nats a token.
        """
        model, tables, device = self.model, self.tables, self._device
        lines, length, groups, _ = batch.levels.shape
        steps = length + 1
        frames, text_lengths = batch.frames.to(device), batch.text_lengths.to(device)
        text_mask = torch.arange(batch.text.shape[1], device=device) < text_lengths[:, None]
        guided = torch.ones(lines, 1, 1, device=device)
        if model.training:
            guided = (torch.rand(lines, 1, 1, generator=self._noise, device=device) >= UNGUIDED).float()

        text = model.encoder(model.text_embedding(batch.text), text_mask, cond=None, cond_mask=None)["output"] * guided
        context = model.baked_context_embedding(batch.speakers).view(lines, *self._context) * guided
        past = tables.embed(self._disturb(batch.levels) if model.training else batch.levels)
        if model.training:
            past = past * self._remembered(lines, length)
        past = torch.cat([tables.begin.expand(lines, 1, -1, -1), past], dim=1).flatten(2) / groups
        x = torch.cat([context, past], dim=1)
        priors: list[Tensor | None] = [None] * len(model.decoder.layers)
        if fade < 1:
            even = prior(frames + 1, text_lengths, batch.text.shape[1], steps)
            even = F.pad(even + fade * (1 - even), (0, 0, self._context[0], 0), value=1.0)
            priors = [even if layer in self._aligned else None for layer in range(len(priors))]
        everything = torch.ones(x.shape[:2], dtype=torch.bool, device=device)
        out = model.decoder(x, everything, cond=text, cond_mask=text_mask, attn_prior=priors)
        hidden = out["output"][:, self._context[0] :]

        place = torch.arange(steps, device=device)
        counts = (place <= frames[:, None]).float()
        is_end = place == frames[:, None]
        local = self._local(hidden, batch.levels, is_end)
        wanted = F.pad(batch.levels, (0, 0, 0, 0, 0, 1)).flatten(0, 1)
        surprise = tables.surprise(local, wanted, is_end.flatten()).mean(1).view(lines, steps)
        end = F.binary_cross_entropy_with_logits(self.end(hidden)[..., 0], is_end.float(), reduction="none")
        return {
            "codes": (surprise * counts).sum() / counts.sum(),
            "end": (end * counts).sum() / counts.sum(),
            "alignment": self._alignment(out, batch, guided),
        }

    def _local(self, hidden: Tensor, levels: Tensor, is_end: Tensor) -> Tensor:
        """Runs the local transformer on all frames: (lines, steps, width) to (lines x steps, codebooks, its width)."""
        tables, model = self.tables, self.model
        said = tables.embed(self._disturb(levels, foreign=0.0) if model.training else levels)
        said = torch.where(is_end[..., None, None], tables.end, F.pad(said, (0, 0, 0, 0, 0, 1)))
        inputs = torch.cat([hidden[:, :, None], tables.spread(said)[:, :, :-1]], dim=2).flatten(0, 1)
        inputs = model.local_transformer_in_projection(inputs)
        mask = torch.ones(inputs.shape[:2], device=inputs.device)
        return model.local_transformer(inputs, mask)["output"]

    def _disturb(self, levels: Tensor, foreign: float = FOREIGN) -> Tensor:
        """Makes mistakes such as the model itself will make."""
        lines, length = levels.shape[:2]

        def dice(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=self._noise, device=self._device)

        disturbed = dice(lines, 1, 1, 1) < DISTURBED
        part = dice(lines, 1, 1, 1) * OFF_BY_ONE * disturbed
        if not foreign:
            part = part / 2
        drawn = dice(*levels.shape)
        moved = levels + (drawn < part / 2).long() - (drawn > 1 - part / 2).long()
        most = torch.tensor(self.tables.sizes, device=self._device) - 1
        moved = moved.clamp(min=0).minimum(most)
        if foreign:
            other = (dice(lines, length, 1, 1) < foreign) & disturbed
            moved = torch.where(other, levels.roll(1, 0), moved)
        return moved

    def _remembered(self, lines: int, length: int) -> Tensor:
        """Returns 1 for the frames of the past that are known and 0 for those forgotten, (lines, length, 1, 1)."""
        part, chosen = torch.rand(2, lines, 1, 1, 1, generator=self._noise, device=self._device)
        part = part * (chosen < FORGETFUL)
        return (torch.rand(lines, length, 1, 1, generator=self._noise, device=self._device) >= part).float()

    def _alignment(self, out: Any, batch: Batch, guided: Tensor) -> Tensor:
        """NeMo's `ForwardSumLoss`: the likelihood that attention passes through the text in order."""
        scores = torch.cat(
            [out["attn_probabilities"][layer]["cross_attn_probabilities"][1] for layer in self._aligned], 1
        )
        scores = scores.mean(1)[:, self._context[0] :].float()
        scores = F.pad(scores.clamp(min=-1e4), (1, 0), value=BLANK).log_softmax(-1).transpose(0, 1)
        tokens = torch.arange(1, scores.shape[2], device=scores.device).repeat(len(batch.text), 1)
        cost = F.ctc_loss(scores, tokens, batch.frames + 1, batch.text_lengths, reduction="none", zero_infinity=True)
        weight = guided.flatten()
        return (cost / batch.text_lengths.to(cost.device) * weight).sum() / weight.sum().clamp(min=1)


class _Parameters:
    """Parameters by name as a part of a state."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def state_dict(self) -> dict[str, Tensor]:
        return {name: own.detach() for name, own in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, stored: dict[str, Tensor]) -> None:
        for name, own in self._parameters.items():
            own.copy_(stored[name])


def read_codes(files: Sequence[Path]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Reads lines that the codec has encoded.

    Args:
        files: In the form of the codec's `CODES_FILE`.

    Returns:
        Texts; speakers, int64; codes, (all frames, codebooks), int64; first frame of each line, and the end, int64.
    """
    parts = [np.load(file) for file in files]
    lengths = np.concatenate([np.diff(part["begins"]) for part in parts])
    return (
        [text for part in parts for text in part["texts"].tolist()],
        np.concatenate([part["speakers"] for part in parts]),
        np.concatenate([part["codes"] for part in parts]).astype(np.int64),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def encode_salad(codec: Path, out: Path, count: int, workers: int, seed: int) -> None:
    """Speaks sentences without meaning, each in one voice, and writes their codes to `out` / `SALAD_FILE`.

    Args:
        codec: Folder of the codec's training, its encoder frozen.
        out: Folder for speech and codes.
        count: Sentences.
        workers: Processes that speak; 0 for one on each core.
        seed: Of the sentences.
    """
    from nemo.collections.tts.models import AudioCodecModel

    known = list(dict.fromkeys(np.load(codec / CODES_FILE)["texts"].tolist()))
    stage = cast.perform(cast.deal(cast.salad(known, count, seed), seed), out / "speech", workers)
    device = pick_device("auto", equal_shapes=True)
    net = AudioCodecModel.restore_from(str(codec / CODEC_FILE), map_location=device).eval()
    quantizer = Quantizer(net, device)
    save_codes(out / SALAD_FILE, stage, encode_stage(net, quantizer, on_device(stage, device)), quantizer)


def _without_dropout(module: nn.Module) -> None:
    if isinstance(module, nn.Dropout):
        module.p = 0.0


def main(
    codec: Annotated[Path, typer.Option(help="Folder of the codec's training: codec.nemo and codes.npz.")],
    out: Annotated[Path, typer.Option(help="Folder for state, log and magpie.nemo.")],
    minutes: Annotated[float, typer.Option(help="Budget in minutes of training; 0 for none.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Budget in steps, which makes it repeatable; 0 for none.")] = 0,
    batch: Annotated[int, typer.Option(help="Lines a step.")] = 64,
    dropout: float = 0.05,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that speak; 0 for one on each core.")] = 0,
    seed: int = 0,
    start: Annotated[Path | None, typer.Option(help="weights.pt of an earlier training to begin with.")] = None,
    salad: Annotated[int, typer.Option(help="Sentences without meaning to learn beside the script.")] = SALAD,
) -> None:
    """Train Magpie-tiny on frozen codes, or go on where it was interrupted."""
    from triton_voice.checkpoints.magpie import SHAPES

    if not (codec / CODES_FILE).exists():
        raise typer.BadParameter(f"{codec} holds no {CODES_FILE}: train the codec first, at least its first phase")
    try:
        run = Run(out, "magpie", steps, minutes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if salad and not (out / SALAD_FILE).exists():
        encode_salad(codec, out, salad, workers, seed)
    training = MagpieTraining(
        SHAPES["trained"], codec, held_out_stage(codec / "held_out", HELD_OUT, workers), cast.lexicon(), run,
        pick_device(device, equal_shapes=False), batch, dropout, seed, start, out / SALAD_FILE if salad else None,
    )  # fmt: skip
    run.restart_clock()
    training.train()


if __name__ == "__main__":
    typer.run(main)
