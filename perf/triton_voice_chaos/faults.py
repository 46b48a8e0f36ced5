"""The faults: what is broken, how, and what an operator may expect of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_voice_chaos.garbage import Flood
from triton_voice_chaos.proxy import CuttingProxy
from triton_voice_chaos.subject import ENGINE, SERVER, STUB, Subject, processes_left

MEAN_LIFE_S = 1.0
"""Of a connection while connections are cut."""
SMALL_DISK = "32m"
FILL_BLOCK = b"\0" * (1 << 16)


@dataclass
class Scene:
    """What a fault may lay its hands on.

    Attributes:
        subject: The server.
        proxy: What one group of clients connects through.
        disk: Folder of a small file system that holds the server's cache; None if this machine does not allow one.
        seconds: How long a fault that lasts goes on.
        notes: What the fault reports of itself.
    """

    subject: Subject
    proxy: CuttingProxy
    disk: Path | None
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One way to break something.

    Attributes:
        name: As `--only` takes it.
        does: What it does, in a sentence.
        make: Makes the fault; returns when it is over, at once for a kill.
        spares: Groups of clients that must not notice anything, by model; `*` stands for all groups.
        needs: Models without which it makes no sense.
        restarts: Whether the server has to come up again; if not, it may not.
        says: What `serve` must tell its operator (a regular expression); empty if it must see nothing wrong.
    """

    name: str
    does: str
    make: Callable[[Scene], None]
    spares: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    restarts: bool = True
    says: str = ""


def _kill_stub(model: str) -> Callable[[Scene], None]:
    return lambda scene: scene.subject.find(STUB, model).kill()


def _freeze_stub(model: str) -> Callable[[Scene], None]:
    return lambda scene: scene.subject.find(STUB, model).suspend()


def _kill_engine(scene: Scene) -> None:
    scene.subject.find(ENGINE).kill()


def _freeze_engine(scene: Scene) -> None:
    scene.subject.find(ENGINE).suspend()


def _kill_server(scene: Scene) -> None:
    scene.subject.find(SERVER).kill()


def _freeze_server(scene: Scene) -> None:
    scene.subject.find(SERVER).suspend()


def _kill_serve(scene: Scene) -> None:
    """Kills the supervisor; what it started must go by itself, then it is started again, as by an init system."""
    family = scene.subject.family()
    began = time.monotonic()
    scene.subject.kill()
    if left := processes_left(family):
        raise RuntimeError(f"processes were left by a serve that was killed: {', '.join(left)}")
    scene.notes["all processes gone after, s"] = round(time.monotonic() - began, 1)
    scene.subject.start()


def _fill_disk(scene: Scene) -> None:
    """Fills the disk of the cache and the log to the last byte, and gives it back later."""
    assert scene.disk is not None
    filler = scene.disk / "filler"
    written = 0
    with filler.open("wb", buffering=0) as file:
        deadline = time.monotonic() + scene.seconds
        while time.monotonic() < deadline:
            try:
                while True:
                    written += file.write(FILL_BLOCK)
            except OSError:  # full; what is freed meanwhile is taken too
                time.sleep(0.2)
    usage = os.statvfs(scene.disk)
    scene.notes["bytes left on the full disk"] = usage.f_bavail * usage.f_frsize
    scene.notes["MiB written to fill it"] = round(written / 2**20, 1)
    filler.unlink()


def _cut_connections(scene: Scene) -> None:
    before = scene.proxy.cuts
    scene.proxy.cut(MEAN_LIFE_S)
    time.sleep(scene.seconds)
    scene.proxy.cut(None)
    scene.notes["connections cut"] = scene.proxy.cuts - before


def _flood(scene: Scene) -> None:
    scene.notes["what the garbage got back"] = seen = Flood(scene.subject.ports, scene.seconds).run()
    if bad := {kind: got for kind, got in seen.items() if got.get("unanswered") or got.get("died")}:
        raise RuntimeError(f"garbage was left unanswered: {bad}")


_EVERYBODY = (("parakeet", "*"), ("magpie", "*"), ("nemotron", "*"))
_SPEECH = (("parakeet", "*"), ("magpie", "*"))
_DIRECT = (("parakeet", "direct"), ("magpie", "direct"), ("nemotron", "direct"))

FAULTS = (
    # kill-serve in the middle, because `serve --supervise` gives up after five restarts in ten minutes.
    Fault("connections", "TCP connections of one group of clients are reset at random, about once a second each",
          _cut_connections, spares=_DIRECT, restarts=False),
    Fault("flood", "five processes send wrong tensors, huge messages, broken JSON, half-open streams and random bytes",
          _flood, spares=_EVERYBODY, restarts=False),
    Fault("disk-full", "the disk of the cache and of the log is filled to the last byte",
          _fill_disk, spares=_EVERYBODY, restarts=False),
    Fault("kill-engine", "kill -9 of vLLM's engine process", _kill_engine,
          spares=_SPEECH, needs=("nemotron",), restarts=False, says="nemotron died"),
    Fault("freeze-engine", "SIGSTOP of vLLM's engine process: the model lives and thinks of nothing", _freeze_engine,
          spares=_SPEECH, needs=("nemotron",), restarts=False, says="nemotron hangs.* its engine is killed"),
    Fault("kill-parakeet", "kill -9 of the recogniser's process", _kill_stub("parakeet"),
          needs=("parakeet",), says="parakeet died"),
    Fault("freeze-magpie", "SIGSTOP of the synthesiser's process: it lives, is called ready and answers nobody",
          _freeze_stub("magpie"), needs=("magpie",), says="magpie hangs.* restarting"),
    Fault("kill-serve", "kill -9 of `triton-voice serve`, which is then started again", _kill_serve, says="ready gRPC"),
    Fault("kill-magpie", "kill -9 of the synthesiser's process", _kill_stub("magpie"),
          needs=("magpie",), says="magpie died"),
    Fault("kill-nemotron", "kill -9 of the language model's process", _kill_stub("nemotron"),
          needs=("nemotron",), says="nemotron died"),
    Fault("kill-server", "kill -9 of tritonserver", _kill_server, says="tritonserver ended by itself"),
    Fault("freeze-server", "SIGSTOP of tritonserver: it lives and answers nobody", _freeze_server,
          says="no answer for"),
)  # fmt: skip


@contextlib.contextmanager
def small_disk() -> Iterator[tuple[Path | None, str]]:
    """Mounts a small file system for the server's cache.

    Yields:
        Its folder, or None and the reason why there is none: only root may mount, also a root of one's own user
        namespace (`unshare --user --map-root-user --mount`), where the machine allows that.
    """
    folder = Path(tempfile.mkdtemp(prefix="triton-voice-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "triton-voice-chaos", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode:
            yield None, f"a small disk cannot be mounted here ({done.stderr.strip().splitlines()[-1]})"
            return
        try:
            yield folder, ""
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def interrupt_guard() -> None:
    """Turns SIGTERM into KeyboardInterrupt, so that a stopped run also leaves nothing behind."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
