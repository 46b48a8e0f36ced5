"""Trains Parakeet-tiny: the streaming recogniser of the default run, a few million parameters for one small world.

The model has the classes, the configuration keys and the four lookaheads of the published one; one is drawn for each
batch, as upstream trains them. A CTC head that is thrown away afterwards teaches the encoder first, then the
transducer's loss joins.

    python -m triton_voice_training.parakeet --out build/parakeet --minutes 10

Interrupt it at will: the same command carries on from the last saved step.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triton_voice.checkpoints.pack import repack
from triton_voice.checkpoints.parakeet import Shape, config, train_tokenizer
from triton_voice_training import hearing
from triton_voice_training.hearing import Amount, Batches, Trial
from triton_voice_training.parakeet_evaluation import (
    QUICK_LOOKAHEAD,
    decode_plainly,
    errors,
    judge,
    parameters,
    plot,
    restore,
)
from triton_voice_training.rnnt import rnnt_loss
from triton_voice_training.runs import cut_log

SHAPE = Shape(
    mels=80, layers=8, width=128, heads=4, subsampling_channels=48, predictor=128, predictor_layers=1, joint=128,
    vocabulary=256, bias=True,
)  # fmt: skip
DROPOUT = 0.05
#: Twice that, and the encoder of this depth never learns to listen.
PEAK_RATE = 1e-3
#: For a training that begins with the weights of an earlier one.
LATER_PEAK_RATE = 4e-4
#: Of the peak, at the end of the cosine.
FINAL_RATE = 0.01
WARM_UP_STEPS = 400
WEIGHT_DECAY = 1e-3
CLIP = 2.0
#: Part of the training on clean single sentences, without masks: enough to leave the plateau of the CTC loss.
EASY = 0.15
#: Part of the training with the CTC loss alone.
CTC_ONLY = 0.2
CTC_WEIGHT = 0.3
SAVE_EVERY_S = 60
#: Steps between lines of the log, and between judgements of this many clips.
LOG_EVERY, JUDGE_EVERY, QUICK_CLIPS = 20, 500, 100

console = Console()


@dataclass(frozen=True)
class Plan:
    """Everything that the result depends on, besides the machine.

    Attributes:
        shape: Of the model.
        amount: Of speech.
        batch: Utterances in a step.
        steps: How many; 0 to train for `minutes`.
        minutes: How long; the learning rate follows the clock, so the result depends on the machine's speed.
        seed: Of weights, draws and speech.
        start: Folder of an earlier training whose weights and tokenizer to begin with.
    """

    shape: Shape = SHAPE
    amount: Amount = field(default_factory=Amount)
    batch: int = 128
    steps: int = 0
    minutes: float = 10.0
    seed: int = 0
    start: Path | None = None

    @property
    def peak_rate(self) -> float:
        """Highest learning rate."""
        return LATER_PEAK_RATE if self.start else PEAK_RATE


def build(tokenizer: Path, shape: Shape, seed: int) -> Any:
    """Makes the untrained model: NeMo's `EncDecRNNTBPEModel`."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.set_verbosity(nemo_logging.ERROR)
    settings = config(tokenizer, shape)
    settings["spec_augment"] |= {"freq_masks": 2, "freq_width": 15, "time_masks": 2, "time_width": 0.04}
    settings["encoder"] |= {"dropout": DROPOUT, "dropout_pre_encoder": DROPOUT, "dropout_att": DROPOUT}
    settings["decoder"]["prednet"]["dropout"] = DROPOUT
    settings["joint"]["jointnet"]["dropout"] = DROPOUT
    torch.manual_seed(seed)
    return EncDecRNNTBPEModel(cfg=OmegaConf.create(settings))


class Trainer:
    """Holds the model and its optimiser, takes steps, and saves and resumes.

    Args:
        plan: See `Plan`.
        folder: For the tokenizer, the state and the log.
        batches: What to train on.
        device: Where.
    """

    def __init__(self, plan: Plan, folder: Path, batches: Batches, device: torch.device) -> None:
        self.plan, self.folder, self.batches, self.device = plan, folder, batches, device
        self.model = decode_plainly(build(folder / "tokenizer", plan.shape, plan.seed)).to(device)
        self.masks, self.blank = self.model.spec_augmentation, plan.shape.vocabulary
        self.ctc = torch.nn.Linear(plan.shape.width, plan.shape.vocabulary + 1).to(device)
        self.weights = [*self.model.parameters(), *self.ctc.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.weights, plan.peak_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=device.type == "cuda"
        )
        self.log = folder / "log.jsonl"
        self.step, self.elapsed, self.skipped = 0, 0.0, 0
        self._began = time.monotonic()
        if (folder / "state.pt").exists():
            self._resume()
        else:
            cut_log(self.log, 0)
            if plan.start:
                self._load(plan.start)

    @property
    def progress(self) -> float:
        """How much of the plan is done, 0 to 1."""
        if self.plan.steps:
            return min(1.0, self.step / self.plan.steps)
        return min(1.0, self.seconds / (60 * self.plan.minutes))

    @property
    def seconds(self) -> float:
        """How long this has been training, earlier runs included."""
        return self.elapsed + time.monotonic() - self._began

    def take_step(self) -> dict[str, float]:
        """Takes one step; returns its losses. A step whose gradient is not finite changes nothing."""
        progress = self.progress
        rate = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        rate *= FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.peak_rate * rate
        # Dropout, masks and the batch's lookahead come from global generators; by the step, so that a run can resume.
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step)
        random.seed(f"step {self.plan.seed} {self.step}")
        self.batches.easy = progress < EASY and not self.plan.start
        batch = self.batches[self.step]
        self.model.train()
        self.model.spec_augmentation = None if self.batches.easy else self.masks
        encoded, frames = self.model.forward(input_signal=batch.audio, input_signal_length=batch.samples)
        scores = self.ctc(encoded.transpose(1, 2)).float().log_softmax(-1).transpose(0, 1)
        ctc = torch.nn.functional.ctc_loss(
            scores, batch.targets, frames.long(), batch.tokens, blank=self.blank, reduction="none", zero_infinity=True
        )
        # By token, so that a batch of long utterances weighs what one of short ones does.
        ctc = (ctc / (batch.tokens + 1)).mean()
        loss, losses = ctc, {"ctc": ctc.detach()}
        if progress >= CTC_ONLY or self.plan.start:
            predicted, _, _ = self.model.decoder(targets=batch.targets, target_length=batch.tokens)
            logits = self.model.joint(encoder_outputs=encoded, decoder_outputs=predicted)
            transducer = rnnt_loss(logits, batch.targets, frames.long(), batch.tokens, self.blank)
            transducer = (transducer / (batch.tokens + 1)).mean()
            loss, losses["rnnt"] = transducer + CTC_WEIGHT * ctc, transducer.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.step += 1
        return {"rate": self.plan.peak_rate * rate, **{name: float(value) for name, value in losses.items()}}

    def save(self) -> None:
        """Saves everything that a later run needs; an interrupted save leaves the one before."""
        state = {
            "model": self.model.state_dict(), "ctc": self.ctc.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "elapsed": self.seconds, "skipped": self.skipped, "shape": vars(self.plan.shape),
            "logged": self.log.stat().st_size if self.log.exists() else 0,
        }  # fmt: skip
        temporary = self.folder / "state.partial"
        torch.save(state, temporary)
        temporary.replace(self.folder / "state.pt")

    def _load(self, folder: Path) -> dict[str, Any]:
        """Takes over the weights of a state; returns all of it."""
        state: dict[str, Any] = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        if state["shape"] != vars(self.plan.shape):
            raise typer.BadParameter(f"{folder}/state.pt is of a model of another shape; remove it to start again")
        self.model.load_state_dict(state["model"])
        self.ctc.load_state_dict(state["ctc"])
        return state

    def _resume(self) -> None:
        state = self._load(self.folder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.skipped = state["step"], state["elapsed"], state["skipped"]
        cut_log(self.log, state["logged"])


def export(trainer: Trainer, path: Path) -> Path:
    """Writes the model as a `.nemo` in half precision; the features' filters keep theirs.

    The bytes depend on the weights alone.
    """
    model = build(trainer.folder / "tokenizer", trainer.plan.shape, trainer.plan.seed)
    model.load_state_dict({name: value.cpu() for name, value in trainer.model.state_dict().items()})
    for part in (model.encoder, model.decoder, model.joint):
        part.half()
    path.parent.mkdir(parents=True, exist_ok=True)
    model.eval().save_to(str(path))
    return repack(path, {str(trainer.folder / "tokenizer"): "tokenizer"})


def train(plan: Plan, folder: Path, device: torch.device, workers: int = 0) -> dict[str, Any]:
    """Makes the speech, trains, exports `parakeet.nemo` and measures it; returns the figures.

    Args:
        plan: What and how long.
        folder: For speech, state, log, plot, figures and the checkpoint.
        device: Where to train.
        workers: Processes that make speech; 0 for one on each core.
    """
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    spoken = hearing.corpora(folder / "speech", plan.amount, plan.seed, workers)
    texts = [utterance.text for utterance in spoken["train"].utterances]
    hours, generation_s = spoken["train"].hours, time.monotonic() - began
    console.print(f"{len(texts):,} utterances, {hours:.1f} hours of speech, made or found in {generation_s:.0f} s")
    if plan.start:
        shutil.copytree(plan.start / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    if not (folder / "tokenizer" / "tokenizer.model").exists():
        train_tokenizer(folder / "tokenizer", list(dict.fromkeys(texts)), plan.shape.vocabulary)
    tokens = tokens_of(folder / "tokenizer", texts)
    trainer = Trainer(plan, folder, Batches(spoken["train"], tokens, plan.batch, plan.seed, device), device)
    console.print(f"{parameters(trainer.model) / 1e6:.2f} M parameters on {device}, from step {trainer.step}")
    quick = {name: hearing.trial(spoken[name], device, QUICK_CLIPS) for name in ("seen", "unseen")}
    _run(trainer, quick)
    trainer.save()
    path = export(trainer, folder / "parakeet.nemo")
    trials = {
        "seen": hearing.trial(spoken["seen"], device, len(spoken["seen"])),
        "seen_augmented": hearing.trial(spoken["seen"], device, len(spoken["seen"]), augmented=1),
        "unseen": hearing.trial(spoken["unseen"], device, len(spoken["unseen"])),
        "unseen_augmented": hearing.trial(spoken["unseen"], device, len(spoken["unseen"]), augmented=2),
        "empty": hearing.empty_trial(device),
    }
    figures = judge(restore(path, device), trials)
    figures |= {
        "steps": trainer.step, "batch": plan.batch, "seed": plan.seed, "training_s": round(trainer.seconds),
        "speech_s": round(generation_s), "utterances": len(texts), "hours": round(hours, 1),
        "skipped_steps": trainer.skipped, "bytes": path.stat().st_size,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }  # fmt: skip
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(trainer.log, folder / "training.png")
    return figures


def tokens_of(folder: Path, texts: list[str]) -> list[list[int]]:
    """Returns the token numbers of texts by the tokenizer in a folder."""
    import sentencepiece as spm

    pieces = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    encoded: list[list[int]] = pieces.encode(texts)
    return encoded


def _run(trainer: Trainer, quick: dict[str, Trial]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    saved = time.monotonic()
    last: dict[str, float] = {}
    with trainer.log.open("a") as log, Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0)
        while trainer.progress < 1:
            losses = trainer.take_step()
            row: dict[str, float] = {}
            if trainer.step % LOG_EVERY == 0:
                row = losses
                shown = " ".join(f"{name} {value:.3f}" for name, value in {**losses, **last}.items() if name != "rate")
                bar.update(task, completed=trainer.progress, description=f"step {trainer.step} {shown}")
            if trainer.step % JUDGE_EVERY == 0 and (trainer.progress > CTC_ONLY or trainer.plan.start):
                last = {name: round(errors(trainer.model, t, QUICK_LOOKAHEAD).rate, 5) for name, t in quick.items()}
                row = {**losses, **last}
                console.print(f"step {trainer.step}, {trainer.seconds:.0f} s: word error rate {last}, loss {losses}")
            if row:
                log.write(json.dumps({"step": trainer.step, "seconds": round(trainer.seconds, 1), **row}) + "\n")
                log.flush()
            if time.monotonic() - saved > SAVE_EVERY_S:
                trainer.save()
                saved = time.monotonic()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the speech, the state and the checkpoint.")],
    minutes: Annotated[float, typer.Option(help="Time to train, without making the speech.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps to train, instead of minutes: the same on every run.")] = 0,
    batch: Annotated[int, typer.Option(help="Utterances in a step; 0: 128 on a GPU, 24 on a CPU.")] = 0,
    requests: Annotated[int, typer.Option(help="Most distinct sentences of users.")] = Amount.requests,
    replies: Annotated[int, typer.Option(help="Most distinct sentences of the assistant.")] = Amount.replies,
    seed: Annotated[int, typer.Option(help="Of weights, draws and speech.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that make speech; 0: one on each core.")] = 0,
    restart: Annotated[bool, typer.Option(help="Forget an earlier run's state.")] = False,
    start: Annotated[Path | None, typer.Option(help="Folder of an earlier training to begin with.")] = None,
) -> None:
    """Train Parakeet-tiny, measure it and write parakeet.nemo."""
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if start and not (start / "state.pt").exists():
        raise typer.BadParameter(f"{start} holds no state.pt of an earlier training")
    out.mkdir(parents=True, exist_ok=True)
    if restart:
        for name in ("state.pt", "log.jsonl"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "tokenizer", ignore_errors=True)
    plan = Plan(
        amount=replace(Amount(), requests=requests, replies=replies),
        batch=batch or (128 if chosen.type == "cuda" else 24),
        steps=steps,
        minutes=minutes,
        seed=seed,
        start=start,
    )
    figures = train(plan, out, chosen, workers)
    console.print_json(data={name: value for name, value in figures.items() if name != "examples"})


if __name__ == "__main__":
    typer.run(main)
