"""Ends a tritonserver and all its processes when the program that started it has died, however it died.

`kill -9`, a crash and the kernel's out-of-memory killer leave no time for an orderly stop. Linux can signal the direct
child of a dead process (PR_SET_PDEATHSIG), which stops tritonserver but not its stubs: one that is still loading goes
on, and then waits for its dead parent for ever. (The same signal does not help there, because Linux sends it when the
*thread* that started the child ends, and Triton starts stubs from short-lived threads.)

So `TritonServer` starts this file as a small process of its own and holds the write end of its standard input. When
that pipe closes, whoever held it is gone. It is run as a script without site-packages and therefore needs nothing but
the standard library: a few MB, no import of the package.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

POLL_S = 0.05
ORPHAN_GRACE_S = 2.0
"""What a stub may take to notice that its server has ended; it does so by itself, unless it is loading."""
ORPHAN_DRAIN_S = 3.0
"""What a server may take to stop whose `serve` was killed: whoever starts it again waits for its ports."""
KILL_GRACE_S = 5.0
"""What the kernel may take to remove a killed process, e.g. one that frees much memory."""


@dataclass(frozen=True)
class Traces:
    """By what one server's processes and files are known.

    Attributes:
        run_dir: The server's temporary folder. Its stubs are executed from there.
        shm_prefix: Beginning of the names of its regions in /dev/shm.
        session: tritonserver's process id, which is also the session of everything that it starts; 0 is unknown.
    """

    run_dir: str
    shm_prefix: str
    session: int = 0

    def family(self) -> set[int]:
        """Returns the ids of the running processes of the server, orphans too, zombies not."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                    # "pid (name) state ppid pgrp session ..."; the name may hold anything.
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if fields[0] not in "ZX" and (self._in_session(int(fields[3])) or self._is_named(entry)):
                        found.add(int(entry.name))
        return found

    def _in_session(self, session: int) -> bool:
        return session == self.session != 0

    def _is_named(self, entry: Path) -> bool:
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[0].startswith(f"{self.run_dir}/") or f"--backend-directory={self.run_dir}/backends" in words

    def end_family(self, grace_s: float = ORPHAN_GRACE_S) -> None:
        """Kills what is left of the processes after a grace period."""
        deadline = time.monotonic() + grace_s
        while (left := self.family()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        deadline = time.monotonic() + KILL_GRACE_S
        while left and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
            left = self.family()

    def remove_files(self) -> None:
        """Removes the folder, and the shared memory that killed processes left; an orderly stop leaves none."""
        for region in Path("/dev/shm").glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)


def command() -> list[str]:
    """Returns the command line of the watching process; `Traces` as JSON lines go to its standard input."""
    return [sys.executable, "-I", "-S", __file__]


def line(traces: Traces) -> bytes:
    """Returns what tells the watching process whom to watch; a later line replaces an earlier one."""
    return json.dumps(asdict(traces)).encode() + b"\n"


def _watch() -> None:
    # The signals that end `serve` in order reach its whole process group or cgroup; the watch must outlast it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    traces = None
    for told in sys.stdin.buffer:  # ends when the last holder of the other end does
        traces = Traces(**json.loads(told))
    if traces is None:
        return
    if traces.session in traces.family():
        with contextlib.suppress(ProcessLookupError):
            os.kill(traces.session, signal.SIGTERM)
        deadline = time.monotonic() + ORPHAN_DRAIN_S
        while traces.session in traces.family() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    traces.end_family()
    traces.remove_files()


if __name__ == "__main__":
    _watch()
