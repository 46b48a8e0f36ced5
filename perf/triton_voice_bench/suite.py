"""`triton-voice bench all`: every benchmark in a process of its own, into one file for the machine.

Each runs by its own command, the one that a person would type, so that a published figure can be had again by itself;
what one loads is gone before the next begins, and one that fails harms no other.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from triton_voice.errors import InvalidInput
from triton_voice_bench.hardware import observed
from triton_voice_bench.report import Report
from triton_voice_bench.results import BENCHES, Entry, Results, now

Mode = Literal["quick", "standard", "thorough"]
MODES: tuple[Mode, ...] = ("quick", "standard", "thorough")
POLL_S = 0.2
STOP_TIMEOUT_S = 60.0
TIMEOUT_FACTOR, TIMEOUT_LEAST_S = 6.0, 900.0
"""A benchmark is stopped after so many times its estimate, but not before so many seconds."""
LAST_WORDS = 3
"""Lines of the log that tell why a benchmark failed, if it does not say."""

_CPU: dict[str, tuple[str, str, str]] = {
    "memory": ("", "", ""),
    "asr-engine": (
        "--batch 1,8 --steps 10",
        "--batch 1,4,16,64 --steps 60 --row-seconds 15",
        "--batch 1,2,4,8,16,32,64,128 --steps 100",
    ),
    "tts-engine": ("--batch 1,2 --seconds 1", "--batch 1,2,4,8 --seconds 4", "--batch 1,2,4,8,16 --seconds 10"),
    "asr": (
        "--streams 1,4 --seconds 4",
        "--streams 1,4,16,32,48,64 --seconds 12",
        "--streams 1,2,4,8,16,24,32,48,64 --seconds 20",
    ),
    "tts": (
        "--streams 1,2 --sentences 1 --max-seconds 1",
        "--streams 1,2,4,8 --sentences 5 --max-seconds 3",
        "--streams 1,2,4,8 --sentences 20 --max-seconds 5",
    ),
    "llm": (
        "--streams 1,4 --rounds 1 --tokens 16 --no-reference",
        "--streams 1,4,16 --rounds 5 --tokens 64",
        "--streams 1,2,4,8,16 --rounds 10 --tokens 128",
    ),
    "turn": ("--turns 2", "--turns 10", "--turns 20 --streams 1,2"),
}
"""Options of each benchmark on a machine without a GPU, by mode."""
_GPU: dict[str, tuple[str, str, str]] = {
    "memory": ("--precision bfloat16",) * 3,
    "asr-engine": (
        "--batch 1,8 --steps 20 --precision bfloat16",
        "--batch 1,8,32,64,128,256 --precision bfloat16",
        "--batch 1,2,4,8,16,32,64,128,256 --steps 300 --precision bfloat16",
    ),
    "tts-engine": (
        "--batch 1,2 --seconds 2 --precision bfloat16",
        "--batch 1,2,4,8,16,32 --seconds 10 --precision bfloat16",
        "--batch 1,2,4,8,16,32,64 --seconds 20 --precision bfloat16",
    ),
    "asr": (
        "--streams 1,8 --seconds 4 --precision bfloat16",
        "--streams 1,8,32,64,128 --seconds 15 --precision bfloat16",
        "--streams 1,4,8,16,32,64,96,128,192,256 --seconds 20 --precision bfloat16",
    ),
    "tts": (
        "--streams 1,2 --sentences 2 --max-seconds 2 --precision bfloat16",
        "--streams 1,2,4,8,16,32 --sentences 10 --max-seconds 8 --precision bfloat16",
        "--streams 1,2,4,8,16,32 --sentences 20 --max-seconds 10 --precision bfloat16",
    ),
    "llm": (
        "--streams 1,4 --rounds 1 --tokens 32 --no-reference",
        "--streams 1,4,16 --rounds 5 --tokens 128 --no-reference",
        "--streams 1,2,4,8,16 --rounds 10 --tokens 128 --no-reference",
    ),
    "turn": ("--turns 2", "--turns 20 --streams 1,4", "--turns 20 --streams 1,2,4,8"),
}
"""The same with one. Bare vLLM beside the server's would load a large model twice: ask `bench llm` for it by itself."""
_SECONDS: dict[str, tuple[float, float, float]] = {
    "memory": (25, 25, 25),
    "asr-engine": (25, 45, 150),
    "tts-engine": (30, 75, 240),
    "asr": (35, 115, 230),
    "tts": (30, 95, 500),
    "llm": (50, 110, 240),
    "turn": (75, 160, 420),
}
"""How long each takes on two cores of an x86-64 server at rest with the small checkpoints; elsewhere a guess."""


@dataclass(frozen=True)
class Source:
    """Which weights and which server are measured.

    Attributes:
        size: `trained`, `tiny` or `full`.
        models: A folder with parakeet.nemo, magpie.nemo, codec.nemo and llm/ instead.
        server: A running server, for the benchmarks that measure one; None starts one for each.
        metrics: Its Prometheus page.
        device: `auto`, `cpu` or `cuda`.
    """

    size: str = "trained"
    models: Path | None = None
    server: str | None = None
    metrics: str | None = None
    device: str = "auto"

    def options(self, bench: str) -> list[str]:
        """Returns a benchmark's options."""
        given = [] if self.models else ["--size", self.size]
        if self.models:
            parakeet, llm = str(self.models / "parakeet.nemo"), str(self.models / "llm")
            magpie = ["--checkpoint", str(self.models / "magpie.nemo"), "--codec", str(self.models / "codec.nemo")]
            given += {
                "asr": ["--checkpoint", parakeet],
                "asr-engine": ["--checkpoint", parakeet],
                "tts": magpie,
                "tts-engine": magpie,
                "llm": ["--checkpoint", llm],
            }.get(bench, ["--models", str(self.models)])
        if self.server is not None and bench in ("asr", "tts", "llm", "turn"):
            given += ["--server", self.server]
            if bench in ("asr", "tts") and self.metrics:
                given += ["--metrics", self.metrics]
            if bench == "llm" and not self.models:
                given.append("--no-reference")  # what the server has is not known
        if self.device != "auto":
            given += ["--device", self.device]
        return given


@dataclass(frozen=True)
class Job:
    """One benchmark to run.

    Attributes:
        bench: Its name.
        options: Of its command.
        mode: See `Mode`.
        estimate_s: How long it will take.
    """

    bench: str
    options: tuple[str, ...]
    mode: Mode
    estimate_s: float

    @property
    def command(self) -> str:
        """What a person would type."""
        return shlex.join(["triton-voice", "bench", self.bench, *self.options])


@dataclass
class Watcher:
    """What is told of the progress.

    Attributes:
        begins: Called with a job before it runs.
        runs: Called with a job and its seconds so far, a few times a second.
        ended: Called with a job and its entry.
    """

    begins: Callable[[Job], None] = field(default=lambda job: None)
    runs: Callable[[Job, float], None] = field(default=lambda job, seconds: None)
    ended: Callable[[Job, Entry], None] = field(default=lambda job, entry: None)


def plan(
    mode: Mode, source: Source, has_gpu: bool, only: Sequence[str] = (), earlier: Results | None = None
) -> list[Job]:
    """Returns what is to be run.

    Args:
        mode: How thoroughly.
        source: What is measured.
        has_gpu: Whether the models run on one.
        only: Names of benchmarks; empty for all.
        earlier: The machine's results so far: how long the same command took is the estimate.

    Raises:
        InvalidInput: There is no such benchmark.
    """
    if unknown := [name for name in only if name not in BENCHES]:
        raise InvalidInput(f"--only {','.join(unknown)}: there are {', '.join(BENCHES)}")
    table = _GPU if has_gpu else _CPU
    place = MODES.index(mode)
    jobs = []
    for bench in BENCHES:
        if only and bench not in only:
            continue
        options = (*table[bench][place].split(), *source.options(bench))
        job = Job(bench, options, mode, _SECONDS[bench][place])
        before = earlier.benches.get(bench) if earlier else None
        seconds = before.circumstances.get("seconds") if before and before.command == job.command else None
        jobs.append(Job(bench, options, mode, seconds) if seconds and not (before and before.failure) else job)
    return jobs


def pending(jobs: Sequence[Job], earlier: Results, commit: str | None) -> list[Job]:
    """Returns the jobs whose result is not in the file yet: by the same command, of the same commit."""

    def is_done(job: Job) -> bool:
        entry = earlier.benches.get(job.bench)
        if entry is None or entry.report is None or entry.failure:
            return False
        return entry.command == job.command and entry.report.commit == commit

    return [job for job in jobs if not is_done(job)]


def run(jobs: Sequence[Job], path: Path, logs: Path, results: Results, watcher: Watcher | None = None) -> list[str]:
    """Runs jobs one after the other; the file is written after each.

    Args:
        jobs: What to run.
        path: The machine's file.
        logs: Folder for what they print.
        results: What the file holds so far; changed.
        watcher: Told of the progress.

    Returns:
        The names of those that failed.

    Raises:
        KeyboardInterrupt: Asked for by the user; the benchmark that ran is stopped, those that ended are in the file.
    """
    watcher = watcher or Watcher()
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    for job in jobs:
        watcher.begins(job)
        earlier = results.benches.get(job.bench)
        entry = execute(job, logs / f"{job.bench}.log", watcher)
        if entry.report is None:
            failed.append(job.bench)
            if earlier is not None and earlier.report is not None:
                earlier.failure = entry.failure
                entry = earlier
        results.benches[job.bench] = entry
        results.benches = {name: results.benches[name] for name in BENCHES if name in results.benches}
        results.write(path)
        watcher.ended(job, entry)
    return failed


def execute(job: Job, log: Path, watcher: Watcher | None = None) -> Entry:
    """Runs one job in a process of its own.

    Args:
        job: The benchmark.
        log: Where what it prints goes.
        watcher: Told of the progress.
    """
    watcher = watcher or Watcher()
    began = now()
    words = [sys.executable, "-c", "from triton_voice.cli.app import main; main()", "bench", job.bench, *job.options]
    limit_s = max(TIMEOUT_LEAST_S, TIMEOUT_FACTOR * job.estimate_s)
    with tempfile.TemporaryDirectory() as scratch, log.open("w") as printed:
        written = Path(scratch) / "result.json"
        with observed() as seen:
            start = time.monotonic()
            # A session of its own: Ctrl-C reaches this process alone, which then stops the other in good order.
            child = subprocess.Popen(
                [*words, "--json", str(written)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "200"},
            )
            try:
                while child.poll() is None and time.monotonic() - start < limit_s:
                    watcher.runs(job, time.monotonic() - start)
                    time.sleep(POLL_S)
                timed_out = child.poll() is None
            finally:
                _stop(child)
        entry = Entry(job.command, job.mode, began, seen.as_json())
        if timed_out:
            entry.failure = f"still at it after {limit_s:.0f} s; its log: {log}"
        elif child.returncode != 0 or not written.exists():
            entry.failure = f"{_last_words(log)} (exit code {child.returncode}; its log: {log})"
        else:
            entry.report = Report.read(written)
            entry.report.machine["others_percent"] = seen.others_percent
    return entry


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ends a benchmark that is still running: as Ctrl-C would, then by force, with all that it started."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_words(log: Path) -> str:
    """What a failed command said: its own sentence if there is one, else its last lines."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error:")]
    return " ".join(said[-1:] or lines[-LAST_WORDS:]) or "it said nothing"
