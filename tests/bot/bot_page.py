"""What a browser does for a conversation, without a browser: HTTP, WebRTC by aiortc, RTVI messages."""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import av
import httpx
import numpy as np
import uvicorn
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from voice_bot.settings import BotSettings
from voice_bot.web import create_app

PATIENCE_S = 60
HZ = 16000
FRAME = 320


class Microphone(MediaStreamTrack):
    """Silence, and what is said into it, in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.speech = np.zeros(0, np.int16)
        self._began = time.monotonic()
        self._sent = 0

    async def recv(self) -> av.AudioFrame:
        due = self._began + self._sent / HZ
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        piece, self.speech = self.speech[:FRAME], self.speech[FRAME:]
        samples = np.zeros(FRAME, np.int16)
        samples[: len(piece)] = piece
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = HZ, self._sent, fractions.Fraction(1, HZ)
        self._sent += FRAME
        return frame


class Browser:
    """A page that is open.

    Attributes:
        messages: What came over the data channel, in order.
        loudest: Largest int16 sample that was heard.
        session: The conversation's id.
    """

    def __init__(self, http: httpx.AsyncClient):
        self.http = http
        self.messages: list[dict[str, Any]] = []
        self.loudest = 0
        self.session: str | None = None
        self.pc_id = ""
        self.microphone = Microphone()
        self._pc = RTCPeerConnection()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._pc.addTrack(self.microphone)
        self._channel = self._pc.createDataChannel("chat", ordered=True)
        self._channel.on("open", self._say_hello)
        self._channel.on("message", lambda text: self._tasks.append(asyncio.create_task(self._note(json.loads(text)))))
        self._pc.on("track", lambda track: self._tasks.append(asyncio.create_task(self._listen(track))))

    async def offer(self) -> str:
        """Makes the offer's SDP, candidates included."""
        await self._pc.setLocalDescription(await self._pc.createOffer())
        return self._pc.localDescription.sdp

    async def connect(self, **request_data: Any) -> httpx.Response:
        """Offers, and connects if the bot accepts."""
        body = {"sdp": await self.offer(), "type": "offer", "request_data": request_data}
        response = await self.http.post("/api/offer", json=body)
        if response.status_code == 200:
            answer = response.json()
            self.session, self.pc_id = answer["session"], answer["pc_id"]
            await self._pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        return response

    def send(self, kind: str, data: Any) -> None:
        """Sends an RTVI message."""
        self._channel.send(json.dumps({"label": "rtvi-ai", "type": kind, "id": f"{time.monotonic()}", "data": data}))

    async def until(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Waits for a message."""
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: any(wanted(message) for message in self.messages)), PATIENCE_S
            )
        return next(message for message in self.messages if wanted(message))

    async def until_type(self, kind: str) -> dict[str, Any]:
        """Waits for a message of an RTVI type."""
        return await self.until(lambda message: message.get("type") == kind)

    async def until_server_says(self, kind: str) -> dict[str, Any]:
        """Waits for a server-message of a type."""
        found = await self.until(lambda m: m.get("type") == "server-message" and m["data"]["type"] == kind)
        data: dict[str, Any] = found["data"]
        return data

    async def close(self) -> None:
        """Closes the tab."""
        await self._pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _say_hello(self) -> None:
        self.send("client-ready", {"version": "2.2.0", "about": {"library": "test", "library_version": "1"}})

    async def _note(self, message: dict[str, Any]) -> None:
        async with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    async def _listen(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self.loudest = max(self.loudest, int(np.abs(frame.to_ndarray().astype(np.int32)).max()))


class Site:
    """A bot that is served.

    Attributes:
        url: Where.
        http: A client without a token.
        sessions: The bot's conversations.
    """

    def __init__(self, url: str, http: httpx.AsyncClient, sessions: Any):
        self.url = url
        self.http = http
        self.sessions = sessions
        self._open: list[Browser] = []

    def browser(self, token: str | None = None) -> Browser:
        """Opens the page in another tab."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        browser = Browser(httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE_S))
        self._open.append(browser)
        return browser

    def browser_from(self, address: str) -> Browser:
        """Opens the page on another machine, as a proxy on this one tells of it."""
        browser = self.browser()
        browser.http.headers["X-Forwarded-For"] = address
        return browser

    async def until_free(self) -> None:
        """Waits until nobody converses."""
        async with asyncio.timeout(PATIENCE_S):
            while self.sessions.active:
                await asyncio.sleep(0.05)

    async def leave(self) -> None:
        """Closes every tab."""
        for browser in self._open:
            await browser.close()
            await browser.http.aclose()


@contextlib.asynccontextmanager
async def served(settings: BotSettings) -> AsyncIterator[Site]:
    """Serves a bot on a free port, and stops it as Ctrl-C does."""
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        site = Site(url, http, app.state.sessions)
        try:
            yield site
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, PATIENCE_S)
            await site.leave()
