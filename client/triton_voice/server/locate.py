"""Finds a tritonserver: the container's, one on PATH, or the one inside the nvidia-pytriton wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
BINARY_VARIABLE = "TRITON_VOICE_TRITONSERVER"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver and what it needs to run models of this Python.

    Attributes:
        binary: The server's executable.
        python_backend: Folder with `libtriton_python.so` and `triton_python_backend_utils.py`.
        stub: The Python backend's stub; its Python must be the running one's minor version.
        library_dirs: Folders that go to the front of `LD_LIBRARY_PATH`, the running Python's own first: the stub
            embeds libpython, and a distribution's library of the same minor version crashes on this Python's modules.
        origin: Where it was found, in words for a person.
    """

    binary: Path
    python_backend: Path
    stub: Path
    library_dirs: tuple[Path, ...]
    origin: str


def _python_library_dir() -> Path | None:
    """The folder of the running Python's shared library, if it has one of its own."""
    libdir, soname = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if libdir and soname and os.path.exists(os.path.join(libdir, soname)):  # False, too, where we may not look
        return Path(libdir)
    return None


def _from_installation(binary: Path, origin: str) -> TritonInstall | None:
    """A tritonserver laid out as NVIDIA's container has it: `bin/` and `backends/` side by side."""
    backend = binary.resolve().parent.parent / "backends" / "python"
    if not (backend / "libtriton_python.so").exists():
        return None
    own = _python_library_dir()
    return TritonInstall(binary, backend, backend / STUB, (own,) if own else (), origin)


def _from_wheel() -> TritonInstall | None:
    """The server inside the nvidia-pytriton wheel, which has one stub for each minor version of Python."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    server = package / "tritonserver"
    stub = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / STUB
    if not stub.exists():
        return None
    own = _python_library_dir()
    libraries = package.parent / "nvidia_pytriton.libs"  # without it the stub lacks its libcudart
    return TritonInstall(
        binary=server / "bin" / "tritonserver",
        python_backend=server / "backends" / "python",
        stub=stub,
        library_dirs=tuple(d for d in (own, libraries) if d),
        origin="the nvidia-pytriton wheel",
    )


def find_tritonserver() -> TritonInstall:
    """Finds the tritonserver to use.

    Returns:
        The first of: `TRITON_VOICE_TRITONSERVER`, NVIDIA's container, PATH, the nvidia-pytriton wheel.

    Raises:
        FileNotFoundError: There is none; the message says how to get one.
    """
    if named := os.environ.get(BINARY_VARIABLE):
        install = _from_installation(Path(named), f"{BINARY_VARIABLE}={named}")
        if install is None:
            raise FileNotFoundError(f"{BINARY_VARIABLE}={named} has no backends/python folder beside its bin folder")
        return install
    if CONTAINER_BINARY.exists() and (install := _from_installation(CONTAINER_BINARY, "NVIDIA's container")):
        return install
    if (on_path := shutil.which("tritonserver")) and (install := _from_installation(Path(on_path), "PATH")):
        return install
    if install := _from_wheel():
        return install
    raise FileNotFoundError(
        "no tritonserver found: not in /opt/tritonserver, not on PATH, and the nvidia-pytriton wheel has no stub for "
        f"Python {sys.version_info[0]}.{sys.version_info[1]} (pip install nvidia-pytriton, or use Triton's container)"
    )
