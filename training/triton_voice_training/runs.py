"""What the trainings of speech share: a budget, a log, progress with an estimate, a state to resume from."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"


def pick_device(name: str, *, equal_shapes: bool) -> torch.device:
    """Returns the device of a name, "auto" being CUDA if there is one, and sets what makes training on it quick.

    Args:
        name: "auto", "cuda" or "cpu".
        equal_shapes: Whether steps have equal shapes, so that it pays to search for the quickest convolutions.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = equal_shapes
    return device


class Run:
    """One training in its folder.

    The budget is a number of steps, which makes a training repeatable, or of minutes, which makes it fit a machine.
    Time is counted over all resumptions.

    Args:
        folder: For state, log and samples; made if missing.
        steps: Budget in steps; 0 for none.
        minutes: Budget in minutes; 0 for none.
        title: For the progress bar.

    Raises:
        ValueError: There is no budget.
    """

    def __init__(self, folder: Path, title: str, steps: int = 0, minutes: float = 0.0) -> None:
        if not steps and not minutes:
            raise ValueError("give a budget: a number of steps, of minutes, or both")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.step = 0
        self._title, self._steps, self._seconds = title, steps, 60 * minutes
        self._spent, self._begun = 0.0, time.monotonic()

    @property
    def has_state(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / STATE_FILE).exists()

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return self._spent + time.monotonic() - self._begun

    def restart_clock(self) -> None:
        """Leaves out of the budget what went before: preparing data is no training."""
        self._begun = time.monotonic()

    @property
    def progress(self) -> float:
        """Part of the budget that is used, 0 to 1."""
        by_steps = self.step / self._steps if self._steps else 0.0
        by_time = self.seconds / self._seconds if self._seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def steps(self) -> Iterator[int]:
        """Yields step numbers until the budget is used, showing progress and an estimate."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                   TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[said]}"))  # fmt: skip
        with Progress(*columns, refresh_per_second=1) as bar:
            self._bar, self._task = bar, bar.add_task(self._title, total=1.0, said="")
            while self.progress < 1:
                yield self.step
                self.step += 1
                bar.update(self._task, completed=self.progress)

    def log(self, **values: float | str) -> None:
        """Writes a line to the log and shows it."""
        row: dict[str, float | str] = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
        with (self.folder / LOG_FILE).open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = " ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in values.items())  # fmt: skip
        self._bar.update(self._task, said=said)
        if not self._bar.console.is_terminal:
            print(f"{self._title} step {self.step} {self.seconds:.0f} s {said}", flush=True)

    def save(self, **parts: Any) -> None:
        """Keeps everything that going on needs: the parts (modules, optimizers, values), the step and the time."""
        stored = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
        log = self.folder / LOG_FILE
        stored |= {"step": self.step, "spent": self.seconds, "random": torch.get_rng_state(),
                   "logged": log.stat().st_size if log.exists() else 0}  # fmt: skip
        if torch.cuda.is_available():
            stored["random_on_device"] = torch.cuda.get_rng_state()
        partial = self.folder / f"{STATE_FILE}.partial"
        torch.save(stored, partial)
        os.replace(partial, self.folder / STATE_FILE)

    def resume(self, **parts: Any) -> dict[str, Any]:
        """Restores the parts if there is a state; returns the values in it, empty if there is none."""
        if not self.has_state:
            cut_log(self.folder / LOG_FILE, 0)
            return {}
        stored: dict[str, Any] = torch.load(self.folder / STATE_FILE, map_location="cpu", weights_only=False)
        for name, part in parts.items():
            if stored.get(name) is not None:
                part.load_state_dict(stored[name])
        self.step, self._spent, self._begun = stored["step"], stored["spent"], time.monotonic()
        cut_log(self.folder / LOG_FILE, stored["logged"])
        torch.set_rng_state(stored["random"])
        if "random_on_device" in stored and torch.cuda.is_available():
            torch.cuda.set_rng_state(stored["random_on_device"])
        return stored


class Average:
    """An exponential moving average of parameters, which sounds better than the last step.

    Args:
        parameters: By name; followed from now on.
        decay: Of a step, once warmed up.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self._kept = {name: own.detach().clone() for name, own in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follows one step."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._kept.values()), [own.detach() for own in self._parameters.values()], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the parameters with their average; a second call undoes the first."""
        for name, own in self._parameters.items():  # in place: a CUDA graph knows parameters by their memory
            new = self._kept[name].clone()
            self._kept[name].copy_(own)
            own.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages."""
        return self._kept

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restores the averages."""
        for name, own in self._kept.items():
            own.copy_(stored[name])


def learning_rate(progress: float, step: int, peak: float, warm_up: int, floor: float = 0.02) -> float:
    """A linear warm-up by steps, then a cosine over the budget."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warm_up) * cosine


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cut_log(log: Path, size: int) -> None:
    """Takes off a log what was written after so many bytes: steps that were lost will be logged again."""
    if log.exists() and log.stat().st_size > size:
        os.truncate(log, size)


def draw_log(log: Path, plot: Path, curves: Mapping[str, str]) -> None:
    """Draws columns of a log over time in minutes; does nothing where matplotlib is missing.

    Args:
        log: Lines of JSON with `seconds`.
        plot: The picture.
        curves: By column: what it is.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(8, 2 * len(curves)), layout="constrained")
    parts = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(parts, curves.items(), strict=True):
        points = [(row["seconds"] / 60, row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True) if points else ([], []), linewidth=1)
        axes.set_title(label, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
    parts[-1].set_xlabel("minutes of training")
    figure.savefig(plot, dpi=100)
