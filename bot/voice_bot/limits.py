"""What one address, and one request, may ask of the bot's web server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
"""Addresses that are remembered; beyond, the one that was heard of longest ago is forgotten."""
MAX_BODY = 200_000
"""Bytes of a request; a browser's offer has about 6,000."""


class RateLimit:
    """So many requests in a minute from each address.

    Args:
        limit: Requests in a minute.
        clock: Seconds, monotonic.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic):
        self._limit = limit
        self._clock = clock
        self._asked: dict[str, deque[float]] = {}

    def wait_s(self, address: str) -> float:
        """Counts a request; returns how long its sender should wait before the next try, 0 if it may go on."""
        now = self._clock()
        asked = self._asked.pop(address, deque())
        self._asked[address] = asked  # the address heard of last is the last
        while asked and now - asked[0] >= WINDOW_S:
            asked.popleft()
        if len(asked) >= self._limit:
            return WINDOW_S - (now - asked[0])
        asked.append(now)
        if len(self._asked) > MAX_ADDRESSES:
            del self._asked[next(iter(self._asked))]
        return 0.0


class BodyLimit:
    """ASGI middleware: a request whose body is too long is answered with 413, before it is in memory.

    Args:
        app: The app behind it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client left
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                refusal = JSONResponse(
                    {"detail": f"A request may have {MAX_BODY} bytes."}, 413, {"Connection": "close"}
                )
                await refusal(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)
