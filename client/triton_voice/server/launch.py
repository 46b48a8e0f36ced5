"""How a tritonserver is started: its folder of backends, its command line and its environment."""

from __future__ import annotations

import os
import shutil
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_voice.client import CONVERSATION_HEADER
from triton_voice.paths import project_root
from triton_voice.server import tls
from triton_voice.server.locate import STUB, TritonInstall
from triton_voice.server.settings import ServerSettings, Weights

STUB_TIMEOUT_S = 180
"""The stub answers Triton only after its imports, and NeMo's and vLLM's take tens of seconds on a slow disk."""
DRAIN_S = 15
"""What Triton waits, when it stops, for requests in flight (a live sequence counts as one, however silent it is) and
for the models to unload."""
ADMIN_KEY = "admin"
ADMIN_APIS = "model-repository,shared-memory,trace,logging"
"""Triton's APIs that change the server, read other processes' shared memory or name files: closed to clients."""


def has_cuda_device() -> bool:
    """Tells whether an NVIDIA driver is there, without importing torch."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def uses_cuda(settings: ServerSettings) -> bool:
    """Tells whether the models will run on a GPU."""
    return settings.device == "cuda" or (settings.device == "auto" and has_cuda_device())


def _trace_flags(settings: ServerSettings) -> list[str]:
    if settings.trace is None:
        return []
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",  # only calls whose caller traces them
        f"--trace-config=opentelemetry,url={settings.trace}",
        "--trace-config=opentelemetry,resource=service.name=triton",
    ]


@dataclass(frozen=True)
class Ports:
    """The three ports of a server."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Launch:
    """One start of a server.

    Attributes:
        settings: What the user asked for.
        weights: The checkpoints.
        install: The tritonserver.
        ports: Where it listens.
        run_dir: A folder of its own, empty.
        shm_prefix: Beginning of the names of its regions in /dev/shm.
        admin_key: Opens the repository API.
        extra_environment: Further variables for the models.
    """

    settings: ServerSettings
    weights: Weights
    install: TritonInstall
    ports: Ports
    run_dir: Path
    shm_prefix: str
    admin_key: str
    extra_environment: Mapping[str, str]

    def lay_out_backends(self) -> None:
        """Makes the backends folder: Triton's python backend with this Python's stub, and ours for vLLM."""
        backends = self.run_dir / "backends"
        python = backends / "python"
        python.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(self.install.python_backend / name, python / name)
        shutil.copy(self.install.stub, python / STUB)
        (backends / "vllm").symlink_to(project_root() / "backends" / "vllm")

    def command(self) -> list[str]:
        """Returns the command line."""
        s = self.settings
        return [
            str(self.install.binary),
            f"--model-repository={s.repository}",
            f"--backend-directory={self.run_dir}/backends",
            "--model-control-mode=explicit",
            f"--grpc-restricted-protocol={ADMIN_APIS}:{ADMIN_KEY}={self.admin_key}",
            f"--http-restricted-api={ADMIN_APIS}:{ADMIN_KEY}={self.admin_key}",
            f"--grpc-header-forward-pattern={CONVERSATION_HEADER}",
            *tls.flags(s, self.run_dir),
            *_trace_flags(s),
            f"--grpc-address={s.host}",
            f"--http-address={s.http_host}",
            f"--metrics-address={s.host}",
            f"--grpc-port={self.ports.grpc}",
            f"--http-port={self.ports.http}",
            f"--metrics-port={self.ports.metrics}",
            f"--exit-timeout-secs={DRAIN_S}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--backend-config=vllm,stub-timeout-seconds={STUB_TIMEOUT_S}",
            f"--backend-config=vllm,shm-region-prefix-name={self.shm_prefix}",
            f"--log-verbose={int(s.verbose)}",
        ]

    def environment(self) -> dict[str, str]:
        """Returns the whole environment."""
        env = dict(os.environ)
        env.update(self.weights.environment())

        def prepend(name: str, *values: str) -> None:
            env[name] = os.pathsep.join([v for v in (*values, env.get(name, "")) if v])

        prepend("LD_LIBRARY_PATH", *(str(d) for d in self.install.library_dirs))
        prepend("PATH", str(Path(sys.executable).parent))
        prepend("PYTHONPATH", *site.getsitepackages())
        # Nothing is written into the model repository. A bytecode folder for each run would do that, too, but it hides
        # the installed packages' own bytecode: each model's process would compile them anew, 10 s of processor time.
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime tells its maker of its use otherwise
        env.setdefault("PYTHONUNBUFFERED", "1")
        env.setdefault("LC_ALL", "C.UTF-8")
        if self.settings.device != "auto":
            env["PARAKEET_DEVICE"] = env["MAGPIE_DEVICE"] = self.settings.device
        if not uses_cuda(self.settings):
            env["CUDA_VISIBLE_DEVICES"] = ""
            # Three models share the cores; left alone, torch gives each model all of them and they wait on each other.
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 3)))
        env.update(self.extra_environment)
        return env
