"""Runs the images that replay.py built as an operator would: by compose.yaml, without privileges, and asks them.

A question is spoken to the ports that the compose file publishes, and the health check is followed from the first
start to the last stop: models that load, that serve, one that is killed, one that is called away. Then the pod of
kubernetes/server.yaml starts with nothing writable but its volumes. The engine is podman (podman-compose reads the
compose file), because Debian has it; nothing here needs a registry.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from triton_voice import TritonVoice
from triton_voice.server.process import free_port

DOCKER = Path(__file__).resolve().parent
PROJECT = "replay-voice"
SERVER, BOT, POD = f"{PROJECT}_server_1", f"{PROJECT}_bot_1", "replay-pod"
"""Names of the containers; the third is the pod and, with `-server`, its container."""
READY_TIMEOUT_S = 900.0
POLL_S = 1.0
CHUNK = np.zeros(2560, np.int16)
"""160 ms of silence, one step of the recogniser."""
KILLED = "parakeet"


class Rehearsal:
    """One start, life and end of the containers.

    Args:
        folder: Where logs and what was said go.
        images: Name of the image of the `server` and, if it was built, of the `bot`.
        environment: The environment in which podman finds the images.
    """

    def __init__(self, folder: Path, images: dict[str, str], environment: dict[str, str]):
        self.folder, self.images = folder, images
        self.ports = {name: free_port() for name in ("HTTP", "GRPC", "METRICS", "BOT")}
        self.environment = {
            **environment,
            **{f"TRITON_VOICE_{name}_PORT": str(port) for name, port in self.ports.items()},
            "TRITON_VOICE_IMAGE": images["server"],
            "TRITON_VOICE_BOT_IMAGE": images.get("bot", ""),
        }
        self.figures: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Does all of it and returns how long what took, in seconds.

        Raises:
            SystemExit: Something was not as it should be; the containers' logs are in the folder.
        """
        try:
            self.compose_file()
            self.pod()
        finally:
            self.compose("down", "--volumes")
            self.podman("pod", "rm", "--force", "--time", "60", POD, check=False)
            self.podman("volume", "rm", "--force", "weights", "caches", check=False)
        return self.figures

    def podman(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a podman command."""
        done = subprocess.run(["podman", *words], env=self.environment, capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"podman {' '.join(words)}: {done.stderr.strip()}")
        return done

    def compose(self, *words: str) -> None:
        """Runs a command of the compose file, with the file for machines without a GPU."""
        older = self.folder / "podman.yaml"  # Debian 12's podman does not know this setting of Docker 25
        older.write_text("services:\n  server:\n    healthcheck:\n      start_interval: !reset null\n")
        paths = (DOCKER / "compose.yaml", DOCKER / "compose.cpu.yaml", older)
        files = [word for path in paths for word in ("--file", str(path))]
        command = ["podman-compose", "--in-pod=false", "--project-name", PROJECT, *files, *words]
        with (self.folder / "compose.log").open("ab") as log:
            done = subprocess.run(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}: see {self.folder / 'compose.log'}")

    def asked(self, container: str, *probe: str) -> tuple[bool, str]:
        """Runs a probe in a container; returns whether it is content, and what it said."""
        done = self.podman("exec", container, "python", *probe, check=False)
        return done.returncode == 0, (done.stdout.strip() or done.stderr.strip())

    def wait_for(self, title: str, what: Callable[[], tuple[bool, str]], healthy: bool) -> None:
        """Asks until the answer is the one wanted, and notes how long that took.

        Raises:
            SystemExit: It never was.
        """
        start = time.monotonic()
        while (found := what())[0] is not healthy:
            if time.monotonic() - start > READY_TIMEOUT_S:
                sys.exit(f"{title}: {found[1]}")
            time.sleep(POLL_S)
        self.figures[f"{title}, s"] = round(time.monotonic() - start, 1)
        print(f"{title}: {'healthy' if healthy else 'unhealthy'}: {found[1]}", flush=True)

    def configured(self, container: str) -> None:
        """Runs the health check as the compose file configures it."""
        if (done := self.podman("healthcheck", "run", container, check=False)).returncode != 0:
            sys.exit(f"{container}: its own health check fails: {done.stdout}{done.stderr}")

    def compose_file(self) -> None:
        """Starts the server and the bot by the compose file, uses them and stops them."""
        probe = "docker/healthcheck.py"
        self.compose("up", "--detach", "--no-build", "--no-deps", "server")
        self.wait_for("compose: while models load", lambda: self.asked(SERVER, probe), healthy=False)
        self.wait_for("compose: models answer", lambda: self.asked(SERVER, probe, "--answer"), healthy=True)
        self.configured(SERVER)
        self.confined(SERVER)
        self.turn("compose")
        if "bot" in self.images:
            self.compose("up", "--detach", "--no-build", "--no-deps", "bot")
            asked = lambda: self.asked(BOT, "docker/bot_healthcheck.py")  # noqa: E731
            self.wait_for("compose: bot ready", asked, healthy=True)
            self.configured(BOT)
            self.page()
            self.keep_log(BOT)
        killed = self.podman("exec", SERVER, "python", "-c", KILL, KILLED)
        print(f"{killed.stdout.strip()} killed", flush=True)
        self.wait_for(f"compose: {KILLED} killed", lambda: self.asked(SERVER, probe), healthy=False)
        self.wait_for(f"compose: {KILLED} back", lambda: self.asked(SERVER, probe, "--answer"), healthy=True)
        self.turn("compose, after the kill")
        asyncio.run(self.drained(SERVER))
        start = time.monotonic()
        self.compose("stop", "server")
        self.figures["compose: server stops, s"] = round(time.monotonic() - start, 1)
        self.keep_log(SERVER)
        state = json.loads(self.podman("inspect", SERVER).stdout)[0]["State"]
        if state["ExitCode"] != 0 or state["OOMKilled"]:
            sys.exit(f"the server ended with code {state['ExitCode']}")

    def pod(self) -> None:
        """Starts the Kubernetes pod without what this machine lacks: a GPU, the hub's weights, a cluster."""
        manifests = yaml.safe_load_all((DOCKER / "kubernetes" / "server.yaml").read_text())
        replica: dict[str, Any] = next(found for found in manifests if found["kind"] == "StatefulSet")
        spec = replica["spec"]["template"]["spec"]
        for name in ("nodeSelector", "tolerations", "affinity", "initContainers"):
            del spec[name]
        (server,) = spec["containers"]
        server |= {"image": self.images["server"], "imagePullPolicy": "Never"}
        server["env"] = [item for item in server["env"] if item["name"] != "TRITON_VOICE_MODELS"]
        del server["resources"]
        for port in server["ports"]:
            port |= {"hostIP": "127.0.0.1", "hostPort": self.ports[port["name"].upper()]}
        # Kubernetes' volume of memory is writable for all, podman's for root alone; podman's own shared memory does.
        server["volumeMounts"] = [mount for mount in server["volumeMounts"] if mount["name"] != "shm"]
        spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "shm"]
        claims = [claim["metadata"]["name"] for claim in replica["spec"]["volumeClaimTemplates"]]
        spec["volumes"] += [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
        manifest = self.folder / "pod.yaml"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}
        manifest.write_text(yaml.safe_dump(pod))
        self.podman("play", "kube", str(manifest))
        container = f"{POD}-server"
        probe = server["readinessProbe"]["exec"]["command"][1:]
        alive = server["livenessProbe"]["exec"]["command"][1:]
        self.wait_for("pod: ready", lambda: self.asked(container, *probe), healthy=True)
        self.wait_for("pod: alive", lambda: self.asked(container, *alive), healthy=True)
        self.confined(container)
        self.turn("pod")
        stop = server["lifecycle"]["preStop"]["exec"]["command"][1:]
        ended, said = self.asked(container, *stop)
        if not ended or self.asked(container, *probe)[0]:
            sys.exit(f"the pod does not drain: {said}")
        start = time.monotonic()
        self.podman("pod", "stop", "--time", str(spec["terminationGracePeriodSeconds"]), POD)
        self.figures["pod: stops, s"] = round(time.monotonic() - start, 1)
        self.keep_log(container)

    def confined(self, container: str) -> None:
        """Says who the server is and what it may do."""
        status = self.podman("exec", container, "cat", "/proc/1/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        shown = {name: fields[name].split()[0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
        if shown["Uid"] != "1000" or int(shown["CapBnd"], 16) or shown["NoNewPrivs"] != "1":
            sys.exit(f"{container} has more rights than its file gives: {shown}")
        print(f"{container}: {shown}", flush=True)

    def turn(self, title: str) -> None:
        """Speaks a question to the published port from outside, and prints what was heard, answered and spoken."""
        program = str(Path(sys.executable).parent / "triton-voice")
        reply = self.folder / "reply.wav"
        command = [program, "demo", "--server", f"127.0.0.1:{self.ports['GRPC']}", "--json", "--output", str(reply)]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{title}: no turn: {done.stderr.strip()}")
        print(f"{title}: a turn: {' '.join(done.stdout.split())}", flush=True)

    def page(self) -> None:
        """Fetches the bot's page and its health from outside."""
        url = f"http://127.0.0.1:{self.ports['BOT']}"
        with urllib.request.urlopen(url, timeout=10) as page:
            text = page.read().decode()
        with urllib.request.urlopen(f"{url}/api/health", timeout=10) as health:
            said = health.read().decode()
        if "<html" not in text:
            sys.exit("the bot's page is none")
        print(f"the bot's page: {len(text)} characters; health: {said}", flush=True)

    async def drained(self, container: str) -> None:
        """Calls the server away while somebody speaks: he may finish, and nobody new is sent there.

        Raises:
            SystemExit: The stream was cut, or the drain did not end after it.
        """
        async with TritonVoice(f"127.0.0.1:{self.ports['GRPC']}") as voice, voice.open_stream() as stream:
            await stream.send(CHUNK)
            words = ["podman", "exec", container, "python", "docker/drain.py", "--settle", "2"]
            pipe = asyncio.subprocess.PIPE
            draining = await asyncio.create_subprocess_exec(*words, env=self.environment, stdout=pipe)
            await asyncio.sleep(3 * POLL_S)
            healthy, said = await asyncio.to_thread(self.asked, container, "docker/healthcheck.py")
            if healthy or draining.returncode is not None:
                sys.exit(f"draining: {said}")
            print(f"a stream is open while the server drains: {said}", flush=True)
            await stream.end(CHUNK)
        printed, _ = await draining.communicate()
        if draining.returncode != 0:
            sys.exit(f"drain.py: {printed.decode()}")
        print(f"after the stream's end: {printed.decode().strip()}", flush=True)

    def keep_log(self, container: str) -> None:
        """Saves a container's log."""
        done = self.podman("logs", container, check=False)
        (self.folder / f"{container}.log").write_text(done.stdout + done.stderr)


KILL = """
import os, signal, sys
from pathlib import Path
for process in Path("/proc").glob("[0-9]*"):
    try:
        words = (process / "cmdline").read_bytes().decode().split("\\0")
    except OSError:  # it has just ended
        continue
    if "stub" in words[0] and f"{sys.argv[1]}_0_0" in words:
        os.kill(int(process.name), signal.SIGKILL)
        print(sys.argv[1], process.name)
"""
"""Kills a model's process as the kernel does when memory is short."""
