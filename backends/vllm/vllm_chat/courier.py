"""One thread that owns every way back to a client: it sends responses and notices clients that have gone.

Sending blocks until Triton has taken the response (about 0.15 ms), so the engine's event loop must not do it. Whoever
sends may ask for a receipt and wait for it before making the next response, so that tokens that come faster than Triton
takes them ride together in one response instead of queueing up.

Asking whether a client has cancelled costs 40 to 70 microseconds, so it is not asked per token: each open reply is
asked every `WATCH_PERIOD_S`, one at a time while nothing is to be sent, from its arrival on. A request that waits or is
in prefill is therefore seen as quickly as one that streams, and one that is dropped costs the engine the steps of that
time: a single one only where steps take longer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from vllm_chat.errors import BackendError

#: How often one client is asked whether it is still there.
WATCH_PERIOD_S = 0.02
#: At least this long between two questions, so that many clients do not slow down their own responses.
WATCH_GAP_S = 0.001
#: How long responses that are to be sent may put off a question. Only a courier that is never idle waits this long.
WATCH_PATIENCE_S = 0.004
#: Receipts are handed over together when nothing is left to send, or when there are this many: each handing over wakes
#: the event loop.
RECEIPTS = 8


class Reply(Protocol):
    """The way back to one client. Used by the courier's thread only."""

    def send(self, outputs: Mapping[str, np.ndarray], final: bool) -> None:
        """Send one response; `final` ends the request."""

    def fail(self, error: BackendError) -> None:
        """Send an error and end the request."""

    def is_cancelled(self) -> bool:
        """Tell whether the client cancelled or vanished."""


class Parcel:
    """One request's way through the courier.

    Args:
        reply: The way back to the client.
        on_gone: Called once, in the courier's thread, when the client cancelled or vanished.

    Attributes:
        reply: The way back; None once the last response has been sent.
        gone: The client is known to have left.
    """

    def __init__(self, reply: Reply, on_gone: Callable[[], None]):
        self.reply: Reply | None = reply
        self.on_gone = on_gone
        self.gone = False


class Courier:
    """The sending and watching thread. `open`, `send` and `fail` may be called from any thread.

    Args:
        log: Takes a line about a response that could not be delivered.
        on_taken: Takes receipts of responses that have left, in the courier's thread.
    """

    def __init__(self, log: Callable[[str], None], on_taken: Callable[[list[Any]], None] = lambda receipts: None):
        self._log = log
        self._on_taken = on_taken
        self._receipts: list[Any] = []
        self._actions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._watched: deque[Parcel] = deque()
        self._next_question = 0.0
        self._thread = threading.Thread(target=self._run, name="llm-courier", daemon=True)
        self._thread.start()

    def open(self, parcel: Parcel) -> None:
        """Begin to watch the client."""
        self._actions.put(lambda: self._watched.append(parcel))

    def send(self, parcel: Parcel, outputs: Mapping[str, np.ndarray], final: bool, receipt: Any = None) -> None:
        """Deliver outputs after everything sent to this client before.

        Args:
            parcel: The client's.
            outputs: Arrays by name.
            final: They end the request.
            receipt: Handed to `on_taken` once Triton has the response, or once it is clear that it never will.
        """

        def action() -> None:
            self._deliver(parcel, lambda reply: reply.send(outputs, final), final)
            if receipt is not None:
                self._receipts.append(receipt)

        self._actions.put(action)

    def fail(self, parcel: Parcel, error: BackendError) -> None:
        """Deliver an error, which ends the request. Nothing happens if it has ended already."""
        self._actions.put(lambda: self._deliver(parcel, lambda reply: reply.fail(error), True))

    def close(self) -> None:
        """Deliver what is queued, then end the thread."""
        self._actions.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            timeout = max(0.0, self._next_question - time.monotonic()) if self._watched else None
            try:
                action = self._actions.get(timeout=timeout)
            except queue.Empty:
                self._ask_next()
                continue
            try:
                if action is not None:
                    action()
                if action is None or len(self._receipts) >= RECEIPTS or self._actions.empty():
                    self._hand_over_receipts()
            except Exception as error:
                self._log(f"the courier stumbled: {type(error).__name__}: {error}")
            if action is None:
                return
            if self._watched and time.monotonic() >= self._next_question + WATCH_PATIENCE_S:
                self._ask_next()

    def _hand_over_receipts(self) -> None:
        if self._receipts:
            receipts, self._receipts = self._receipts, []
            self._on_taken(receipts)

    def _deliver(self, parcel: Parcel, deliver: Callable[[Reply], None], final: bool) -> None:
        reply = parcel.reply
        if reply is None:
            return
        if final:
            # Let go at once: Triton's object must not wait in a reference cycle for a garbage collection, which may
            # come when the shared memory behind it is gone.
            parcel.reply = None
        try:
            deliver(reply)
        except Exception as error:
            self._log(f"a response could not be delivered: {error}")
            self._notice_gone(parcel)

    def _ask_next(self) -> None:
        """Ask the client that was asked longest ago."""
        while self._watched:
            parcel = self._watched.popleft()
            reply = parcel.reply
            if reply is not None and not parcel.gone:
                break
        else:
            return
        try:
            cancelled = reply.is_cancelled()
        except Exception as error:
            self._log(f"a client could not be asked whether it cancelled: {error}")
            cancelled = True
        if cancelled:
            self._notice_gone(parcel)
        else:
            self._watched.append(parcel)
        gap = max(WATCH_GAP_S, WATCH_PERIOD_S / max(1, len(self._watched)))
        self._next_question = time.monotonic() + gap

    def _notice_gone(self, parcel: Parcel) -> None:
        if not parcel.gone:
            parcel.gone = True
            parcel.on_gone()
