"""Builds both images and runs them by the compose file where there is no Docker, no GPU and no NVIDIA registry.

What stands in for NVIDIA's base image is a bare Debian with the tritonserver of the nvidia-pytriton wheel laid out as
NVIDIA has it; every step of both Dockerfiles then runs in it as it is, from the package index to the self-check, and
the self-check must fail once a version is wrong. With `--variant cpu` podman then runs compose.yaml with
compose.cpu.yaml (replay_run.py says what is asked of it). What this does not show: NVIDIA's image, a processor other
than this machine's, anything on a GPU.

    apt-get install podman runc netavark aardvark-dns catatonit debootstrap          # and root, for debootstrap
    python3 -m venv /var/tmp/compose && /var/tmp/compose/bin/pip install podman-compose
    PATH=$PATH:/var/tmp/compose/bin .venv/bin/python docker/replay.py /var/tmp/replay --python ~/.pyenv/versions/3.12.8
    .venv/bin/python docker/replay.py /var/tmp/replay --python ~/.pyenv/versions/3.12.8 --variant cuda   # 25 GB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from replay_run import Rehearsal

from triton_voice.server.locate import find_tritonserver

ROOT = Path(__file__).resolve().parent.parent
DEBIAN, DEBIAN_PYTHON, MIRROR = "bookworm", "3.11", "http://deb.debian.org/debian"
PYTHON_LIBRARIES = "libbz2-1.0 libexpat1 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3 libuuid1 zlib1g"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
MAX_PROCESSES = 32768
"""What podman itself keeps to."""
WRONG_PACKAGE = "einops"
"""A small package whose version is changed to see the self-check fail."""


def minor_of(python: Path | None) -> str:
    """The `3.12` of an installed Python; Debian's if None."""
    if python is None:
        return DEBIAN_PYTHON
    (program,) = [path for path in (python.expanduser() / "bin").iterdir() if path.name in ("python3.11", "python3.12")]
    return program.name.removeprefix("python")


class Replay:
    """The build of both images: its folder, its images and its figures.

    Args:
        folder: Where images, caches and logs go; needs 12 GB, 25 GB with CUDA.
        variant: `cpu` or `cuda`.
        python: A Python as `make altinstall` or pyenv lays it out, for the server's base image: 3.11.4 or newer, or
            3.12; None takes Debian's, which builds an image that cannot serve.
        bot_python: The same for the bot's, which must be a 3.12; None leaves the bot out.
        find_links: Folder of wheels that this machine has beside its package index.
    """

    def __init__(
        self, folder: Path, variant: str, python: Path | None, bot_python: Path | None, find_links: Path | None
    ):
        self.folder, self.variant, self.find_links = folder, variant, find_links
        self.python, self.bot_python = python, bot_python
        self.figures: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        storage, engine = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/storage-run"\n'
        )
        files, processes = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_NPROC)[1]
        processes = MAX_PROCESSES if processes == resource.RLIM_INFINITY else min(processes, MAX_PROCESSES)
        # Limits as they are here: where root may not raise them, podman's own defaults would end every start.
        engine.write_text(
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(engine),
        }

    def log_of(self, title: str) -> Path:
        """The file that one part writes to."""
        return self.folder / f"{title.replace(' ', '-')}.log"

    def attempt(self, title: str, *command: str) -> int:
        """Runs one part, its output in a log, notes how long it took, and returns its exit code."""
        log = self.log_of(title)
        print(f"{title} ... ({log})", flush=True)
        start = time.monotonic()
        with log.open("wb") as out:
            done = subprocess.run(command, env=self.environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        self.figures[f"{title}, s"] = round(time.monotonic() - start, 1)
        return done.returncode

    def run(self, title: str, *command: str) -> None:
        """Runs one part that must not fail.

        Raises:
            SystemExit: It failed; the end of its log is shown.
        """
        if self.attempt(title, *command) != 0:
            lines = self.log_of(title).read_text(errors="replace").splitlines()
            sys.exit(f"{title} failed:\n" + "\n".join(lines[-25:]))

    def building(self, image: str, context: Path, dockerfile: Path, **arguments: str) -> tuple[str, ...]:
        """The command that builds one image."""
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        volume = ["--volume", f"{self.find_links}:{self.find_links}:ro"] if self.find_links else []
        policy = ["--signature-policy", str(self.folder / "policy.json")]
        return (
            "podman", "build", *policy, "--isolation", "chroot", "--format", "docker", "--layers", "--pull=never",
            *volume, *given, "--tag", image_name(image), "--file", str(dockerfile), str(context),
        )  # fmt: skip

    def build(self, image: str, context: Path, dockerfile: Path, **arguments: str) -> str:
        """Builds one image and returns its name."""
        self.run(f"{image} image", *self.building(image, context, dockerfile, **arguments))
        return image_name(image)

    def debian(self) -> Path:
        """Returns a bare Debian as an archive; made once."""
        archive = self.folder / "rootfs.tar"
        if not archive.exists():
            unpacked = self.folder / "rootfs"
            shutil.rmtree(unpacked, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", DEBIAN, str(unpacked), MIRROR]
            self.run("debootstrap", *command)
            self.run("archive", "tar", "-C", str(unpacked), "-cf", str(archive), ".")
            shutil.rmtree(unpacked)
        return archive

    def stand_in(self, name: str, python: Path | None) -> str:
        """Makes a base image: Debian, tritonserver where NVIDIA has it, NVIDIA's user, perhaps a Python.

        Returns:
            The image.
        """
        context = self.folder / name
        shutil.rmtree(context, ignore_errors=True)
        opt = context / "opt"
        (opt / "tritonserver" / "backends").mkdir(parents=True)
        (context / "rootfs.tar").hardlink_to(self.debian())
        install = find_tritonserver()
        shutil.copytree(install.binary.parent, opt / "tritonserver" / "bin")
        python_backend = opt / "tritonserver" / "backends" / "python"
        shutil.copytree(install.python_backend, python_backend)
        minor = minor_of(python)
        shutil.copy(install.stub.parent.parent / minor / install.stub.name, python_backend)
        shutil.copytree(install.library_dirs[-1], opt / "libraries")
        shutil.copy(CERTIFICATES, context / "ca.crt")  # this machine's, which may include its own proxy's
        steps = [
            "FROM scratch",
            "ADD rootfs.tar /",
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            f"COPY ca.crt {CERTIFICATES}",
            f"ENV SSL_CERT_FILE={CERTIFICATES} PIP_CERT={CERTIFICATES}",
            "COPY opt /opt",
            "RUN echo /opt/libraries > /etc/ld.so.conf.d/zz-tritonserver.conf && ldconfig "
            "&& useradd --create-home --uid 1000 triton-server",
        ]
        if python:
            ignored = shutil.ignore_patterns("site-packages", "test", "__pycache__")
            shutil.copytree(python.expanduser(), context / "python", symlinks=True, ignore=ignored)
            for built in context.glob(f"python/lib/python{minor}/_sysconfigdata*.py"):
                built.write_text(built.read_text().replace(str(python.expanduser().resolve()), "/usr/local"))
            steps += [
                f"RUN apt-get update && apt-get install -y --no-install-recommends {PYTHON_LIBRARIES}",
                "COPY python /usr/local",
                f"RUN mkdir -p /usr/local/lib/python{minor}/site-packages && ldconfig",
            ]
        (context / "Dockerfile").write_text("\n".join(steps) + "\n")
        return self.build(name, context, context / "Dockerfile")

    def images(self) -> None:
        """Builds the two images on their stand-ins."""
        mirror = {}
        if self.find_links:
            mirror = {"UV_FIND_LINKS": str(self.find_links), "TORCH_CPU_WHEELS": str(self.find_links)}
        base = self.stand_in("base", self.python)
        dockerfiles = ROOT / "docker"
        self.build("server", ROOT, dockerfiles / "Dockerfile", TRITON_IMAGE=base, VARIANT=self.variant, **mirror)
        if self.bot_python:
            bot_base = base if minor_of(self.python) == "3.12" else self.stand_in("bot-base", self.bot_python)
            self.build("bot", ROOT, dockerfiles / "bot.Dockerfile", PYTHON_IMAGE=bot_base)

    def wrong_version(self) -> None:
        """Takes the self-check's step of the Dockerfile once more, with a package that says another version.

        Raises:
            SystemExit: The build did not fail, or for another reason.
        """
        text = (ROOT / "docker" / "Dockerfile").read_text()
        steps = re.findall(r"^RUN (?:.*\\\n)*.*", text, re.MULTILINE)
        (step,) = [found for found in steps if "self_check.py" in found]
        context = self.folder / "wrong"
        context.mkdir(exist_ok=True)
        metadata = f"/opt/venv/lib/python3.*/site-packages/{WRONG_PACKAGE}-*.dist-info/METADATA"
        (context / "Dockerfile").write_text(
            f"FROM {image_name('server')}\nUSER 0\nARG VARIANT\n"
            f"RUN sed -i 's/^Version: .*/Version: 0.0.1/' {metadata}\nUSER 1000:1000\n{step}\n"
        )
        title = "server image with a wrong version"
        built = self.building("wrong", context, context / "Dockerfile", VARIANT=self.variant)
        failed = self.attempt(title, *built) != 0
        found = re.search(rf"FAIL .*{WRONG_PACKAGE} 0\.0\.1 instead of .*", self.log_of(title).read_text())
        if not failed or found is None:
            sys.exit(f"the self-check let a wrong version of {WRONG_PACKAGE} pass: {self.log_of(title)}")
        print(f"the build fails, as it should: {found[0]}", flush=True)

    def sizes(self) -> None:
        """Notes the images' sizes, in bytes."""
        command = ["podman", "images", "--format", "json"]
        listed = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        for image in json.loads(listed.stdout):
            for name in image.get("Names") or []:
                self.figures[f"{name.split('/')[1].split(':')[0]}, bytes"] = image["Size"]


def image_name(image: str) -> str:
    """The name of an image of this rehearsal."""
    return f"localhost/replay-{image}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--python", type=Path, help="A Python to put into the base image; the real one has 3.12.")
    parser.add_argument("--bot-python", type=Path, help="A Python 3.12 for the bot's. Default: --python, if it is one.")
    parser.add_argument("--find-links", type=Path, help="A folder of wheels beside the package index.")
    parser.add_argument("--only-run", action="store_true", help="The images are there: build none.")
    arguments = parser.parse_args()
    tools = ["podman", "runc", "debootstrap", *(["podman-compose"] if arguments.variant == "cpu" else [])]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        sys.exit(f"{', '.join(missing)} missing; how to get them is written at the top of {Path(__file__).name}")
    if os.geteuid() != 0:
        sys.exit("debootstrap needs root")
    bot_python = arguments.bot_python or (arguments.python if minor_of(arguments.python) == "3.12" else None)
    folder = arguments.folder.resolve()
    replay = Replay(folder, arguments.variant, arguments.python, bot_python, arguments.find_links)
    if not arguments.only_run:
        replay.images()
        replay.wrong_version()
    if arguments.variant == "cpu":
        images = {name: image_name(name) for name in ("server", *(["bot"] if bot_python else []))}
        replay.figures |= Rehearsal(folder, images, replay.environment).run()
    replay.sizes()
    print(json.dumps(replay.figures, indent=2))


if __name__ == "__main__":
    main()
