"""Finds perf_analyzer, gets it from the package index, or says in plain words how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_voice.errors import TritonVoiceError
from triton_voice.paths import cache_dir

NEW_GLIBC = (2, 38)
WHEEL_OLD_GLIBC, WHEEL_NEW_GLIBC = "2.50.0", "2.55.0"
"""The last wheels of tritonclient that carry the binary, by what they were linked against; newer ones have none."""
CUDA_RUNTIME = "nvidia-cuda-runtime-cu12"
"""Has libcudart.so.12, which the x86-64 binary loads even where there is no GPU."""
B64_LIBRARY = "libb64.so.0d"
DEBIAN_B64 = "libb64-0d"
GET_COMMAND = "triton-voice bench perf-analyzer --get"
VERSION_TIMEOUT_S = 30
DOWNLOAD_TIMEOUT_S = 600


@dataclass(frozen=True)
class Tool:
    """A perf_analyzer that starts.

    Attributes:
        path: The binary.
        libraries: Folders that it needs on `LD_LIBRARY_PATH`.
    """

    path: Path
    libraries: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """Returns the environment that it runs in."""
        places = [*map(str, self.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(places)} if places else dict(os.environ)


def home() -> Path:
    """Returns the folder that `get` fills."""
    return cache_dir() / "perf_analyzer"


def find(binary: Path | None = None) -> Tool:
    """Finds a perf_analyzer that runs here: the one named, else on PATH, else the one that `get` fetched.

    Args:
        binary: Where it is.

    Raises:
        TritonVoiceError: There is none, or it does not start; the message says how to get what is missing.
    """
    if binary is not None:
        if not binary.is_file():
            raise TritonVoiceError(f"perf_analyzer is not at {binary}. {how_to_get()}")
        return _tried(Tool(binary))
    if on_path := shutil.which("perf_analyzer"):
        return _tried(Tool(Path(on_path)))
    if fetched := _fetched(home()):
        return _tried(fetched)
    raise TritonVoiceError(f"perf_analyzer is not on PATH. {how_to_get()}")


def wheel(machine: str, libc: str) -> str | None:
    """Returns the version of tritonclient whose binary runs on a system, None if there is none.

    Args:
        machine: `x86_64` or `aarch64`.
        libc: Version of glibc.
    """
    new = tuple(int(part) for part in (libc or "0").split(".")[:2]) >= NEW_GLIBC
    if new:
        return WHEEL_NEW_GLIBC
    return WHEEL_OLD_GLIBC if machine == "x86_64" else None


def how_to_get(machine: str = platform.machine(), libc: str = platform.libc_ver()[1]) -> str:
    """Says in plain words how this machine gets a perf_analyzer.

    Args:
        machine: `x86_64` or `aarch64`.
        libc: Version of glibc.
    """
    version = wheel(machine, libc)
    if version is None:
        return f"No tritonclient wheel has one for {machine} with glibc {libc}; NVIDIA's tritonserver SDK image does."
    words = (
        f"`{GET_COMMAND}` fetches it. By hand: it is inside the wheel tritonclient {version} (for glibc {libc} on "
        f"{machine}; the newest wheels have none): `pip download --no-deps tritonclient=={version}`, unzip it, and put "
        "its folder data/bin on PATH, executable. Do not install that wheel here: the SDK needs a newer one."
    )
    if machine == "x86_64":
        words += (
            f" It loads {B64_LIBRARY} (Debian, Ubuntu: apt-get install {DEBIAN_B64}) and libcudart.so.12 (`pip "
            f"download --no-deps {CUDA_RUNTIME}`, unzip it, and put its folder lib on LD_LIBRARY_PATH)."
        )
    return words + " Step by step: perf/perf_analyzer/README.md"


def get(on_step: Callable[[str], None] = lambda what: None) -> Tool:
    """Fetches the binary and the libraries that it lacks into the cache folder; installs nothing.

    The wheels come from the package index that pip is set up for, libb64 from Debian's or Ubuntu's mirror through
    `apt-get download`, which needs no root.

    Args:
        on_step: Told what is done next.

    Raises:
        TritonVoiceError: There is none for this system, or a download failed.
    """
    machine, libc = platform.machine(), platform.libc_ver()[1]
    version = wheel(machine, libc)
    if version is None:
        raise TritonVoiceError(how_to_get(machine, libc))
    folder = home()
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    wanted = [f"tritonclient=={version}", *([CUDA_RUNTIME] if machine == "x86_64" else [])]
    for requirement in wanted:
        on_step(f"pip download {requirement}")
        _call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), requirement], folder)
    for archive in wheels.glob("*.whl"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    shutil.rmtree(wheels)
    found = _fetched(folder)
    if found is None:
        raise TritonVoiceError(f"tritonclient {version} for {machine} has no perf_analyzer. {how_to_get()}")
    found.path.chmod(0o755)
    if machine == "x86_64" and B64_LIBRARY in _missing(found):
        on_step(f"apt-get download {DEBIAN_B64}")
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise TritonVoiceError(f"{found.path} loads {B64_LIBRARY}: install it (Fedora: libb64)")
        _call(["apt-get", "download", "-qq", DEBIAN_B64], folder)
        for package in folder.glob("*.deb"):
            _call(["dpkg-deb", "-x", str(package), str(folder / "debian")], folder)
        found = _fetched(folder) or found
    return _tried(found)


def _fetched(folder: Path) -> Tool | None:
    binaries = sorted(folder.glob("**/bin/perf_analyzer"))
    if not binaries:
        return None
    libraries = {path.parent for name in ("libcudart.so.*", "libb64.so.*") for path in folder.rglob(name)}
    return Tool(binaries[0], tuple(sorted(libraries)))


def _tried(tool: Tool) -> Tool:
    """Returns the tool if it starts."""
    command = [str(tool.path), "--version"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, env=tool.environment()
        )
    except OSError as error:
        raise TritonVoiceError(f"{tool.path} does not start: {error.strerror}. {how_to_get()}") from error
    if done.returncode != 0:
        raise TritonVoiceError(f"{tool.path} does not start: {done.stderr.strip()}. {how_to_get()}")
    return tool


def _missing(tool: Tool) -> str:
    """What its start complains of; empty if it starts."""
    command = [str(tool.path), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, env=tool.environment())
    return done.stderr if done.returncode != 0 else ""


def _call(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TritonVoiceError(f"{' '.join(command)} was still at it after {DOWNLOAD_TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = " ".join(done.stderr.strip().splitlines()[-2:])
        raise TritonVoiceError(f"{' '.join(command)} failed: {last}")
