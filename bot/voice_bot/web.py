"""The web app: the page, WebRTC signalling, and what the page needs to know. No request leaves the machine."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from aiortc.sdp import candidate_from_sdp
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from loguru import logger
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import IceServer, SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bot import Conversation
from triton_voice import TritonVoice
from voice_bot import persona
from voice_bot.latency import TurnLatency
from voice_bot.limits import BodyLimit, RateLimit
from voice_bot.memory import Memory
from voice_bot.metrics import CONTENT_TYPE, BotMetrics
from voice_bot.sessions import BotFull, Sessions
from voice_bot.settings import BotSettings, TurnTaking

UI = Path(__file__).resolve().parents[1] / "ui"
CONNECT_TIMEOUT_S = 30.0
"""How long a browser may take from its offer to its first packet before its place goes to somebody else."""
HEALTH_MAX_AGE_S = 1.0
"""How long an answer about the server's health is good for: pages ask often, the server is asked once."""
MAX_SDP = 100_000
"""Characters in an offer; a browser's have about 5,000."""
MAX_NAME, MAX_CANDIDATE, MAX_CANDIDATES = 100, 1000, 100
"""Characters of an id and of an ICE candidate; candidates in a request."""
GOING = "The bot is shutting down."
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cache-Control": "no-cache",
}


class RequestData(BaseModel):
    """What the page chooses."""

    voice: str | None = Field(default=None, max_length=MAX_NAME)
    language: str | None = Field(default=None, max_length=MAX_NAME)
    session: str | None = Field(default=None, max_length=MAX_NAME)


class Offer(BaseModel):
    """A WebRTC offer, as RTVI clients make it."""

    sdp: str = Field(min_length=1, max_length=MAX_SDP)
    type: Literal["offer"]
    pc_id: str | None = Field(default=None, max_length=MAX_NAME)
    restart_pc: bool | None = None
    request_data: RequestData = Field(default_factory=RequestData)


class Answer(BaseModel):
    """The answer to an offer."""

    sdp: str
    type: str
    pc_id: str
    session: str


class Candidate(BaseModel):
    """An ICE candidate of the browser; an empty one ends the list."""

    candidate: str = Field(max_length=MAX_CANDIDATE)
    sdp_mid: str = Field(max_length=MAX_NAME)
    sdp_mline_index: int = Field(ge=0, le=100)


class Candidates(BaseModel):
    """Further candidates for a connection."""

    pc_id: str = Field(max_length=MAX_NAME)
    candidates: list[Candidate] = Field(max_length=MAX_CANDIDATES)


class Health:
    """Whether the server can be talked to, asked at most once in `HEALTH_MAX_AGE_S`.

    Args:
        url: gRPC endpoint.
    """

    def __init__(self, url: str):
        self._voice = TritonVoice(url)
        self._lock = asyncio.Lock()
        self._asked_at = -HEALTH_MAX_AGE_S
        self._answer: dict[str, Any] = {}

    async def __call__(self) -> dict[str, Any]:
        """Returns `{"status": "ok" | "waiting", "models": {name: ready}}`."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= HEALTH_MAX_AGE_S:
                ready = await self._voice.ready()
                self._answer = {"status": "ok" if ready.all_ready else "waiting", "models": ready.models}
                self._asked_at = time.monotonic()
            return self._answer

    async def close(self) -> None:
        """Closes the connection."""
        await self._voice.close()


class Calls:
    """The WebRTC connections and the conversations over them.

    Args:
        settings: How the bot runs.
        turn: When turns begin and end.
        sessions: Where conversations are counted and remembered.
        metrics: Told what happens.
    """

    def __init__(self, settings: BotSettings, turn: TurnTaking, sessions: Sessions, metrics: BotMetrics):
        self._metrics = metrics
        self._settings = settings
        self._turn = turn
        self._sessions = sessions
        self._connections: dict[str, tuple[SmallWebRTCConnection, str]] = {}

    async def answer(self, offer: Offer, address: str) -> Answer:
        """Answers an offer: a further one of a known connection, or one that begins a conversation.

        Args:
            offer: The offer.
            address: Whence it comes.

        Raises:
            BotFull: As many people converse as may.
            ValueError: The offer cannot be understood.
        """
        known = self._connections.get(offer.pc_id) if offer.pc_id else None
        if known is not None:
            connection, session = known
            await connection.renegotiate(sdp=offer.sdp, type=offer.type, restart_pc=bool(offer.restart_pc))
        else:
            connection = SmallWebRTCConnection(ice_servers=self._ice_servers())
            try:
                await _understand(connection, offer)
                session = await self._begin(connection, offer.request_data, address)
            except BaseException:
                await connection.disconnect()
                raise
        answer = connection.get_answer()
        assert answer is not None
        self._connections[answer["pc_id"]] = (connection, session)
        return Answer(session=session, **answer)

    async def add_candidates(self, patch: Candidates) -> bool:
        """Adds ICE candidates of the browser; returns whether the connection is known.

        Raises:
            ValueError: A candidate cannot be understood.
        """
        known = self._connections.get(patch.pc_id)
        if known is None:
            return False
        for item in patch.candidates:
            candidate = None
            if item.candidate:
                try:
                    candidate = candidate_from_sdp(item.candidate.removeprefix("candidate:"))
                except (ValueError, AssertionError, IndexError) as error:
                    raise ValueError(f"this is no ICE candidate: {item.candidate!r}") from error
                candidate.sdpMid, candidate.sdpMLineIndex = item.sdp_mid, item.sdp_mline_index
            await known[0].add_ice_candidate(candidate)
        return True

    async def _begin(self, connection: SmallWebRTCConnection, chosen: RequestData, address: str) -> str:
        async def start(memory: Memory) -> Conversation:
            transport = SmallWebRTCTransport(connection, TransportParams(audio_in_enabled=True, audio_out_enabled=True))
            conversation = await Conversation.create(
                transport,
                self._settings,
                self._turn,
                memory,
                on_latency=self._count_answer,
                on_interrupted=self._metrics.interrupted.inc,
            )
            self._metrics.begun.inc()
            connected = asyncio.Event()

            @transport.event_handler("on_client_connected")
            async def on_connected(transport: Any, client: Any) -> None:
                connected.set()

            @conversation.worker.event_handler("on_pipeline_error")
            async def on_error(worker: Any, frame: Any) -> None:
                self._metrics.errors.inc()

            @transport.event_handler("on_client_disconnected")
            async def on_disconnected(transport: Any, client: Any) -> None:
                await conversation.end()

            @conversation.worker.rtvi.event_handler("on_client_ready")
            async def on_page_ready(rtvi: Any) -> None:
                await conversation.greet()

            @conversation.worker.event_handler("on_pipeline_finished")
            async def on_finished(worker: Any, frame: Any) -> None:
                connected.set()
                self._connections.pop(connection.pc_id, None)

            @conversation.worker.event_handler("on_pipeline_started")
            async def on_started(worker: Any, frame: Any) -> None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(connected.wait(), CONNECT_TIMEOUT_S)
                if not connected.is_set():
                    logger.info("the browser never connected")
                    await conversation.end()

            return conversation

        settings = self._settings
        voice, language = chosen.voice or settings.voice, chosen.language or settings.language
        return await self._sessions.begin(chosen.session, voice, language, start, address)

    async def _count_answer(self, latency: TurnLatency) -> None:
        self._metrics.answered(latency)

    def _ice_servers(self) -> list[IceServer]:
        return [IceServer(**server) for server in _for_page(self._settings, trusted=True)]


async def _understand(connection: SmallWebRTCConnection, offer: Offer) -> None:
    try:
        await connection.initialize(sdp=offer.sdp, type=offer.type)
    except Exception as error:  # aiortc raises whatever its parser stumbles over
        raise ValueError(f"the offer's SDP cannot be understood: {error}") from error
    if not any(transceiver.kind == "audio" for transceiver in connection.pc.getTransceivers()):
        raise ValueError("the offer's SDP cannot be understood: it has no audio")


def _for_page(settings: BotSettings, trusted: bool) -> list[dict[str, str]]:
    """The ICE servers; TURN servers and their password for those only who have the token."""
    servers = []
    for url in settings.stun:
        if not url.startswith("turn"):
            servers.append({"urls": url})
        elif trusted:
            account = {"username": settings.turn_username or "", "credential": settings.turn_password or ""}
            servers.append({"urls": url, **account})
    return servers


def _address(request: Request) -> str:
    """Whence a request comes; empty for this machine, whose own people and proxies have no limits each."""
    address = request.client.host if request.client else ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_loopback:
            return ""
    return address


def create_app(settings: BotSettings, turn: TurnTaking | None = None) -> FastAPI:
    """Returns the app.

    Args:
        settings: How the bot runs.
        turn: When turns begin and end; None takes the defaults and the environment.
    """
    sessions = Sessions(settings)
    metrics = BotMetrics(settings.max_conversations)
    metrics.active.set_function(lambda: sessions.active)
    calls = Calls(settings, turn or TurnTaking(), sessions, metrics)
    rate = RateLimit(settings.requests_per_minute)
    health = Health(settings.server)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await sessions.close(GOING)
        await health.close()

    app = FastAPI(title="triton-voice bot", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.sessions = sessions

    app.add_middleware(BodyLimit)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)

    @app.middleware("http")
    async def with_headers(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await proceed(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    def has_token(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        return settings.token is None or hmac.compare_digest(given.encode(), settings.token.encode())

    def unhurried(request: Request) -> None:
        """Before the token is looked at, so that it cannot be guessed at speed."""
        address = _address(request)
        if address and (wait_s := rate.wait_s(address)):
            metrics.refused.labels("rate").inc()
            raise HTTPException(429, "Too many requests from your address.", {"Retry-After": str(math.ceil(wait_s))})

    def allowed(request: Request) -> None:
        if not has_token(request):
            raise HTTPException(401, "This bot wants a token.", {"WWW-Authenticate": "Bearer"})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(UI / "index.html")

    @app.get("/api/config")
    async def config(request: Request) -> dict[str, Any]:
        return {
            "voices": settings.voices,
            "languages": settings.languages,
            "voice": settings.voice,
            "language": settings.language,
            "ice_servers": _for_page(settings, has_token(request)),
            "greeting": persona.GREETING if settings.greeting is None else settings.greeting,
            "limit": settings.max_conversations,
            "active": sessions.active,
            "auth": settings.token is not None,
            "notice": settings.notice,
        }

    @app.get("/api/health")
    async def healthy() -> dict[str, Any]:
        return await health()

    @app.get("/metrics", dependencies=[Depends(allowed)])
    async def prometheus() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/api/session/{session}", dependencies=[Depends(unhurried), Depends(allowed)])
    async def transcript(session: str) -> dict[str, Any]:
        said = sessions.transcript(session)
        if said is None:
            raise HTTPException(404, "This conversation is not known any more.")
        return {"messages": said}

    @app.post("/api/offer", dependencies=[Depends(unhurried), Depends(allowed)])
    async def offer(offer: Offer, request: Request) -> Answer:
        for name, chosen, offered in (
            ("voice", offer.request_data.voice, settings.voices),
            ("language", offer.request_data.language, settings.languages),
        ):
            if chosen is not None and chosen not in offered:
                raise HTTPException(422, f"There is no {name} {chosen!r}; there are {', '.join(offered)}.")
        try:
            return await calls.answer(offer, _address(request))
        except BotFull as error:
            metrics.refused.labels(error.reason).inc()
            raise HTTPException(503, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @app.patch("/api/offer", dependencies=[Depends(allowed)])
    async def candidates(patch: Candidates) -> dict[str, str]:
        try:
            if not await calls.add_candidates(patch):
                raise HTTPException(404, "This connection is not known (any more).")
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return {"status": "success"}

    app.mount("/ui", StaticFiles(directory=UI), name="ui")
    return app
