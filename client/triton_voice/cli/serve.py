"""`triton-voice serve`."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, fail
from triton_voice.cli.serving import running
from triton_voice.logs import JsonLines, following, triton_line
from triton_voice.server import MODELS, LoadEvent, ServerError, ServerSettings, TritonServer
from triton_voice.server.settings import Device

LIVENESS_POLL_S = 0.5
MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
RESTART_PAUSE_S = 5.0
"""After a restart that failed, e.g. for want of disk or memory that may come free."""


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
    log_format: Annotated[str | None, typer.Option(help="text, or json: one object a line, to stdout.")] = None,
    trace: Annotated[str | None, typer.Option(help="OTLP/HTTP URL for the spans of calls that are traced.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) of gRPC; HTTP is then for loopback.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Clients need a certificate from one of these.")] = None,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start again what dies or hangs.")] = False,
) -> None:
    """Start tritonserver with the three models and stay until Ctrl-C, or until something dies or hangs.

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
        "log_format": log_format,
        "trace": trace,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
    }
    settings = ServerSettings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    weights = weight_options.resolve(models, hub, parakeet, magpie, codec, llm, settings.only)
    if settings.log_format == "json":
        err.file = JsonLines(sys.stdout, "serve")  # type: ignore[assignment]
    restarts = Restarts()
    server = TritonServer(settings, weights)
    # A server that is started again comes back where its clients look for it, also when the ports were chosen freely.
    ports = {"grpc_port": server.grpc_port, "http_port": server.http_port, "metrics_port": server.metrics_port}
    settings = settings.model_copy(update=ports)
    came_up = False
    try:
        while True:
            try:
                reason = _serve_once(server, restarts if supervise else None)
                came_up = True
            except ServerError as error:
                if not came_up:  # what never worked is not mended by trying again
                    raise
                reason = str(error)
                time.sleep(RESTART_PAUSE_S)
            if not supervise:
                fail(reason)
            if not restarts.allow():
                fail(
                    reason, f"It was restarted {MAX_RESTARTS} times in {RESTART_WINDOW_S / 60:.0f} minutes: giving up."
                )
            kept = f"; that log is kept as {server.former_log_file}" if settings.log_format == "text" else ""
            err.print(f"[bold red]{escape(reason)}[/]; restarting{escape(kept)}", soft_wrap=True)
            server = TritonServer(settings, weights)
    except KeyboardInterrupt:
        err.print("stopped")


class Restarts:
    """Counts restarts, of the server and of single models, so that a fault that stays does not go on for ever."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MAX_RESTARTS)

    def allow(self) -> bool:
        """Counts one more, unless there were too many of late."""
        now = time.monotonic()
        if len(self._times) == MAX_RESTARTS and now - self._times[0] < RESTART_WINDOW_S:
            return False
        self._times.append(now)
        return True


def _serve_once(server: TritonServer, restarts: Restarts | None) -> str:
    """Serves until something dies; returns what, in words. The server is stopped by then: nobody waits for the dead.

    Args:
        server: Not started yet.
        restarts: What models that unloaded themselves may be loaded again from; None loads none again.
    """
    reloads: queue.SimpleQueue[LoadEvent] = queue.SimpleQueue()
    engines_ended: set[str] = set()
    with _log_of(server), running(server):
        err.print(
            f"[bold green]ready[/]  gRPC {server.grpc_url}   HTTP {server.settings.http_host}:{server.http_port}   "
            f"metrics {server.metrics_url}   Ctrl-C stops",
            soft_wrap=True,
        )
        while (code := server.wait(LIVENESS_POLL_S)) is None:
            health = server.health()
            if health.dead or health.hangs:
                server.stop(drain=False)
                what = f"{', '.join(health.dead)} died" if health.dead else f"no answer for {health.silent_s:.0f} s"
                return f"{what}; log: {server.log_file}"
            for model, why in health.hung.items():
                if restarts is None or model in engines_ended or not server.end_engine(model):
                    server.stop(drain=False)
                    return f"{model} hangs: {why}; log: {server.log_file}"
                engines_ended.add(model)
                err.print(f"[bold red]{model} hangs[/]: {escape(why)}; its engine is killed", soft_wrap=True)
            for model in health.unloaded:
                if restarts is None or not restarts.allow():
                    return f"{model} died; log: {server.log_file}"
                err.print(f"[bold red]{model} died[/] and was unloaded; loading it again, the others go on")
                engines_ended.discard(model)
                _reload(server, model, reloads)
            with contextlib.suppress(queue.Empty):
                event = reloads.get_nowait()
                if event.state == "failed":
                    return f"{event.model} could not be loaded again: {event.detail}; log: {server.log_file}"
                err.print(f"{event.model} {event.state} again after {event.seconds:.1f} s")
        return f"tritonserver ended by itself with code {code}; log: {server.log_file}"


def _log_of(server: TritonServer) -> contextlib.AbstractContextManager[None]:
    """Triton's log on stdout too, line by line, where JSON was asked for."""
    if server.settings.log_format == "text":
        return contextlib.nullcontext()
    return following(server.log_file, lambda line: print(triton_line(line), flush=True))


def _reload(server: TritonServer, model: str, done: queue.SimpleQueue[LoadEvent]) -> None:
    """Loads a model again beside the watch over the others; Ctrl-C does not wait for it."""
    server.forget(model)
    threading.Thread(target=lambda: done.put(server.load(model)), daemon=True).start()
