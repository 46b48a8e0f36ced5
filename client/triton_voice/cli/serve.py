"""`triton-voice serve`."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, fail
from triton_voice.cli.serving import running
from triton_voice.server import MODELS, ServerSettings, TritonServer
from triton_voice.server.settings import Device

LIVENESS_POLL_S = 0.5
MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0


def serve(
    models: weight_options.ModelsDir = None,
    hub: weight_options.Hub = False,
    parakeet: weight_options.Parakeet = None,
    magpie: weight_options.Magpie = None,
    codec: weight_options.Codec = None,
    llm: weight_options.Llm = None,
    device: Annotated[Device | None, typer.Option(help="Where the models run. Default: auto.")] = None,
    only: Annotated[str | None, typer.Option(help=f"Load only these, comma separated, of {', '.join(MODELS)}.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Default: 8001; 0 takes a free one.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Default: 8000; 0 takes a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Default: 8002; 0 takes a free one.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Triton's and the models' log.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Triton's verbose log.")] = False,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start again when a model's process dies.")] = False,
) -> None:
    """Start tritonserver with the three models and stay until Ctrl-C, or until one of their processes dies.

    Every option is also an environment variable, TRITON_VOICE_<OPTION>, e.g. TRITON_VOICE_GRPC_PORT.
    """
    chosen: dict[str, object] = {
        "device": device,
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "log_file": log_file,
        "verbose": verbose or None,
        "only": only,
    }
    settings = ServerSettings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    weights = weight_options.resolve(models, hub, parakeet, magpie, codec, llm)
    restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
    try:
        while True:
            reason = _serve_once(TritonServer(settings, weights))
            if not supervise:
                fail(reason)
            if len(restarts) == MAX_RESTARTS and time.monotonic() - restarts[0] < RESTART_WINDOW_S:
                fail(
                    reason, f"It was restarted {MAX_RESTARTS} times in {RESTART_WINDOW_S / 60:.0f} minutes: giving up."
                )
            restarts.append(time.monotonic())
            err.print(f"[bold red]{reason}[/]; restarting", soft_wrap=True)
    except KeyboardInterrupt:
        err.print("stopped")


def _serve_once(server: TritonServer) -> str:
    """Serves until something dies; returns what, in words. The server is stopped by then: nobody waits for the dead."""
    with running(server):
        err.print(
            f"[bold green]ready[/]  gRPC {server.grpc_url}   HTTP {server.settings.host}:{server.http_port}   "
            f"metrics {server.metrics_url}   Ctrl-C stops",
            soft_wrap=True,
        )
        while (code := server.wait(LIVENESS_POLL_S)) is None:
            if dead := server.dead_models():
                return f"{', '.join(dead)} died; log: {server.log_file}"
        return f"tritonserver ended by itself with code {code}; log: {server.log_file}"
