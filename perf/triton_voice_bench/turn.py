"""`triton-voice bench turn`: whole conversations in real time, from the user's last sound to the bot's first."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from triton_voice import TritonVoice
from triton_voice.audio import Samples, read_audio
from triton_voice.errors import ServerGone
from triton_voice.paths import project_root
from triton_voice_bench.report import Report, Row, percentiles

STAGES = ("endpointing_ms", "final_transcript_ms", "turn_decision_ms", "first_token_ms", "first_audio_ms")
VOICED = 500
"""int16 level from which the question counts as voice; its edges are the moments that are measured from."""
AUDIBLE = 50
"""int16 level from which what the bot plays counts as sound."""
ANSWER_TIMEOUT_S = 60.0
LISTENS_S = 1.0
"""How long the user listens to an answer before interrupting it."""
SETTLE_S = 0.3
"""Silence between a whole answer and the next question."""
HZ = 16000
READING = {
    "turn_ms": "from the last voiced sample of the question to the first audible sample of the answer, in real time",
    "endpointing_ms": "of that, the silence that voice activity detection waits for (a setting, 200 ms)",
    "final_transcript_ms": "from there until the recogniser's last word",
    "turn_decision_ms": "from there until Smart Turn and its limits call the turn over",
    "first_token_ms": "from there until the language model's first text; begun early, so often no time of its own",
    "first_audio_ms": "from there until the first piece of speech is played",
    "barge_in_ms": "from the first voiced sample across the bot to the last audible sample of its answer",
}
COLUMNS = (
    ("conversations", "streams"),
    ("turns", "turns"),
    ("voice to voice ms\np50 90 95 99", "turn_ms"),
    ("endpointing\np50", "endpointing_ms.p50"),
    ("transcript\np50", "final_transcript_ms.p50"),
    ("decision\np50", "turn_decision_ms.p50"),
    ("first token\np50", "first_token_ms.p50"),
    ("first audio\np50", "first_audio_ms.p50"),
    ("barge-in to silence ms\np50 90 95 99", "barge_in_ms"),
    ("barge-ins", "barge_ins"),
    ("errors", "errors"),
)


@dataclass(frozen=True)
class TurnBench:
    """What is measured.

    Attributes:
        streams: Numbers of conversations at once, a row each.
        turns: Turns of each conversation; every second one interrupts the answer before it.
        reply_tokens: Length of each answer at most.
        wav: What the user says; None is a recorded question.
    """

    streams: Sequence[int]
    turns: int = 20
    reply_tokens: int = 60
    wav: Path | None = None


@dataclass
class Tally:
    """What the conversations of a row gave."""

    turn_ms: list[float] = field(default_factory=list)
    barge_in_ms: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    errors: list[str] = field(default_factory=list)


def run(
    bench: TurnBench, url: str, weights: str, on_progress: Callable[[int, int, int], None] = lambda *_: None
) -> Report:
    """Measures a running server.

    Args:
        bench: What is measured.
        url: gRPC endpoint.
        weights: What is known of the server's weights.
        on_progress: Called with conversations at once, turns done and turns of the row.

    Raises:
        ServerGone: The server cannot be reached, or a model is not ready.
    """
    folder = str(project_root() / "bot")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    question = read_audio(bench.wav or str(files("triton_voice").joinpath("data/question.wav")))
    turn_taking = importlib.import_module("voice_bot.settings").TurnTaking().model_dump(mode="json")
    settings = {
        "turns": bench.turns,
        "reply_tokens": bench.reply_tokens,
        "question_s": round(len(question) / HZ, 2),
        "turn_taking": turn_taking,
        "transport": "in memory, in real time; WebRTC adds the network and the browser's buffers",
        "reading": READING,
    }
    report = Report("turn", weights, settings)
    asyncio.run(_run(bench, url, question, report, on_progress))
    return report


async def _run(
    bench: TurnBench, url: str, question: Samples, report: Report, on_progress: Callable[[int, int, int], None]
) -> None:
    async with TritonVoice(url) as voice:
        if not (await voice.ready()).all_ready:
            raise ServerGone(f"no server at {url}, or not all of its models are ready")
    for streams in bench.streams:
        tally, done = Tally(), 0

        def on_turn(streams: int = streams) -> None:
            nonlocal done
            done += 1
            on_progress(streams, done, streams * bench.turns)

        callers = [Caller(bench, url, question, tally, on_turn) for _ in range(streams)]
        await asyncio.gather(*(caller.converse() for caller in callers))
        report.rows.append(_row(streams, tally))


def _row(streams: int, tally: Tally) -> Row:
    return {
        "streams": streams,
        "turns": len(tally.turn_ms),
        "turn_ms": percentiles(tally.turn_ms),
        **{stage: percentiles(values) for stage, values in tally.stages.items()},
        "barge_in_ms": percentiles(tally.barge_in_ms),
        "barge_ins": len(tally.barge_in_ms),
        "errors": len(tally.errors),
        "error_messages": sorted(set(tally.errors)),
    }


class Caller:
    """One user in a room of their own, who asks the same question again and again.

    Args:
        bench: What is measured.
        url: gRPC endpoint.
        question: int16, shape (samples,), 16 kHz.
        tally: Takes what is measured.
        on_turn: Called after each turn.
    """

    def __init__(self, bench: TurnBench, url: str, question: Samples, tally: Tally, on_turn: Callable[[], None]):
        self._bench = bench
        self._url = url
        self._question = question
        self._tally = tally
        self._on_turn = on_turn
        voiced = np.flatnonzero(np.abs(question.astype(np.int32)) > VOICED)
        self._first_s = float(voiced[0]) / HZ
        self._last_s = float(voiced[-1]) / HZ
        self._answered: asyncio.Queue[Any] = asyncio.Queue()
        self._quiet = asyncio.Event()

    async def converse(self) -> None:
        """Has the conversation."""
        names = ("bot", "voice_bot.settings", "voice_bot.memory", "voice_bot.loopback")
        bot, settings, memory, loopback = map(importlib.import_module, names)
        chosen = settings.BotSettings(server=self._url, reply_tokens=self._bench.reply_tokens, greeting="")
        room = loopback.LoopbackTransport()
        conversation = await bot.Conversation.create(
            room,
            chosen,
            settings.TurnTaking(),
            memory.Memory(chosen.voice, chosen.language),
            observers=[_watcher(self._quiet)],
            on_latency=self._answered.put,
        )
        started = asyncio.Event()
        conversation.worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
        conversation.worker.add_event_handler("on_pipeline_error", self._on_error)
        running = asyncio.create_task(conversation.run())
        try:
            await started.wait()
            for number in range(self._bench.turns):
                await self._turn(room, interrupts=number % 2 == 1)
                self._on_turn()
        finally:
            await conversation.end()
            await running

    def _on_error(self, worker: Any, frame: Any) -> None:
        self._tally.errors.append(frame.error)

    async def _turn(self, room: Any, interrupts: bool) -> None:
        """Asks and waits for the answer's beginning; the answer before it is interrupted, or heard to its end."""
        if interrupts:
            await asyncio.sleep(LISTENS_S)
        else:
            await self._quiet.wait()
            await asyncio.sleep(SETTLE_S)
        speaking = not self._quiet.is_set()
        ended = await room.say(self._question)
        began = ended - len(self._question) / HZ
        try:
            latency = await asyncio.wait_for(self._answered.get(), ANSWER_TIMEOUT_S)
        except TimeoutError:
            self._tally.errors.append(f"no answer within {ANSWER_TIMEOUT_S:.0f} s")
            return
        first_voiced, last_voiced = began + self._first_s, began + self._last_s
        answer = await _until_audible(room, last_voiced)
        self._tally.turn_ms.append(1000 * (answer - last_voiced))
        for stage, value in latency.stages.items():
            self._tally.stages[stage].append(value)
        if speaking:
            across = [p for p in _audible(room) if first_voiced <= p.at < last_voiced]
            if across:  # else it had just ended by itself
                last = across[-1]
                self._tally.barge_in_ms.append(1000 * (last.at + len(last.audio) / last.sample_rate - first_voiced))
        room.played.clear()


def _audible(room: Any) -> list[Any]:
    return [piece for piece in room.played if np.abs(piece.audio.astype(np.int32)).max(initial=0) > AUDIBLE]


async def _until_audible(room: Any, since: float) -> float:
    """Waits for the first sound after a moment; returns when it sounded, to the sample."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        for piece in _audible(room):
            if piece.at > since:
                first = int(np.argmax(np.abs(piece.audio.astype(np.int32)) > AUDIBLE))
                return float(piece.at + first / piece.sample_rate)
        await asyncio.sleep(0.02)
    raise ServerGone("the bot answered without a sound")


def _watcher(quiet: asyncio.Event) -> Any:
    """An observer that keeps an event set while the bot is silent."""
    frames: Any = importlib.import_module("pipecat.frames.frames")
    observer: Any = importlib.import_module("pipecat.observers.base_observer").BaseObserver
    quiet.set()

    class Watcher(observer):
        def __init__(self) -> None:
            super().__init__(observe_every_push=False)

        async def on_push_frame(self, data: Any) -> None:
            if isinstance(data.frame, frames.BotStartedSpeakingFrame):
                quiet.clear()
            elif isinstance(data.frame, frames.BotStoppedSpeakingFrame):
                quiet.set()

    return Watcher()
