"""Runs one tritonserver: lays out its backends, starts it, loads its models, and stops every process of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from triton_voice.client import TritonVoice
from triton_voice.paths import cache_dir
from triton_voice.server import launch, lifeline, tls
from triton_voice.server.health import Health, Watch, find_stubs
from triton_voice.server.locate import TritonInstall, find_tritonserver
from triton_voice.server.pulse import CONVERSATION, Pulses
from triton_voice.server.settings import ServerSettings, Weights

ENDPOINT_TIMEOUT_S = 60.0
POLL_S = 0.05


class ServerError(RuntimeError):
    """The server could not be started or has died; the message says why in plain words.

    Attributes:
        log_file: Triton's log, if there is one.
    """

    def __init__(self, message: str, log_file: Path | None = None):
        super().__init__(message)
        self.log_file = log_file


@dataclass(frozen=True)
class LoadEvent:
    """What happened to one model while the server came up.

    Attributes:
        model: Name of the model.
        state: `loading`, `ready` or `failed`.
        seconds: Time since its load was asked for.
        detail: Why it failed.
    """

    model: str
    state: Literal["loading", "ready", "failed"]
    seconds: float = 0.0
    detail: str = ""


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def plain_load_error(message: str) -> str:
    """Takes the model's own words out of Triton's load error, which wraps them in states and a traceback."""
    text = re.sub(r"^\[StatusCode\.\w+\]\s*", "", message.strip())
    if (found := re.search(r"UNAVAILABLE(?: state)?: (?:\w+: )?(.*)", text, re.DOTALL)) is not None:
        text = found.group(1)
    text = text.split("\n\nAt:")[0].strip().rstrip(";").strip()
    return re.sub(r"^(?:ValueError|RuntimeError|TritonModelException|FileNotFoundError): ", "", text)


class TritonServer:
    """One tritonserver process and its models.

    Models are loaded through Triton's repository API (model control mode `explicit`), so that each failure is known
    by model and reason, and so that vLLM can measure the free memory before the others take theirs. That API is then
    closed to clients by a random key.

    Args:
        settings: Ports, device, models, limits.
        weights: The checkpoints.
        environment: Further variables for the models.
        install: The tritonserver; found if None.
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        weights: Weights | None = None,
        environment: Mapping[str, str] | None = None,
        install: TritonInstall | None = None,
    ):
        self.settings = settings or ServerSettings()
        self.weights = weights or Weights()
        self.install = install or find_tritonserver()
        self._extra_environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._traces: lifeline.Traces | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._watch = Watch(self._client, self._pulses if self.settings.hang_timeout_s else None)
        self._admin_key = secrets.token_hex(16)
        host = self.settings.host
        self.grpc_port = self.settings.grpc_port or free_port(host)
        self.http_port = self.settings.http_port or free_port(host)
        self.metrics_port = self.settings.metrics_port or free_port(host)
        name = f"tritonserver-{self.grpc_port}.log"
        self.log_file = self.settings.log_file or cache_dir() / "logs" / name

    @property
    def former_log_file(self) -> Path:
        """Where the log of the server that ran here before is kept: it may tell why there is another one now."""
        return self.log_file.with_name(f"{self.log_file.name}.former")

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint, as a client on this machine reaches it."""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host
        return f"{host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.grpc_url.rsplit(':', 1)[0]}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id of the tritonserver, None before the start and after the stop."""
        return self._process.pid if self._process else None

    def __enter__(self) -> TritonServer:
        """Starts the server and loads the models."""
        self.start()
        try:
            self.load_models()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops the server."""
        self.stop()

    def start(self) -> None:
        """Starts tritonserver with no model loaded and waits until it answers.

        Raises:
            ServerError: A port is taken, or the process ended or did not answer.
        """
        self._check_ports()
        try:
            self._launch()
            self._wait_for_endpoint()
        except OSError as error:
            self.stop()
            where = f" ({error.filename})" if error.filename else ""
            raise ServerError(f"the server's files cannot be written: {error.strerror}{where}") from error
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        run_dir = Path(tempfile.mkdtemp(prefix="triton-voice-"))
        self._traces = lifeline.Traces(str(run_dir), f"triton_voice_{os.getpid()}_{self.grpc_port}_")
        ports = launch.Ports(self.grpc_port, self.http_port, self.metrics_port)
        plan = launch.Launch(
            settings=self.settings,
            weights=self.weights,
            install=self.install,
            ports=ports,
            run_dir=run_dir,
            shm_prefix=self._traces.shm_prefix,
            admin_key=self._admin_key,
            extra_environment=self._extra_environment,
        )
        plan.lay_out_backends()
        self._lifeline = subprocess.Popen(
            lifeline.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._tell_lifeline()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.is_file():
            self.log_file.replace(self.former_log_file)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                plan.command(),
                env=plan.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=run_dir,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the server in order
            )
        self._traces = dataclasses.replace(self._traces, session=self._process.pid)
        self._tell_lifeline()

    def _tell_lifeline(self) -> None:
        assert self._lifeline is not None and self._lifeline.stdin is not None and self._traces is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it; the server works without
            self._lifeline.stdin.write(lifeline.line(self._traces))
            self._lifeline.stdin.flush()

    def load_models(self, on_event: Callable[[LoadEvent], None] = lambda event: None) -> None:
        """Loads the models in order, the language model first and alone where memory is shared with a GPU.

        Args:
            on_event: Called from the loading threads for each change of a model's state.

        Raises:
            ServerError: A model failed to load; the others are still tried, and the message has every reason.
        """
        wanted = list(self.settings.only)
        waves = [[m for m in wanted if m == "nemotron"], [m for m in wanted if m != "nemotron"]]
        if not launch.uses_cuda(self.settings):
            waves = [wanted]
        failures: list[LoadEvent] = []

        def load(model: str) -> None:
            event = self._load_one(model, on_event)
            if event.state == "failed":
                failures.append(event)

        for wave in waves:
            # Daemon threads, joined in turns: Ctrl-C must not wait for a load that takes minutes.
            threads = [threading.Thread(target=load, args=(model,), daemon=True) for model in wave]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_S)
        if failures:
            reasons = "; ".join(f"{f.model}: {f.detail}" for f in failures)
            raise ServerError(f"{len(failures)} of {len(wanted)} models did not load. {reasons}", self.log_file)
        self._watch.add(self._find_stubs(wanted))

    def load(self, model: str) -> LoadEvent:
        """Loads one model beside the others, e.g. one that has unloaded itself; returns the outcome."""
        event = self._load_one(model, lambda event: None)
        if event.state == "ready":
            self._watch.add(self._find_stubs([model]))
        return event

    def forget(self, model: str) -> None:
        """Leaves a model out of `health` until it is loaded again."""
        self._watch.forget(model)

    def health(self) -> Health:
        """Looks whether all models that were loaded still serve; takes at most a few seconds a model.

        The first look begins to follow the models' pulses, which is what tells that one hangs.
        """
        return self._watch.look()

    def end_engine(self, model: str) -> bool:
        """Kills the processes behind a hung model's own, see `Watch.end_engine`."""
        return self._watch.end_engine(model)

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the process to end; returns its exit code, or None when the time is up first."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, drain: bool = True) -> None:
        """Stops the server and every process it started, in order if it lets us, by force if not. Idempotent.

        An interrupt (Ctrl-C, once more) while it waits stops it by force at once.

        Args:
            drain: Let requests in flight end. Of no use for a server with a dead model, whose requests never end.
        """
        process, self._process = self._process, None
        stubs = dict(self._watch.stubs)
        try:
            self._watch.close()
            if drain and process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                # Triton tells no model that it stops. The language model's process takes this signal for that word and
                # ends its replies in time; Python backend stubs ignore it otherwise.
                for stub in stubs.values():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        stub.terminate()
                process.wait(self.settings.stop_timeout_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            if process is not None:
                process.kill()  # does nothing to one that has ended
                process.wait()
        if self._traces is not None:
            self._traces.end_family()
            self._traces.remove_files()
            self._traces = None
        if self._lifeline is not None:
            self._lifeline.kill()
            self._lifeline.communicate()
            self._lifeline = None

    def log_tail(self, lines: int = 20) -> str:
        """Returns the end of the log."""
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def _check_ports(self) -> None:
        host = self.settings.host
        for what, port in (("gRPC", self.grpc_port), ("HTTP", self.http_port), ("metrics", self.metrics_port)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise ServerError(
                        f"{what} port {port} on {host} cannot be used ({reason}); stop what holds it or choose another "
                        f"with --{what.lower()}-port"
                    ) from error

    def _client(self) -> triton_grpc.InferenceServerClient:
        connection = tls.local_connection(self.settings)
        if connection is None:
            return triton_grpc.InferenceServerClient(self.grpc_url)
        arguments: Any = connection.arguments()
        return triton_grpc.InferenceServerClient(self.grpc_url, channel_args=connection.channel_args(), **arguments)

    def _wait_for_endpoint(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + ENDPOINT_TIMEOUT_S
        with contextlib.closing(self._client()) as client:
            while time.monotonic() < deadline:
                if (code := self._process.poll()) is not None:
                    raise ServerError(f"tritonserver ended with code {code}:\n{self.log_tail()}", self.log_file)
                try:
                    if client.is_server_live():
                        return
                except InferenceServerException:
                    pass
                time.sleep(POLL_S)
        raise ServerError(f"tritonserver did not answer within {ENDPOINT_TIMEOUT_S:.0f} s", self.log_file)

    def _load_one(self, model: str, on_event: Callable[[LoadEvent], None]) -> LoadEvent:
        on_event(LoadEvent(model, "loading"))
        start = time.monotonic()
        with contextlib.closing(self._client()) as client:
            try:
                client.load_model(
                    model,
                    headers={f"triton-grpc-protocol-{launch.ADMIN_KEY}": self._admin_key},
                    client_timeout=self.settings.load_timeout_s,
                )
                event = LoadEvent(model, "ready", time.monotonic() - start)
            except InferenceServerException as error:
                detail = plain_load_error(str(error))
                if self._process is not None and (code := self._process.poll()) is not None:
                    detail = f"tritonserver ended with code {code} while it loaded"
                event = LoadEvent(model, "failed", time.monotonic() - start, detail)
        on_event(event)
        return event

    def _find_stubs(self, models: list[str]) -> dict[str, psutil.Process]:
        return find_stubs(self._traces.family() if self._traces else (), models, self.settings.repository)

    def _pulses(self) -> Pulses:
        voice = TritonVoice(
            self.grpc_url,
            tls=tls.local_connection(self.settings),
            conversation=CONVERSATION,
            answer_timeout_s=None,  # a request that waits must not lose its place; the pulse itself counts the time
        )
        return Pulses(voice, self.metrics_url, self.settings.hang_timeout_s)
