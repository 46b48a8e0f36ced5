"""A room in which the whole bot converses with a test: real server, real pipeline, real time, microphone of memory.

Random weights hear and say nonsense. So that a test can tell what happened, the recogniser's words are replaced by
those of the test (its timing, its interims and its errors stay), and the language model is made to say a given reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from pipecat.frames.frames import (
    BotSpeakingFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    UserSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed

from bot import Conversation, Services
from pipecat_triton import TritonLLMService, TritonSTTService
from pipecat_triton.segment import Segment
from triton_voice import read_audio
from triton_voice.types import Transcript
from voice_bot.latency import TurnLatency
from voice_bot.loopback import LoopbackTransport
from voice_bot.memory import Memory
from voice_bot.settings import BotSettings, TurnTaking

PATIENCE_S = 60
ROUNDS = 50
"""Rounds of the event loop in which the pipeline does what follows from a frame, such as writing down what was said."""
HZ = 16000
QUESTION = read_audio(str(files("triton_voice").joinpath("data/question.wav")))
"""A whole spoken question, 3.2 s, which Smart Turn takes for one."""
SILENT = 50
"""int16 level below which played audio counts as silence."""


def snippet(seconds: float) -> np.ndarray:
    """The beginning of the question from its first voice on: a short sound of speech. int16, (samples,), 16 kHz."""
    first = int(np.argmax(np.abs(QUESTION) > 1000))
    return QUESTION[first : first + int(seconds * HZ)]


class ScriptedSTT(TritonSTTService):
    """The real recogniser with the words of a script: one utterance for each segment, its interims growing by a word.

    Args:
        hears: Utterances; "" for a segment in which no word is recognised. The last one is repeated.
    """

    def __init__(self, *, hears: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self._script = itertools.chain(hears, itertools.repeat(hears[-1]))
        self._said: list[str] = []
        self._interims = 0

    async def _recognise(self, segment: Any) -> Any:
        self._said, self._interims = next(self._script).split(), 0
        return dataclasses.replace(await super()._recognise(segment), text=" ".join(self._said))

    async def _push_interim(self, segment: Any, transcript: Any) -> None:
        self._interims += 1
        await super()._push_interim(
            segment, dataclasses.replace(transcript, text=" ".join(self._said[: self._interims]))
        )

    async def rush(self, interim: str, final: str) -> None:
        """Pushes a segment's interim words and its final ones in one go, as a busy machine does."""
        segment = self._newest = Segment(HZ, None, None, "parakeet", "")
        heard = Transcript(text=final, words=(), is_final=True, audio_s=1.0, latency_s=0.0)
        self.request_finalize()
        await super()._push_interim(segment, dataclasses.replace(heard, text=interim, is_final=False))
        await self._push_final(segment, heard)


class ScriptedLLM(TritonLLMService):
    """The real language model, made to say a reply for each request.

    Args:
        replies: Fields of a chat request that force a reply, in order. The last one is repeated.
        after_tool: The same for the request that brings a tool's result; None takes the next reply.
    """

    def __init__(self, *, replies: Sequence[dict[str, Any]], after_tool: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._after_tool = after_tool
        self._replies = itertools.chain(replies, itertools.repeat(replies[-1]))
        self.requests = 0

    async def get_chat_completions(self, context: Any) -> Any:
        self.requests += 1
        brings_result = self._after_tool is not None and context.messages[-1].get("role") == "tool"
        self._settings.extra = self._after_tool if brings_result else next(self._replies)
        return await super().get_chat_completions(context)


class Events(BaseObserver):
    """The frames of a pipeline, each once, with the moment when it was pushed (`time.monotonic`)."""

    def __init__(self) -> None:
        super().__init__(observe_every_push=False)
        self.log: list[tuple[float, Frame]] = []
        self._changed = asyncio.Condition()

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, InputAudioRawFrame | OutputAudioRawFrame | MetricsFrame):
            return
        async with self._changed:
            self.log.append((time.monotonic(), data.frame))
            self._changed.notify_all()

    def of(self, *kinds: type[Frame]) -> list[Any]:
        """Frames of some kinds; those that were broadcast in both directions count once."""
        found = [frame for _, frame in self.log if isinstance(frame, kinds)]
        return [f for f in found if f.broadcast_sibling_id is None or f.id < f.broadcast_sibling_id]

    def when(self, kind: type[Frame], index: int = 0) -> float:
        """When the n-th frame of a kind was pushed."""
        wanted = self.of(kind)[index]
        return next(at for at, frame in self.log if frame is wanted)

    async def until(self, done: Callable[[], Any]) -> None:
        """Waits until something is true, and until what follows from it at once has happened."""
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(done), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"it did not happen; what happened:\n{self.story()}") from None
        for _ in range(ROUNDS):
            await asyncio.sleep(0)

    async def until_frame(self, kind: type[Frame], count: int = 1) -> Any:
        """Waits for the n-th frame of a kind."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    def story(self) -> str:
        """The frames that matter to a conversation, a line each."""
        told = [(at, f) for at, f in self.log if not isinstance(f, BotSpeakingFrame | UserSpeakingFrame)]
        return "\n".join(f"{at - told[0][0]:8.3f} {str(frame)[:160]}" for at, frame in told)

    @property
    def errors(self) -> list[str]:
        return [frame.error for frame in self.of(ErrorFrame)]


@dataclasses.dataclass
class Guest:
    """The test's side of a conversation."""

    room: LoopbackTransport
    conversation: Conversation
    memory: Memory
    events: Events
    latencies: list[TurnLatency]
    llm: ScriptedLLM

    @property
    def transcript(self) -> list[tuple[str, str]]:
        """What the context holds: role and text."""
        return [(said["role"], said["text"]) for said in self.memory.transcript()]

    async def say(self, audio: np.ndarray = QUESTION) -> float:
        """Says something; returns when its last sample was spoken."""
        return await self.room.say(audio)

    def sound(self, since: float, until: float = float("inf")) -> list[float]:
        """Moments at which audible pieces were played in a span of time."""
        return [p.at for p in self.room.played if since <= p.at < until and np.abs(p.audio).max(initial=0) > SILENT]


@contextlib.asynccontextmanager
async def conversing(
    url: str,
    *,
    hears: Sequence[str] = ("What is the time?",),
    replies: Sequence[dict[str, Any]],
    after_tool: dict[str, Any] | None = None,
    turn: TurnTaking | None = None,
    memory: Memory | None = None,
    greet: bool = False,
    **settings: Any,
) -> AsyncIterator[Guest]:
    """Runs a conversation; at the end it is over and everything of it is freed."""
    chosen = BotSettings(server=url, **settings)
    turn = turn or TurnTaking(incomplete_timeout_s=1.0)
    memory = memory or Memory(chosen.voice, chosen.language)
    services = Services.of(chosen, turn, memory)
    services.stt = ScriptedSTT(url=url, hears=hears, eager_transcripts=turn.eager)
    services.llm = llm = ScriptedLLM(
        url=url, replies=replies, after_tool=after_tool, answer_timeout_s=chosen.answer_timeout_s
    )
    room, events, latencies = LoopbackTransport(), Events(), []

    async def on_latency(latency: TurnLatency) -> None:
        latencies.append(latency)

    conversation = await Conversation.create(
        room, chosen, turn, memory, services=services, observers=[events], on_latency=on_latency
    )
    started = asyncio.Event()
    conversation.worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
    running = asyncio.create_task(conversation.run())
    try:
        await asyncio.wait_for(started.wait(), PATIENCE_S)
        if greet:
            await conversation.greet()
        yield Guest(room, conversation, memory, events, latencies, llm)
    finally:
        await conversation.end()
        await asyncio.wait_for(running, PATIENCE_S)
