"""What a benchmark ran on: processor, memory, GPU and power settings, and what else the machine was doing."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

TOOL_TIMEOUT_S = 20
SAMPLE_S = 2.0
"""How long the machine is watched before a benchmark begins."""
WATCH_S = 1.0
"""Between two looks at the memory and at the processes of a run."""
BUSY_BEFORE_PERCENT = 15.0
"""Share of all cores in use before a run from which its figures are flagged."""
BUSY_DURING_PERCENT = 10.0
"""Share of all cores that other processes, or other machines on the same host, may use during a run."""
_WORK = ("user", "nice", "system", "irq", "softirq")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "pstate")


def machine() -> dict[str, Any]:
    """Describes this machine. What cannot be read is None.

    Returns:
        `cpu`, `architecture`, `cores`, `memory_gib`, `load_1min` (before the run), `gpu` (name of the first), `gpus`
        (how many), `gpu_memory_gib` (None where GPU and processor share one memory), `driver`, `power` (see `power`),
        `system` and `kernel`.
    """
    gpus = _gpus()
    first = gpus[0] if gpus else {}
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpu": first.get("name"),
        "gpus": len(gpus),
        "gpu_memory_gib": _number(first.get("memory.total"), 1024),
        "driver": first.get("driver_version"),
        "power": power(first),
        "system": _system(),
        "kernel": platform.release(),
    }


def power(gpu: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns the settings by which this machine saves power, those that can be read.

    Args:
        gpu: The first GPU as nvidia-smi describes it.
    """
    found: dict[str, Any] = {
        "cpu_governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "platform_profile": _text("/sys/firmware/acpi/platform_profile"),
        "gpu_power_limit_w": _number((gpu or {}).get("power.limit")),
        "gpu_pstate": (gpu or {}).get("pstate"),
    }
    if modes := _output(["nvpmodel", "-q"]):  # Jetson's power modes
        found["nvpmodel"] = modes.splitlines()[0].removeprefix("NV Power Mode:").strip()
    return {name: value for name, value in found.items() if value not in (None, "[N/A]")}


@dataclass
class Circumstances:
    """What the machine did before and during a run.

    Attributes:
        load_before: Load averages over 1, 5 and 15 minutes. A benchmark that has just ended is in them.
        busy_before_percent: Share of all cores in use in the two seconds before, when nothing of ours ran.
        others_percent: Share of all cores that processes outside the run used during it.
        steal_percent: Share of all cores that the host gave to other virtual machines meanwhile.
        memory_gib: By how much the available memory fell at most: server, models and callers; on unified memory the
            GPU's share too.
        seconds: How long the run took.
    """

    load_before: tuple[float, float, float]
    busy_before_percent: float
    others_percent: float | None = None
    steal_percent: float | None = None
    memory_gib: float | None = None
    seconds: float | None = None

    def warnings(self) -> list[str]:
        """Says why the figures are to be doubted; empty if nothing speaks against them."""
        said = []
        if self.busy_before_percent > BUSY_BEFORE_PERCENT:
            said.append(f"{self.busy_before_percent:.0f} % of the processor was in use before the run")
        if self.others_percent is not None and self.others_percent > BUSY_DURING_PERCENT:
            said.append(f"other processes used {self.others_percent:.0f} % of the processor during the run")
        if self.steal_percent is not None and self.steal_percent > BUSY_DURING_PERCENT:
            said.append(f"the host withheld {self.steal_percent:.0f} % of the processor during the run")
        return said

    def as_json(self) -> dict[str, Any]:
        """Returns it for the results' file, with the warnings."""
        return {**asdict(self), "load_before": list(self.load_before), "warnings": self.warnings()}


@contextlib.contextmanager
def observed() -> Iterator[Circumstances]:
    """Watches the machine, then a run of child processes within the block; the attributes are complete after it."""
    load = tuple(round(value, 2) for value in os.getloadavg())
    seen = Circumstances((load[0], load[1], load[2]), round(psutil.cpu_percent(SAMPLE_S), 1))
    own = _Family()
    before, began = psutil.cpu_times(), time.monotonic()
    available = lowest = psutil.virtual_memory().available
    ended = threading.Event()

    def watch() -> None:
        nonlocal lowest
        while not ended.wait(WATCH_S):
            lowest = min(lowest, psutil.virtual_memory().available)
            own.look()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()
        after = psutil.cpu_times()
        seen.seconds = round(time.monotonic() - began, 1)
        capacity = max(seen.seconds, WATCH_S) * (psutil.cpu_count() or 1)
        used = sum(getattr(after, kind) - getattr(before, kind) for kind in _WORK)
        seen.others_percent = round(max(0.0, 100 * (used - own.seconds()) / capacity), 1)
        seen.steal_percent = round(100 * (after.steal - before.steal) / capacity, 1)
        seen.memory_gib = round((available - lowest) / 2**30, 2)


class _Family:
    """Processor time of this process and of all that it started, also of those whose parents did not wait for them."""

    def __init__(self) -> None:
        self._self = psutil.Process()
        self._seconds: dict[psutil.Process, float] = {}
        self._known: set[psutil.Process] = set()
        self._before = self._waited_for()

    def look(self) -> None:
        """Notes what each has used so far."""
        with contextlib.suppress(psutil.Error):
            self._known.update(self._self.children(recursive=True))
        for process in tuple(self._known):
            try:
                times = process.cpu_times()
                self._seconds[process] = times.user + times.system
            except psutil.Error:
                self._known.discard(process)

    def seconds(self) -> float:
        """Returns their time together: as noted, or as the system adds it up, whichever saw more."""
        own = self._self.cpu_times()
        noted = sum(self._seconds.values()) + own.user + own.system - self._before[0]
        return max(noted, sum(self._waited_for()) - sum(self._before))

    def _waited_for(self) -> tuple[float, float]:
        """Time of this process, and of its descendants that were waited for."""
        times = self._self.cpu_times()
        return times.user + times.system, times.children_user + times.children_system


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if listed := _output(["lscpu"]):  # Arm's /proc/cpuinfo has numbers instead of names
        names = [line.split(":", 1)[1].strip() for line in listed.splitlines() if "Model name:" in line]
        if names:
            return " + ".join(names)
    return platform.processor() or "unknown"


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _gpus() -> list[dict[str, str]]:
    """Each GPU's fields, as nvidia-smi writes them."""
    listed = _output(["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"])
    rows = [[part.strip() for part in line.split(",")] for line in (listed or "").splitlines() if line.strip()]
    return [dict(zip(_GPU_FIELDS, row, strict=True)) for row in rows if len(row) == len(_GPU_FIELDS)]


def _output(command: list[str]) -> str | None:
    """What a tool prints; None if it is not here or fails."""
    tool = shutil.which(command[0])
    if tool is None:
        return None
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [tool, *command[1:]], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _text(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip() or None
    return None


def _number(text: str | None, divisor: float = 1) -> float | None:
    """A number that nvidia-smi printed; None for `[N/A]`."""
    try:
        return round(float(text) / divisor, 1) if text else None
    except ValueError:
        return None
