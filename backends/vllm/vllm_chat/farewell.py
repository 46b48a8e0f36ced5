"""Lets whoever stops the server tell the model, which Triton tells only when its last request has ended.

A tritonserver that stops waits for running requests, up to `--exit-timeout-secs`, before it calls `finalize`, and a
long reply may take longer than that. So a SIGTERM to the model's own process means that the server is stopping.

Triton's stub sits in C++ on its main thread, where Python never gets to run a signal handler. The handler in C does run
at once, and writes to the descriptor of `signal.set_wakeup_fd`; a thread reads the other end.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable


class Farewell:
    """Calls a function, once and in a thread of its own, when this process gets a SIGTERM.

    To be made in the main thread; elsewhere, where Python allows no signal handlers, it does nothing.

    Args:
        on_stop: Called without arguments.
    """

    def __init__(self, on_stop: Callable[[], None]):
        self._on_stop = on_stop
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread: threading.Thread | None = None
        try:
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        except ValueError:
            return
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="llm-farewell", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Treat the signal as before; Triton's stub ignores it."""
        if self._thread is not None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, self._before)
        self._writer.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._reader.close()

    def _listen(self) -> None:
        while numbers := self._reader.recv(64):  # nothing once the other end is closed
            if signal.SIGTERM in numbers:
                self._on_stop()
                return
