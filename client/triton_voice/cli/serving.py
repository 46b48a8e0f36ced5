"""Starts a server with progress on the console; what `serve` and `demo` share."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from triton_voice.cli.console import err
from triton_voice.server.process import LoadEvent, TritonServer


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt, as SIGINT is one, so that both end in the same orderly stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def running(server: TritonServer) -> Iterator[TritonServer]:
    """Starts the server, shows each model's loading, and stops it at the end.

    Raises:
        ServerError: It did not come up.
    """
    with stop_on_signals():
        try:
            err.print(f"tritonserver from {server.install.origin}; log: {server.log_file}", style="dim", soft_wrap=True)
            err.print(f"weights: {server.weights.label}", style="dim", soft_wrap=True)
            with Progress(
                SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), TimeElapsedColumn(), console=err
            ) as progress:
                starting = progress.add_task("tritonserver starts", total=1)
                server.start()
                progress.update(starting, completed=1, description="tritonserver runs")
                tasks: dict[str, TaskID] = {
                    model: progress.add_task(f"{model:9} loads", total=1) for model in server.settings.only
                }

                def on_event(event: LoadEvent) -> None:
                    words = {"loading": "loads", "ready": "[green]ready[/]", "failed": "[red]failed[/]"}[event.state]
                    done = event.state != "loading"
                    progress.update(tasks[event.model], completed=done, description=f"{event.model:9} {words}")
                    if done and not err.is_terminal:
                        err.print(f"{event.model} {event.state} after {event.seconds:.1f} s")

                server.load_models(on_event)
            yield server
        finally:
            server.stop()
