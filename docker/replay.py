"""Builds both images and starts them where there is no Docker, no GPU and no NVIDIA registry: the rehearsal of a build.

What stands in for NVIDIA's base image is a bare Debian with the tritonserver of the nvidia-pytriton wheel laid out as
NVIDIA has it; every step of both Dockerfiles then runs in it as it is, from the package index to the self-check. With
`--variant cpu` the server that results is started as the unprivileged user, asked by its own health check, and found by
the bot's image. What this does not show: NVIDIA's image, a processor other than this machine's, anything on a GPU.

    apt-get install buildah debootstrap                          # and root, for debootstrap
    .venv/bin/python docker/replay.py /var/tmp/replay --python ~/.pyenv/versions/3.12.8
    .venv/bin/python docker/replay.py /var/tmp/replay --python ~/.pyenv/versions/3.12.8 --variant cuda   # 25 GB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from triton_voice.server.locate import find_tritonserver
from triton_voice.server.process import free_port

ROOT = Path(__file__).resolve().parent.parent
DEBIAN, DEBIAN_PYTHON, MIRROR = "bookworm", "3.11", "http://deb.debian.org/debian"
PYTHON_LIBRARIES = "libbz2-1.0 libexpat1 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3 libuuid1 zlib1g"
READY_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def minor_of(python: Path | None) -> str:
    """The `3.12` of an installed Python; Debian's if None."""
    if python is None:
        return DEBIAN_PYTHON
    (program,) = [path for path in (python.expanduser() / "bin").iterdir() if path.name in ("python3.11", "python3.12")]
    return program.name.removeprefix("python")


class Replay:
    """One rehearsal: its folder, its images and its figures.

    Args:
        folder: Where images, caches and logs go; needs 12 GB, 25 GB with CUDA.
        variant: `cpu` or `cuda`.
        python: A Python 3.11 or 3.12 as `make altinstall` or pyenv lays it out; None takes Debian's. The bot's image is
            for 3.12 and is left out with another.
        find_links: Folder of wheels that this machine has beside its package index.
    """

    def __init__(self, folder: Path, variant: str, python: Path | None, find_links: Path | None):
        self.folder, self.variant, self.python, self.find_links = folder, variant, python, find_links
        self.with_bot = minor_of(python) == "3.12"
        self.figures: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/storage-run"\n'
        )
        policy = folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}
        self.policy = ["--signature-policy", str(policy)]

    def run(self, title: str, *command: str) -> None:
        """Runs one part, its output in a log, and notes how long it took.

        Raises:
            SystemExit: It failed; the end of its log is shown.
        """
        log = self.folder / f"{title.replace(' ', '-')}.log"
        print(f"{title} ... ({log})", flush=True)
        start = time.monotonic()
        with log.open("wb") as out:
            done = subprocess.run(command, env=self.environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        self.figures[f"{title}, s"] = round(time.monotonic() - start, 1)
        if done.returncode != 0:
            sys.exit(f"{title} failed:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]))

    def build(self, image: str, context: Path, dockerfile: Path, **arguments: str) -> str:
        """Builds one image and returns its name."""
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        volume = ["--volume", f"{self.find_links}:{self.find_links}:ro"] if self.find_links else []
        self.run(
            f"{image} image",
            "buildah", "build", *self.policy, "--isolation", "chroot", "--format", "docker", "--layers",
            *volume, *given, "--tag", f"localhost/replay-{image}", "--file", str(dockerfile), str(context),
        )  # fmt: skip
        return f"localhost/replay-{image}"

    def debian(self) -> Path:
        """Returns a bare Debian as an archive; made once."""
        archive = self.folder / "rootfs.tar"
        if not archive.exists():
            unpacked = self.folder / "rootfs"
            shutil.rmtree(unpacked, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", DEBIAN, str(unpacked), MIRROR]
            self.run("debootstrap", *command)
            self.run("archive", "tar", "-C", str(unpacked), "-cf", str(archive), ".")
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
        if self.with_bot:
            self.build("bot", ROOT, dockerfiles / "bot.Dockerfile", PYTHON_IMAGE=base)

    @contextmanager
    def container(self, image: str, environment: dict[str, str], *command: str) -> Iterator[Sequence[str]]:
        """Starts a container; yields the words before a command that shall run in it too, and stops it at the end.

        Raises:
            subprocess.TimeoutExpired: It did not end by itself after SIGTERM.
        """
        listed = subprocess.run(
            ["buildah", "from", *self.policy, f"localhost/replay-{image}"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        name = listed.stdout.strip()
        variables = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
        within = ["buildah", "run", "--isolation", "chroot", "--user", "1000:1000", *variables, name, "--"]
        within += ["/bin/bash", "-c", 'exec "$@"', "bash"]  # buildah itself would look the command up on this machine
        with (self.folder / f"{image}-run.log").open("wb") as log:
            process = subprocess.Popen([*within, *command], env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield within
            finally:
                start = time.monotonic()
                subprocess.run([*within, "python", "-c", STOP, command[1]], env=self.environment, check=True)
                try:
                    process.wait(STOP_TIMEOUT_S)
                    self.figures[f"{image} stops, s"] = round(time.monotonic() - start, 1)
                finally:
                    process.kill()
                    subprocess.run(["buildah", "rm", name], env=self.environment, stdout=subprocess.DEVNULL)

    def wait_for(self, what: str, within: Sequence[str], script: str, *options: str) -> None:
        """Asks a health check until it is content.

        Raises:
            SystemExit: It never was.
        """
        start = time.monotonic()
        while True:
            done = subprocess.run(
                [*within, "python", f"docker/{script}", *options], env=self.environment, capture_output=True, text=True
            )
            if done.returncode == 0:
                break
            if time.monotonic() - start > READY_TIMEOUT_S:
                sys.exit(f"{what}: {done.stdout.strip()} {done.stderr.strip()}; logs are in {self.folder}")
            time.sleep(2)
        self.figures[f"{what}, s"] = round(time.monotonic() - start, 1)
        print(f"{what}: {done.stdout.strip()}", flush=True)

    def start(self) -> None:
        """Starts the server, and the bot that finds it."""
        ports = {f"TRITON_VOICE_{name}_PORT": str(free_port()) for name in ("GRPC", "HTTP", "METRICS")}
        with self.container("server", {**ports, "TRITON_VOICE_HOST": "127.0.0.1"}, "triton-voice", "serve") as server:
            self.wait_for("models ready", server, "healthcheck.py")
            self.wait_for("models answer", server, "healthcheck.py", "--answer")
            if self.with_bot:
                bot = {
                    "TRITON_VOICE_BOT_SERVER": f"127.0.0.1:{ports['TRITON_VOICE_GRPC_PORT']}",
                    "TRITON_VOICE_BOT_PORT": str(free_port()),
                }
                with self.container("bot", bot, "triton-voice", "bot") as within:
                    self.wait_for("bot ready", within, "bot_healthcheck.py")
            self.wait_for("server drained", server, "drain.py", "--settle", "0")

    def sizes(self) -> None:
        """Notes the images' sizes."""
        listed = subprocess.run(["buildah", "images", "--json"], env=self.environment, capture_output=True, text=True)
        for image in json.loads(listed.stdout):
            for name in image.get("names") or []:
                self.figures[f"{name.split('/')[1].split(':')[0]}, size"] = image["size"]


STOP = """
import os, signal, sys
from pathlib import Path
for process in Path("/proc").glob("[0-9]*"):
    try:
        words = (process / "cmdline").read_bytes().split(b"\\0")
    except OSError:  # it has just ended
        continue
    if words[1:3] == [b"/opt/venv/bin/triton-voice", sys.argv[1].encode()] and process.stat().st_uid == os.getuid():
        os.kill(int(process.name), signal.SIGTERM)
"""
"""Sends SIGTERM to a container's command: chroot isolation has no first process to signal."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--python", type=Path, help="A Python to put into the base image; the real one has 3.12.")
    parser.add_argument("--find-links", type=Path, help="A folder of wheels beside the package index.")
    arguments = parser.parse_args()
    if missing := [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]:
        sys.exit(f"{', '.join(missing)} missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("debootstrap needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    replay = Replay(arguments.folder.resolve(), arguments.variant, arguments.python, arguments.find_links)
    replay.images()
    if arguments.variant == "cpu":
        replay.start()
    replay.sizes()
    print(json.dumps(replay.figures, indent=2))


if __name__ == "__main__":
    main()
