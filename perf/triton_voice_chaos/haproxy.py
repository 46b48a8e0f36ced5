"""One HAProxy on this machine, with the configuration that docker/balancing offers to users."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from triton_voice.paths import project_root
from triton_voice.server import MODELS
from triton_voice.server.process import free_port
from triton_voice_chaos.subject import Subject

CONFIGURATION = "docker/balancing/haproxy.cfg"
SERVERS = ("a", "b")
UP_TIMEOUT_S = 120.0
POLL_S = 0.1


class HaproxyMissing(RuntimeError):
    """There is no haproxy here."""


class Haproxy:
    """One HAProxy process on the loopback interface.

    Args:
        configuration: Text of its configuration file.
        bind: `host:port` that it listens on for clients.
        admin: Path of its administration socket.
        environment: Variables that the configuration reads.

    Raises:
        HaproxyMissing: It is not installed.
    """

    def __init__(self, configuration: str, bind: str, admin: Path, environment: Mapping[str, str]):
        if (binary := find_haproxy()) is None:
            raise HaproxyMissing("haproxy is not installed (Debian: apt-get install haproxy)")
        self.url = bind
        self._admin = admin
        self._file = admin.with_suffix(".cfg")
        self._file.write_text(configuration)
        self._command = [binary, "-db", "-f", str(self._file)]
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Haproxy:
        """Starts it and waits until it takes connections."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + UP_TIMEOUT_S
        while not self._admin.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("haproxy did not start")
            time.sleep(POLL_S)
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def tell(self, command: str) -> str:
        """Sends a command to its administration socket and returns the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._admin))
            connection.sendall(command.encode() + b"\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        return answer.decode()

    def servers(self) -> dict[str, dict[str, str]]:
        """Returns HAProxy's statistics of each server, by their CSV names: `status`, `scur`, `stot`, ..."""
        header, *lines = self.tell("show stat").strip().splitlines()
        names = header.removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines if line]
        return {row["svname"]: row for row in rows if row["pxname"] == "triton" and row["svname"] in SERVERS}

    def wait_for(self, server: str, what: Callable[[dict[str, str]], bool], timeout_s: float) -> bool:
        """Waits until a server's statistics are so."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if what(self.servers()[server]):
                return True
            time.sleep(POLL_S)
        return False


def find_haproxy() -> str | None:
    """Returns the path of haproxy, which Debian puts where a user's PATH does not look; None if there is none."""
    return shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def users_configuration(models: tuple[str, ...]) -> str:
    """Returns the configuration of docker/balancing without the checks of models that are not loaded here."""
    text = (project_root() / CONFIGURATION).read_text()
    for model in set(MODELS) - set(models):
        check = (
            rf"    http-check connect\n    http-check send [^\n]*/{model}/ready[^\n]*\n    http-check expect [^\n]*\n"
        )
        text, found = re.subn(check, "", text)
        assert found == 1, f"{CONFIGURATION} has no check of {model}"
    return text


@contextlib.contextmanager
def balanced(subjects: Mapping[str, Subject], models: tuple[str, ...]) -> Iterator[Haproxy]:
    """Puts HAProxy with the users' configuration before two servers, and waits until it calls both up."""
    with tempfile.TemporaryDirectory(prefix="triton-voice-haproxy-") as folder:
        bind = f"127.0.0.1:{free_port()}"
        admin = Path(folder) / "admin.sock"
        environment = {
            "VOICE_BIND": bind,
            "VOICE_METRICS_BIND": f"127.0.0.1:{free_port()}",
            "VOICE_ADMIN_SOCKET": str(admin),
            **{f"TRITON_{name.upper()}": subject.url for name, subject in subjects.items()},
            **{f"TRITON_{name.upper()}_HTTP": str(subject.ports.http) for name, subject in subjects.items()},
        }
        with Haproxy(users_configuration(models), bind, admin, environment) as haproxy:
            for name in subjects:
                if not haproxy.wait_for(name, lambda row: row["status"].startswith("UP"), UP_TIMEOUT_S):
                    raise RuntimeError(f"haproxy does not call server {name} up")
            yield haproxy
