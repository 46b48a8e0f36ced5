"""Checks that this environment is what was locked and that it can serve this GPU; the image's build runs it.

A build machine has no GPU, and none is needed: the three compilers that write code for the GPU while the server runs
(NVRTC for PyTorch, ptxas for Triton's kernels and torch.compile, nvcc for FlashInfer) each compile a kernel for
`--arch`. What fails there is what people met on a DGX Spark: "sm_121a is not defined", CUDA error 222, a PyTorch
without code for it. `--device` is for the machine itself: it runs those kernels on its GPU.

    python docker/self_check.py --arch 12.1a              an image with CUDA, for a Spark
    python docker/self_check.py --variant cpu             an image or a checkout without
    python docker/self_check.py --arch 12.1a --device     in the running container
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from triton_voice.paths import project_root
from triton_voice.server.locate import TritonInstall, find_tritonserver

DRIVER_CUDA = (13, 0)
"""CUDA version that the oldest supported driver (580) knows. Code of a newer compiler may not load: CUDA error 222."""
DRIVER_LIBRARIES = ("libcuda.so", "libnvidia-ml.so")
"""These come with the driver when the container is started, so a build must do without."""
CUDA_LIBRARIES = ("libcublas", "libcudart", "libcudnn", "libnccl", "libnvrtc")
IMPORTS = ("nemo.collections.asr", "nemo.collections.tts", "vllm.v1.engine.async_llm", "triton_voice.cli.app")
RERUN = "TRITON_VOICE_SELF_CHECK"
KERNEL = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }'


class CheckFailed(Exception):
    """What is wrong, in words for the person who can fix it."""


def require(condition: object, message: str) -> None:
    """Raises `CheckFailed` with the message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def capability(arch: str) -> tuple[int, int]:
    """Compute capability of an architecture as in TORCH_CUDA_ARCH_LIST: `12.1a` is (12, 1)."""
    found = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", arch)
    if found is None:
        raise CheckFailed(f"{arch!r} is no compute capability; a DGX Spark's is 12.1a, an H200's 9.0a")
    return int(found[1]), int(found[2])


def covers(flags: str, wanted: tuple[int, int]) -> bool:
    """Tells whether code built for `flags` runs on a GPU.

    Machine code runs on its own capability and on later ones of the same major number (sm_120 on sm_121), PTX on any
    later one; code with a letter (sm_120a) on its own or, with f, its family.

    Args:
        flags: PyTorch's list, e.g. `sm_90 sm_120 compute_120`.
        wanted: The GPU's compute capability.
    """
    for kind, digits, letter in re.findall(r"(sm|compute)_(\d+)([af]?)", flags):
        built = int(digits[:-1]), int(digits[-1])
        if letter == "a":
            fits = built == wanted
        elif kind == "sm" or letter == "f":
            fits = built[0] == wanted[0] and built[1] <= wanted[1]
        else:
            fits = built <= wanted
        if fits:
            return True
    return False


def lock_of(variant: str) -> Path:
    """The lock that this environment must match."""
    name = f"{variant}-{platform.machine()}-py{sys.version_info[0]}{sys.version_info[1]}.txt"
    for folder in ("docker/locks", "requirements"):
        if (path := project_root() / folder / name).exists():
            return path
    raise CheckFailed(f"there is no lock {name} for this processor and Python")


def check_versions(variant: str) -> str:
    """Every locked package is here at its version."""
    lock = lock_of(variant)
    pins = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    wrong = []
    for package, version in pins.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != version:
            wrong.append(f"{package} {found} instead of {version}")
    require(not wrong, f"{len(wrong)} of {len(pins)} packages differ from {lock.name}: {', '.join(wrong[:5])}")
    return f"{len(pins)} packages as in {lock.name}"


def check_triton() -> str:
    """Tritonserver and the stub of its Python backend are here, for this Python, with every library they link to."""
    install = find_tritonserver()
    for program in (install.binary, install.stub, install.python_backend / "libtriton_python.so"):
        missing = missing_libraries(program, install)
        require(not missing, f"{program} lacks {', '.join(missing)}")
    own = f"libpython{sys.version_info[0]}.{sys.version_info[1]}"
    linked = subprocess.run(["ldd", str(install.stub)], capture_output=True, text=True, env=environment(install)).stdout
    require(own in linked, f"the stub {install.stub} is not for {own}: take a base image that is")
    return f"{install.binary} ({install.origin}), its stub for {own}"


def check_project() -> str:
    """The parts of the project that the server reads are here."""
    root = project_root()
    parts = [f"model_repository/{model}/config.pbtxt" for model in ("nemotron", "parakeet", "magpie")]
    for part in (*parts, "backends/vllm/model.py"):
        require((root / part).is_file(), f"{root / part} is missing")
    return str(root)


def missing_libraries(program: Path, install: TritonInstall) -> list[str]:
    """The shared libraries that a program or library links to and that are not here; the driver's do not count."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, env=environment(install))
    require(done.returncode == 0, f"{program}: {done.stderr.strip()}")
    missing = re.findall(r"(\S+) => not found", done.stdout)
    return [name for name in missing if not name.startswith(DRIVER_LIBRARIES)]


def check_vllm() -> str:
    """Whatever vLLM's compiled code links to is here: without it vLLM warns, goes on, and fails at its first kernel."""
    packages = Path(sysconfig.get_path("purelib"))
    provided = {path.name for path in packages.rglob("*.so*")}  # torch has loaded its own by then
    install = find_tritonserver()
    compiled = sorted((packages / "vllm").rglob("*.so"))
    require(compiled, f"{packages}/vllm has no compiled code")
    lacks = {name for path in compiled for name in missing_libraries(path, install)} - provided
    require(not lacks, f"vLLM's compiled code lacks {', '.join(sorted(lacks))}")
    return f"{len(compiled)} compiled libraries find what they link to"


def check_imports() -> str:
    """NeMo, vLLM and the rest import in one process."""
    seconds = []
    for name in IMPORTS:
        start = time.monotonic()
        try:
            importlib.import_module(name)
        except Exception as error:
            raise CheckFailed(f"import {name}: {type(error).__name__}: {error}") from error
        seconds.append(f"{name} {time.monotonic() - start:.0f} s")
    # Debian 12's own Python 3.11.2 is too old for this.
    require(hasattr(tarfile, "data_filter"), "NeMo unpacks checkpoints by tarfile's filters: Python 3.11.4 or newer")
    import numpy

    require(int(numpy.__version__.split(".")[0]) < 2, f"numpy {numpy.__version__}: Triton's outputs arrive empty")
    return ", ".join(seconds)


def loaded_libraries() -> set[Path]:
    """The shared libraries of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line}


def check_torch_cpu() -> str:
    """PyTorch is a CPU build."""
    import torch

    require(torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build")
    return torch.__version__


def check_torch(arch: str) -> str:
    """PyTorch is a build for the driver's CUDA, with code for the GPU, and loads the locked libraries."""
    import torch

    built = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    require(
        built[0] == DRIVER_CUDA[0] and built <= DRIVER_CUDA,
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, the driver knows {text(DRIVER_CUDA)}",
    )
    flags = torch._C._cuda_getArchFlags()  # torch.cuda.get_arch_list() is empty without a GPU
    require(covers(flags or "", capability(arch)), f"torch has code for {flags}, none of which runs on {arch}")
    cuda = [path for path in loaded_libraries() if path.name.startswith(CUDA_LIBRARIES)]
    strangers = [str(path) for path in cuda if not path.is_relative_to(sys.prefix)]
    require(not strangers, f"torch took the base image's libraries instead of the locked ones: {', '.join(strangers)}")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}, {flags}"


def check_nvrtc(arch: str) -> str:
    """PyTorch's runtime compiler, which writes its fused and complex operations, knows the GPU."""
    importlib.import_module("torch")
    path = next((path for path in loaded_libraries() if path.name.startswith("libnvrtc.so")), None)
    require(path, "torch loads no libnvrtc")
    nvrtc = ctypes.CDLL(str(path))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    version = major.value, minor.value
    require(version <= DRIVER_CUDA, f"NVRTC is {text(version)}, the driver knows {text(DRIVER_CUDA)}: CUDA error 222")
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), KERNEL.encode(), b"twice.cu", 0, None, None)
    option = f"--gpu-architecture=sm_{machine(arch)}".encode()
    failed = nvrtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(option))
    require(not failed, f"NVRTC {text(version)} does not know sm_{machine(arch)} (error {failed})")
    return f"{text(version)} compiles for sm_{machine(arch)}"


def check_triton_kernels(arch: str) -> str:
    """Triton, the kernel language of vLLM, torch.compile and our engines, compiles by a ptxas that knows the GPU."""
    import triton
    import triton.language as tl
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    @triton.jit
    def twice(x, n, block: tl.constexpr):
        at = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)

    major, minor = capability(arch)
    ptxas = knobs.nvidia.ptxas_blackwell if major >= 10 else knobs.nvidia.ptxas
    release = tuple(int(part) for part in ptxas.version.split("."))
    require(release <= DRIVER_CUDA, f"{ptxas.path} is of CUDA {ptxas.version}, the driver knows {text(DRIVER_CUDA)}")
    source = ASTSource(fn=twice, signature={"x": "*fp32", "n": "i32", "block": "constexpr"}, constexprs={"block": 64})
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32))
    except Exception as error:
        raise CheckFailed(f"a Triton kernel does not compile for {arch}: {error}") from error
    target = re.search(r"^\.target (\S+)", compiled.asm["ptx"], re.MULTILINE)
    return f"{triton.__version__} with ptxas {ptxas.version} compiles for {target[1] if target else arch}"


def check_nvcc(arch: str) -> str:
    """The C++ compiler of CUDA, which FlashInfer calls, compiles and links for the GPU."""
    home = os.environ.get("CUDA_HOME")
    require(home, "CUDA_HOME is not set")
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch, "twice.cu"), Path(scratch, "twice.so")
        source.write_text(KERNEL)
        command = [f"{home}/bin/nvcc", f"-arch=sm_{machine(arch)}", "-shared", "-Xcompiler", "-fPIC", f"-L{home}/lib64"]
        done = subprocess.run([*command, "-lcudart", "-o", str(library), str(source)], capture_output=True, text=True)
        require(done.returncode == 0, f"nvcc does not compile for sm_{machine(arch)}: {done.stderr.strip()[-400:]}")
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    return f"{(re.search(r'V[0-9.]+', version) or ['?'])[0]} compiles and links for sm_{machine(arch)}"


def check_device(arch: str) -> str:
    """The GPU of this machine is the expected one and runs what the three compilers write."""
    import torch

    require(torch.cuda.is_available(), "no GPU: start the container with --gpus all (or its compose file)")
    name, found = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    require(found == capability(arch), f"{name} has compute capability {text(found)}, this image is for {arch}")
    x = torch.randn(256, 256, device="cuda")
    require(torch.allclose((x @ x).cpu(), x.cpu() @ x.cpu(), atol=1e-2), "a matrix product differs from the CPU's")
    spectrum = torch.view_as_complex(torch.randn(64, 2, device="cuda"))
    spectrum.abs().sum().item()  # complex numbers go through NVRTC
    torch.special.bessel_j1(x).sum().item()  # and so does this
    fused = torch.compile(lambda value: torch.sigmoid(value) * 2)  # goes through Triton's ptxas
    require(torch.allclose(fused(x), torch.sigmoid(x) * 2, atol=1e-5), "torch.compile gives another result")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return f"{name}, {text(found)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free; products, NVRTC and Triton run"


def text(version: tuple[int, int]) -> str:
    """`(13, 0)` as `13.0`."""
    return ".".join(map(str, version))


def machine(arch: str) -> str:
    """`12.1a` as `121a`."""
    capability(arch)
    return arch.removesuffix("+PTX").replace(".", "")


def environment(install: TritonInstall) -> dict[str, str]:
    """The environment with the library path that the models' processes get."""
    path = [str(folder) for folder in install.library_dirs] + [os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, path)), RERUN: "1"}


def run(checks: dict[str, Callable[[], str]]) -> int:
    """Runs the checks, prints a line for each, and returns how many failed."""
    failed = 0
    for name, check in checks.items():
        try:
            print(f"ok    {name:15} {check()}", flush=True)
        except (CheckFailed, FileNotFoundError) as error:
            failed += 1
            print(f"FAIL  {name:15} {error}", flush=True)
    return failed


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=("cuda", "cpu"), default="cuda")
    arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or "12.1a"
    parser.add_argument("--arch", default=arch, help="The GPU's, as in TORCH_CUDA_ARCH_LIST.")
    parser.add_argument("--device", action="store_true", help="Run kernels on this machine's GPU too.")
    arguments = parser.parse_args()
    variant, arch = arguments.variant, arguments.arch.replace(";", " ").split()[0]
    if RERUN not in os.environ:
        # Once more, with the libraries that a model's process finds first: they decide which cuDNN is loaded.
        try:
            install = find_tritonserver()
        except FileNotFoundError as error:
            sys.exit(f"FAIL  tritonserver    {error}")
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(install))
    checks: dict[str, Callable[[], str]] = {
        "versions": lambda: check_versions(variant),
        "tritonserver": check_triton,
        "project": check_project,
        "vLLM": check_vllm,
    }
    if variant == "cpu":
        checks["torch"] = check_torch_cpu
    else:
        checks |= {
            "torch": lambda: check_torch(arch),
            "NVRTC": lambda: check_nvrtc(arch),
            "Triton kernels": lambda: check_triton_kernels(arch),
            "nvcc": lambda: check_nvcc(arch),
        }
        if arguments.device:
            checks["GPU"] = lambda: check_device(arch)
    checks["imports"] = check_imports
    print(f"{platform.machine()}, Python {platform.python_version()} in {sys.prefix}, variant {variant}")
    if failed := run(checks):
        sys.exit(f"{failed} of {len(checks)} checks failed")


if __name__ == "__main__":
    main()
