"""Watches a running server: whether it answers, whether its models' processes live, and whether they work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from triton_voice.server.locate import STUB
from triton_voice.server.pulse import Pulses

READY_TIMEOUT_S = 5.0
SILENCE_S = 30.0
"""A running tritonserver that answers no health check for so long hangs; it answers them from threads of their own."""
MAX_LOOK_S = READY_TIMEOUT_S + 2.0
"""What one look counts of a silence at most: time in which this program itself did not run (a paused container, a host
that starves) says nothing about the server."""
ENGINE_GRACE_S = 15.0
"""What the vllm backend may take to unload itself after its engine was killed, before it counts as hung itself."""


@dataclass(frozen=True)
class Health:
    """What is wrong with a server whose process runs.

    Attributes:
        dead: Models whose process has ended. Triton 2.51 goes on calling them ready, leaves their requests in flight
            unanswered and fails new ones; only a new tritonserver helps, and it alone ends those requests.
        unloaded: Models that Triton no longer has, because they unloaded themselves, as the vllm backend does when its
            engine dies. Their requests have been answered; they can be loaded again beside the others.
        hung: Models whose process lives and serves nobody, and the sentence that says how that shows. Their requests
            are ended as those of the dead are.
        silent_s: Seconds that were looked without an answer from the server; 0 if it just answered.
    """

    dead: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    hung: Mapping[str, str] = field(default_factory=dict)
    silent_s: float = 0.0

    @property
    def hangs(self) -> bool:
        """Whether the server has not answered for too long."""
        return self.silent_s > SILENCE_S


class Watch:
    """Watches the models of one server from their load on.

    Args:
        connect: Makes a connection to the server.
        pulses: Makes what follows the models' pulses; None does without.
    """

    def __init__(self, connect: Callable[[], triton_grpc.InferenceServerClient], pulses: Callable[[], Pulses] | None):
        self._connect = connect
        self._start_pulses = pulses
        self._pulses: Pulses | None = None
        self._client: triton_grpc.InferenceServerClient | None = None
        self._silent_s = self._looked_at = 0.0
        self._stubs: dict[str, psutil.Process] = {}
        self._former: dict[str, psutil.Process] = {}

    def add(self, stubs: Mapping[str, psutil.Process]) -> None:
        """Watches models that have just been loaded.

        A process that one of them had before is ended: Triton 2.51 keeps that of an unloaded model for ever once a
        request to it was refused, with all its memory.

        Args:
            stubs: Their processes.
        """
        for model in stubs:
            if (former := self._former.pop(model, None)) is not None:
                _kill(former)
        self._stubs.update(stubs)
        if self._pulses is not None:
            for model in stubs:
                self._pulses.follow(model)

    def forget(self, model: str) -> None:
        """Leaves a model out until it is added again."""
        if (stub := self._stubs.pop(model, None)) is not None:
            self._former[model] = stub
        if self._pulses is not None:
            self._pulses.forget(model)

    @property
    def stubs(self) -> Mapping[str, psutil.Process]:
        """The models' processes."""
        return self._stubs

    def look(self) -> Health:
        """Looks whether all models still serve; takes at most `READY_TIMEOUT_S` a model."""
        stubs = dict(self._stubs)
        if not stubs:
            return Health()
        if self._client is None:
            self._begin(stubs)
        assert self._client is not None
        dead, unloaded, hung = [], [], dict[str, str]()
        try:
            for name, stub in stubs.items():
                runs = _runs(stub)  # asked first: a model that unloads itself is not ready before its process ends
                if not self._client.is_model_ready(name, client_timeout=READY_TIMEOUT_S):
                    unloaded.append(name)
                elif not runs:
                    dead.append(name)
            self._silent_s, self._looked_at = 0.0, time.monotonic()
            if self._pulses is not None:
                hung = {name: why for name, why in self._pulses.hung().items() if name not in (*dead, *unloaded)}
        except InferenceServerException:  # the server itself ends, is busy or hangs; `wait` and the silence tell which
            dead = [name for name, stub in stubs.items() if not _runs(stub)]
            now = time.monotonic()
            self._silent_s += min(now - self._looked_at, MAX_LOOK_S)
            self._looked_at = now
        return Health(tuple(sorted(dead)), tuple(sorted(unloaded)), hung, self._silent_s)

    def end_engine(self, model: str) -> bool:
        """Kills the processes behind a hung model's own, so that it fails its requests and unloads itself.

        The model counts as hung again after `ENGINE_GRACE_S`.

        Returns:
            Whether it had any.
        """
        engine: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            engine = self._stubs[model].children(recursive=True)
        for process in engine:
            _kill(process)
        if engine and self._pulses is not None:
            self._pulses.give(model, ENGINE_GRACE_S)
        return bool(engine)

    def close(self) -> None:
        """Ends the watch."""
        self._stubs.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._pulses is not None:
            self._pulses.close()
            self._pulses = None

    def _begin(self, models: Iterable[str]) -> None:
        self._client = self._connect()
        self._silent_s, self._looked_at = 0.0, time.monotonic()
        if self._start_pulses is not None:
            self._pulses = self._start_pulses()
            for model in models:
                self._pulses.follow(model)


def find_stubs(pids: Iterable[int], models: Iterable[str], repository: Path) -> dict[str, psutil.Process]:
    """Finds the process of each model: Python backend stubs get a path in their model's folder as an argument.

    Args:
        pids: Processes of one server.
        models: Whose stubs.
        repository: The model repository, as the server was told.
    """
    wanted, stubs, born = tuple(models), dict[str, psutil.Process](), dict[str, float]()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            words, at = process.cmdline(), process.create_time()
            if words and words[0].endswith(STUB):
                for model in wanted:
                    # The newest: Triton may keep the process of an unloaded model beside that of its successor.
                    folder = f"{repository}/{model}/"
                    if any(word.startswith(folder) for word in words[1:]) and at >= born.get(model, at):
                        stubs[model], born[model] = process, at
    return stubs


def _kill(process: psutil.Process) -> None:
    """Kills a process and those behind it; nothing happens if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
