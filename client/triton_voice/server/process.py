"""Runs one tritonserver: lays out its backends, starts it, loads its models, and stops every process of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from triton_voice.paths import cache_dir, project_root
from triton_voice.server.locate import STUB, TritonInstall, find_tritonserver
from triton_voice.server.settings import ServerSettings, Weights

ENDPOINT_TIMEOUT_S = 60.0
POLL_S = 0.05
READY_TIMEOUT_S = 5.0
STUB_TIMEOUT_S = 180
"""The stub answers Triton only after its imports, and NeMo's and vLLM's take tens of seconds on a slow disk."""
DRAIN_S = 15
"""What Triton waits, when it stops, for requests in flight (a live sequence counts as one, however silent it is) and
for the models to unload."""
PR_SET_PDEATHSIG = 1
ADMIN_KEY = "admin"


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


def has_cuda_device() -> bool:
    """Tells whether an NVIDIA driver is there, without importing torch."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def plain_load_error(message: str) -> str:
    """Takes the model's own words out of Triton's load error, which wraps them in states and a traceback."""
    text = re.sub(r"^\[StatusCode\.\w+\]\s*", "", message.strip())
    if (found := re.search(r"UNAVAILABLE(?: state)?: (?:\w+: )?(.*)", text, re.DOTALL)) is not None:
        text = found.group(1)
    text = text.split("\n\nAt:")[0].strip().rstrip(";").strip()
    return re.sub(r"^(?:ValueError|RuntimeError|TritonModelException|FileNotFoundError): ", "", text)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """Runs in the child: asks Linux for a SIGTERM when the parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
        self._run_dir: Path | None = None
        self._stubs: dict[str, psutil.Process] = {}
        self._monitor: triton_grpc.InferenceServerClient | None = None
        self._admin_key = secrets.token_hex(16)
        host = self.settings.host
        self.grpc_port = self.settings.grpc_port or free_port(host)
        self.http_port = self.settings.http_port or free_port(host)
        self.metrics_port = self.settings.metrics_port or free_port(host)
        name = f"tritonserver-{self.grpc_port}.log"
        self.log_file = self.settings.log_file or cache_dir() / "logs" / name

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
        self._run_dir = Path(tempfile.mkdtemp(prefix="triton-voice-"))
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(self._run_dir),
                env=self._environment(self._run_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._run_dir,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the server in order
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait_for_endpoint()
        except BaseException:
            self.stop()
            raise

    def load_models(self, on_event: Callable[[LoadEvent], None] = lambda event: None) -> None:
        """Loads the models in order, the language model first and alone where memory is shared with a GPU.

        Args:
            on_event: Called from the loading threads for each change of a model's state.

        Raises:
            ServerError: A model failed to load; the others are still tried, and the message has every reason.
        """
        wanted = list(self.settings.only)
        waves = [[m for m in wanted if m == "nemotron"], [m for m in wanted if m != "nemotron"]]
        if not self._uses_cuda():
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
        self._stubs = self._find_stubs(wanted)

    def dead_models(self) -> list[str]:
        """Returns the models that do not serve any more, though they did.

        Two ways to tell: the process is gone (Triton 2.51 goes on calling such a model ready, leaves its requests in
        flight unanswered and fails new ones), or Triton says that it is not ready (the vllm backend unloads itself when
        its engine dies).
        """
        if not self._stubs:
            return []
        gone = [name for name, stub in self._stubs.items() if not _runs(stub)]
        if self._monitor is None:
            self._monitor = triton_grpc.InferenceServerClient(self.grpc_url)
        unready: list[str] = []
        with contextlib.suppress(InferenceServerException):  # the server itself ends or is busy; `wait` tells which
            for name in self._stubs:
                if not self._monitor.is_model_ready(name, client_timeout=READY_TIMEOUT_S):
                    unready.append(name)
        return sorted({*gone, *unready})

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the process to end; returns its exit code, or None when the time is up first."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Stops the server and every process it started, in order if it lets us, by force if not. Idempotent.

        An interrupt (Ctrl-C, once more) while it waits stops it by force at once.
        """
        process, self._process = self._process, None
        self._stubs = {}
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if process is not None:
            family = self._family(process.pid)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(self.settings.stop_timeout_s)
                except (subprocess.TimeoutExpired, KeyboardInterrupt):
                    family = list({*family, *self._family(process.pid)})
                    process.kill()
                    process.wait()
            _, survivors = psutil.wait_procs(family, timeout=2.0)
            for survivor in survivors:
                with contextlib.suppress(psutil.NoSuchProcess):
                    survivor.kill()
            psutil.wait_procs(survivors, timeout=5.0)
            self._remove_shared_memory()
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None

    def log_tail(self, lines: int = 20) -> str:
        """Returns the end of the log."""
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def _uses_cuda(self) -> bool:
        return self.settings.device == "cuda" or (self.settings.device == "auto" and has_cuda_device())

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

    def _lay_out_backends(self, run_dir: Path) -> Path:
        """Makes the backends folder: Triton's python backend with this Python's stub, and ours for vLLM."""
        backends = run_dir / "backends"
        python = backends / "python"
        python.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(self.install.python_backend / name, python / name)
        shutil.copy(self.install.stub, python / STUB)
        (backends / "vllm").symlink_to(project_root() / "backends" / "vllm")
        return backends

    def _command(self, run_dir: Path) -> list[str]:
        s = self.settings
        repository = s.model_repository or project_root() / "model_repository"
        shm_prefix = self._shm_prefix()
        return [
            str(self.install.binary),
            f"--model-repository={repository}",
            f"--backend-directory={self._lay_out_backends(run_dir)}",
            "--model-control-mode=explicit",
            f"--grpc-restricted-protocol=model-repository:{ADMIN_KEY}={self._admin_key}",
            f"--http-restricted-api=model-repository:{ADMIN_KEY}={self._admin_key}",
            f"--grpc-address={s.host}",
            f"--http-address={s.host}",
            f"--metrics-address={s.host}",
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={DRAIN_S}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            f"--backend-config=vllm,stub-timeout-seconds={STUB_TIMEOUT_S}",
            f"--backend-config=vllm,shm-region-prefix-name={shm_prefix}",
            f"--log-verbose={int(s.verbose)}",
        ]

    def _shm_prefix(self) -> str:
        return f"triton_voice_{os.getpid()}_{self.grpc_port}_"

    def _environment(self, run_dir: Path) -> dict[str, str]:
        env = dict(os.environ)
        env.update(self.weights.environment())

        def prepend(name: str, *values: str) -> None:
            env[name] = os.pathsep.join([v for v in (*values, env.get(name, "")) if v])

        prepend("LD_LIBRARY_PATH", *(str(d) for d in self.install.library_dirs))
        prepend("PATH", str(Path(sys.executable).parent))
        prepend("PYTHONPATH", *site.getsitepackages())
        env["PYTHONPYCACHEPREFIX"] = str(run_dir / "pycache")  # nothing is written into the model repository
        env.setdefault("PYTHONUNBUFFERED", "1")
        env.setdefault("LC_ALL", "C.UTF-8")
        if self.settings.device != "auto":
            env["PARAKEET_DEVICE"] = env["MAGPIE_DEVICE"] = self.settings.device
        if not self._uses_cuda():
            env["CUDA_VISIBLE_DEVICES"] = ""
            # Three models share the cores; left alone, torch gives each model all of them and they wait on each other.
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 3)))
        env.update(self._extra_environment)
        return env

    def _wait_for_endpoint(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + ENDPOINT_TIMEOUT_S
        with contextlib.closing(triton_grpc.InferenceServerClient(self.grpc_url)) as client:
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
        with contextlib.closing(triton_grpc.InferenceServerClient(self.grpc_url)) as client:
            try:
                client.load_model(
                    model,
                    headers={f"triton-grpc-protocol-{ADMIN_KEY}": self._admin_key},
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
        """Finds the process of each model: Python backend stubs get the path of their `model.py` as an argument."""
        stubs = {}
        for process in self._descendants(self._process.pid) if self._process else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if words and words[0].endswith(STUB):
                    for model in models:
                        if any(f"/{model}/" in word for word in words[1:]):
                            stubs[model] = process
        return stubs

    def _family(self, pid: int) -> list[psutil.Process]:
        """Returns the server's descendants and its stubs, which a crashed server leaves behind without a parent."""
        stubs = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self._run_dir) in " ".join(process.cmdline()[:1]):
                    stubs |= {process, *process.children(recursive=True)}
        return list(stubs.union(self._descendants(pid)))

    @staticmethod
    def _descendants(pid: int) -> list[psutil.Process]:
        try:
            return psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _remove_shared_memory(self) -> None:
        """Removes regions that a killed server or stub left behind; an orderly stop leaves none."""
        for region in Path("/dev/shm").glob(f"{self._shm_prefix()}*"):
            region.unlink(missing_ok=True)
