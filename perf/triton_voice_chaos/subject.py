"""The server under test: `triton-voice serve --supervise` as an operator runs it, and what it holds at a moment."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from triton_voice.server.process import ServerError, free_port
from triton_voice_bench.observe import Metrics
from triton_voice_chaos.garbage import Ports

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
GONE_TIMEOUT_S = 60.0
"""For the last processes of a server whose supervisor has ended."""
IDLE_S = 8
"""After which the recogniser forgets a silent caller: short, so that slots left open are seen to come back."""
HANG_TIMEOUT_S = 30
"""After which a model counts as hung: short, so that runs end, and so that a false alarm is likelier
than it is for users."""
STUB, SERVER, ENGINE = "triton_python_b", "tritonserver", "EngineCore"
GAUGES = {
    "callers": "parakeet_active_streams",
    "chats": "triton_voice_llm_requests_running",
    "speeches": "magpie_active_streams",
}


@dataclass(frozen=True)
class Holdings:
    """What a server holds.

    Attributes:
        processes: Of it, the program that supervises it included.
        files: Their open file descriptors.
        threads: Their threads.
        memory_mib: Their resident memory, shared pages counted once for each.
        regions: Its regions in /dev/shm.
        in_use: Slots by kind, see `GAUGES`.
    """

    processes: int
    files: int
    threads: int
    memory_mib: float
    regions: int
    in_use: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain objects."""
        return asdict(self)


class Subject:
    """One `triton-voice serve` in a process of its own.

    Args:
        only: Models to load.
        options: Further options of `serve`.
        environment: Further variables.
        log_file: Triton's log.
    """

    def __init__(
        self,
        only: tuple[str, ...],
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        log_file: Path | None = None,
    ):
        self.only = only
        self.ports = Ports(free_port(), free_port(), free_port())
        self.said: list[tuple[float, str]] = []
        self._options = options
        self._environment = dict(environment or {})
        self._log_file = log_file
        self._serve: subprocess.Popen[str] | None = None
        self._ready = threading.Condition()
        self._starts = 0

    def __enter__(self) -> Subject:
        """Starts it and waits until its models are ready."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops it."""
        self.stop()

    @property
    def url(self) -> str:
        """`host:port` of gRPC."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """URL of the metrics."""
        return f"http://127.0.0.1:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Process id of `serve`."""
        assert self._serve is not None
        return self._serve.pid

    def start(self) -> None:
        """Starts it, or starts it again after its end, on the same ports, and waits until it is ready.

        Raises:
            ServerError: It ended, or was not ready in time.
        """
        self.begin()
        self.wait_ready(self._starts + 1)

    def begin(self) -> None:
        """Starts it and returns at once."""
        command = [sys.executable, "-c", "from triton_voice.cli.app import main; main()", "serve", "--supervise"]
        command += ["--only", ",".join(self.only), "--grpc-port", str(self.ports.grpc)]
        command += ["--http-port", str(self.ports.http), "--metrics-port", str(self.ports.metrics), *self._options]
        if self._log_file is not None:
            command += ["--log-file", str(self._log_file)]
        quick = {"PARAKEET_IDLE_S": str(IDLE_S), "TRITON_VOICE_HANG_TIMEOUT_S": str(HANG_TIMEOUT_S)}
        environment = {**os.environ, **quick, **self._environment}
        self._serve = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._serve,), daemon=True).start()

    def wait_ready(self, starts: int) -> None:
        """Waits until it has come up so many times in all."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._ready:
            while self._starts < starts:
                if self._serve is None or self._serve.poll() is not None or time.monotonic() > deadline:
                    said = "\n".join(line for _, line in self.said[-8:])
                    raise ServerError(f"serve did not come up:\n{said}")
                self._ready.wait(0.2)

    def stop(self) -> bool:
        """Stops it as an operator does; returns whether it ended in order."""
        serve, self._serve = self._serve, None
        if serve is None:
            return True
        serve.terminate()
        try:
            return serve.wait(STOP_TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            serve.kill()
            serve.wait()
            return False

    def kill(self) -> None:
        """Kills `serve` itself, and nothing else."""
        serve, self._serve = self._serve, None
        assert serve is not None
        serve.kill()
        serve.wait()

    def family(self) -> list[psutil.Process]:
        """Returns its processes, `serve` first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            serve = psutil.Process(self.pid)
            return [serve, *serve.children(recursive=True)]
        return []

    def find(self, what: str, model: str = "") -> psutil.Process:
        """Returns one of its processes.

        Args:
            what: `STUB`, `SERVER` or `ENGINE`.
            model: Whose stub.

        Raises:
            ServerError: It has none.
        """
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                named = what in process.name() or (what == ENGINE and what in words)
                if named and (not model or f"/{model}/" in words):
                    return process
        raise ServerError(f"no {what} {model} runs")

    def holdings(self) -> Holdings:
        """Measures what it holds now."""
        files, threads, memory = 0, 0, 0
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.Error), process.oneshot():
                files += process.num_fds()
                threads += process.num_threads()
                memory += process.memory_info().rss
        totals = Metrics.scrape(self.metrics_url).totals
        return Holdings(
            processes=len(family),
            files=files,
            threads=threads,
            memory_mib=round(memory / 2**20, 1),
            regions=len(list(Path("/dev/shm").glob(f"triton_voice_{self.pid}_*"))) if self._serve else 0,
            in_use={name: totals.get(gauge, 0.0) for name, gauge in GAUGES.items()},
        )

    def _listen(self, serve: subprocess.Popen[str]) -> None:
        assert serve.stderr is not None
        for line in serve.stderr:
            if text := re.sub(r"\s+", " ", line).strip():
                self.said.append((time.monotonic(), text))
                if "ready gRPC" in text:
                    with self._ready:
                        self._starts += 1
                        self._ready.notify_all()

    @property
    def starts(self) -> int:
        """How many times it has come up."""
        return self._starts


def processes_left(family: Sequence[psutil.Process]) -> list[str]:
    """Waits until processes have ended; returns those that have not. One that only init has yet to see has ended."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while True:
        left = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(f"process {process.pid} ({process.name()})")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
