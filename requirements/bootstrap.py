"""Makes the project's virtual environment: `.venv` with everything at the versions of the lock.

Runs on the system's Python with nothing installed, so it uses the standard library alone. Idempotent: a second run
finds its stamp and returns at once.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
UV = "uv==0.13.8"
TORCH = "2.13.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SUPPORTED = ((3, 11), (3, 12))
MIN_GLIBC = (2, 35)  # what tritonserver in the nvidia-pytriton wheel was linked against


def die(*lines: str) -> None:
    """Stops with a sentence for the person at the keyboard."""
    sys.stderr.write("\nsetup: " + "\n       ".join(lines) + "\n")
    raise SystemExit(1)


def reexec_with_supported_python() -> None:
    """Hands over to python3.12 or python3.11 when the running one is neither."""
    if sys.version_info[:2] in SUPPORTED:
        return
    for name in ("python3.12", "python3.11"):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            os.execv(found, [found, *sys.argv])
    die(
        f"Python 3.11 or 3.12 is needed; this is {platform.python_version()} and neither is on PATH.",
        "On Debian or Ubuntu: apt-get install python3.12 python3.12-venv   (or python3.11 python3.11-venv)",
    )


def check_system() -> None:
    """Names what the system lacks, with the package that has it, before anything is downloaded."""
    major_minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        die(f"tritonserver runs on Linux on x86-64 or aarch64; this is {sys.platform} on {platform.machine()}.")
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(int(p) for p in version.split(".")[:2]) < MIN_GLIBC:
        needed = f"{MIN_GLIBC[0]}.{MIN_GLIBC[1]}"
        die(f"glibc {needed} or newer is needed (Debian 12, Ubuntu 22.04); this system has {version}.")
    if not hasattr(tarfile, "data_filter"):
        die(
            f"Python 3.11.4 or newer is needed: NeMo unpacks checkpoints by tarfile's filters, and this is "
            f"{platform.python_version()}.",
            "Debian 12's own Python is older; take Python 3.12, for example by pyenv or uv.",
        )
    if importlib.util.find_spec("ensurepip") is None:
        die(f"Python's venv module is incomplete: apt-get install python{major_minor}-venv")
    soname = sysconfig.get_config_var("INSTSONAME") or ""
    libdir = sysconfig.get_config_var("LIBDIR") or ""
    if not soname.startswith("libpython") or ".so" not in soname:
        soname = f"libpython{major_minor}.so.1.0"
    for candidate in (str(Path(libdir) / soname), soname):
        try:
            ctypes.CDLL(candidate)
            break
        except OSError:
            continue
    else:
        die(
            f"the shared library {soname} is missing; Triton's Python backend embeds it.",
            f"On Debian or Ubuntu: apt-get install libpython{major_minor}",
            "A Python built from source needs --enable-shared.",
        )
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [tool for tool in ("cc", "c++", "make") if shutil.which(tool) is None]
    if missing or not headers.exists():
        what = ", ".join(missing + ([] if headers.exists() else ["Python.h"]))
        die(
            f"a C and C++ compiler, make and Python's headers are needed to build small wheels (missing: {what}).",
            f"On Debian or Ubuntu: apt-get install build-essential python{major_minor}-dev",
        )


def lock_file() -> Path:
    """The lock of this Python on this kind of processor."""
    return ROOT / "requirements" / f"cpu-{platform.machine()}-py{sys.version_info[0]}{sys.version_info[1]}.txt"


def stamp_text() -> str:
    """What the environment was made from; a change means that it is made again."""
    parts = [lock_file().read_bytes(), (ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest() + f" {platform.python_version()} {VENV}\n"


def run(title: str, *command: str, quiet: bool = False) -> bool:
    """Runs one step, telling what it is and how long it took."""
    sys.stdout.write(f"setup: {title} ...\n")
    sys.stdout.flush()
    start = time.monotonic()
    done = subprocess.run(command, capture_output=quiet, text=True, env={**os.environ, "VIRTUAL_ENV": str(VENV)})
    if done.returncode == 0:
        sys.stdout.write(f"setup:   done in {time.monotonic() - start:.0f} s\n")
    return done.returncode == 0


def install_torch(pip: list[str]) -> None:
    """Installs torch alone, preferring the CPU build, from the configured index or from PyTorch's own.

    The lock leaves torch out because the CPU build carries a local version (`+cpu`) that PyPI does not serve.
    """
    if run(f"torch {TORCH}, CPU build", *pip, "--no-deps", f"torch=={TORCH}+cpu", quiet=True):
        return
    if run(
        f"torch {TORCH}, CPU build, from PyTorch's own index (the configured one has none)",
        *pip, "--no-deps", "--extra-index-url", PYTORCH_CPU_INDEX, f"torch=={TORCH}+cpu", quiet=True,
    ):  # fmt: skip
        return
    if not run(f"torch {TORCH}, the index's default build (no CPU build found; several GB)", *pip, f"torch=={TORCH}"):
        die(f"torch {TORCH} could not be installed; the message above says why.")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--force", action="store_true", help="make the environment again from nothing")
    args = parser.parse_args()
    reexec_with_supported_python()
    if not lock_file().exists():
        die(f"there is no lock for {platform.machine()} and Python {platform.python_version()}: {lock_file()}")
    stamp = VENV / ".triton-voice-stamp"
    if not args.force and stamp.exists() and stamp.read_text() == stamp_text():
        return
    check_system()
    start = time.monotonic()
    python = str(VENV / "bin" / "python")
    stamp.unlink(missing_ok=True)
    clear = ["--clear"] if args.force or not Path(python).exists() else []
    if not run(f"virtual environment {VENV}", sys.executable, "-m", "venv", *clear, str(VENV)):
        die("the virtual environment could not be made; the message above says why.")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    if not run("the installer (uv)", *pip, UV):
        die("uv could not be installed; is the package index reachable?")
    install_torch(pip)
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--no-config", "--python", python, "--no-deps"]
    uv.append("--compile-bytecode")  # else each model's process compiles 260 packages when it starts for the first time
    if not sys.stderr.isatty():
        uv.append("--quiet")  # a terminal gets progress bars; a log would get a line per package
    if not run(f"{lock_file().name}: about 260 packages, 2 GB", *uv, "--requirement", str(lock_file())):
        die("not every locked package could be installed; the message above names it.")
    if not run("triton-voice itself", *uv, "--no-build-isolation", "--editable", str(ROOT)):
        die("the project itself could not be installed; the message above says why.")
    stamp.write_text(stamp_text())
    sys.stdout.write(f"setup: ready in {time.monotonic() - start:.0f} s: {VENV}\n")


if __name__ == "__main__":
    main()
