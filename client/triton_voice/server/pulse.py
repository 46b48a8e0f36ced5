"""Tells a model that hangs from one that is busy or idle: by its steps, and by asking it for a little work.

A model's process may live and serve nobody: a deadlock, a GPU that never comes back from a kernel, a stopped process.
Triton goes on calling such a model ready. So a model that has made no step for a while is asked for the smallest piece
of its work. It hangs when no answer comes and still no step is made, for as long as the operator allows. A busy model
makes steps, however many wait for it. One that says that it is full has answered only if it counts no steps: a queue
that nobody works off is full, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from triton_voice.client import TritonVoice
from triton_voice.errors import InvalidInput, ServerFull, ServerGone

TICK_S = 1.0
MAX_TICK_S = 2.0
"""What one look counts at most: time in which this program itself did not run (a paused container, a machine that
swaps) says nothing about a model."""
MAX_INTERVAL_S = 15.0
METRICS_TIMEOUT_S = 4.0
PUBLISH_S = 1.0
"""Models publish their counters every half second: later than this, an answer's own steps have been counted."""
SILENCE_SAMPLES = 320
"""20 ms at 16 kHz."""
CONVERSATION = "serve"
"""The id under which the models' logs speak of these requests."""
STEP_COUNTERS = {
    "parakeet": "parakeet_step_seconds_count",
    "magpie": "magpie_step_seconds_count",
    "nemotron": "triton_voice_llm_steps_total",
}

REFUSES_BETWEEN_STEPS = ("parakeet",)
"""Models that say that they are full from the very thread that makes their steps, so that saying it is a sign of life.
Silent callers may hold all their streams, in which no step is made."""


async def _hear(voice: TritonVoice) -> None:
    async with voice.open_stream(start_timeout_s=1.0) as stream:
        await stream.end(np.zeros(SILENCE_SAMPLES, np.int16))


async def _think(voice: TritonVoice) -> None:
    async with aclosing(voice.chat("Hi", max_tokens=1)) as deltas:
        async for _ in deltas:
            pass


async def _speak(voice: TritonVoice) -> None:
    async with aclosing(voice.speak("Hi.", max_seconds=0.2)) as chunks:
        async for _ in chunks:
            break


_WORK: dict[str, Callable[[TritonVoice], Awaitable[None]]] = {"parakeet": _hear, "nemotron": _think, "magpie": _speak}


async def ask(voice: TritonVoice, model: str) -> None:
    """Has a model do the smallest piece of its work: hear 20 ms of silence, think of one token, begin to speak a word.

    Args:
        voice: A connection to its server.
        model: One of the three models.

    Raises:
        TritonVoiceError: It does not do it. `ServerFull` says that it works, for others.
    """
    await _WORK[model](voice)


@dataclass
class _Pulse:
    """One model's state, written by the loop's thread alone.

    Attributes:
        silent_s: Seconds since it was first asked in vain; 0 while it gives signs of life.
        said: What the last request in vain came back with; empty if with nothing.
        task: Follows it.
    """

    silent_s: float = 0.0
    said: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Pulses:
    """Follows the pulse of models, in a thread of its own.

    Args:
        voice: A connection to their server that has not been used yet: it will belong to that thread.
        metrics_url: Their server's metrics.
        hang_timeout_s: What the operator allows; a model is asked when it has made no step for a quarter of it, or for
            `MAX_INTERVAL_S` if that is shorter.
    """

    def __init__(self, voice: TritonVoice, metrics_url: str, hang_timeout_s: float):
        self._voice = voice
        self._metrics_url = metrics_url
        self._hang_timeout_s = hang_timeout_s
        self._interval_s = min(MAX_INTERVAL_S, hang_timeout_s / 4)
        self._pulses: dict[str, _Pulse] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pulses", daemon=True)
        self._thread.start()

    def follow(self, model: str) -> None:
        """Begins to follow a model that has just been loaded."""
        self.forget(model)
        self._do(self._begin(model))

    def forget(self, model: str) -> None:
        """Stops following a model."""
        self._do(self._end(model))

    def hung(self) -> dict[str, str]:
        """Returns what is wrong, in words, with each model that has given no sign of life for too long."""
        found = {}
        for model, pulse in list(self._pulses.items()):
            if pulse.silent_s > self._hang_timeout_s:
                came = f"only errors ({pulse.said})" if pulse.said else "no answer"
                found[model] = f"{came} to small requests for {pulse.silent_s:.0f} s, and no step made"
        return found

    def give(self, model: str, seconds: float) -> None:
        """Gives a model some seconds more before it counts as hung."""
        if (pulse := self._pulses.get(model)) is not None:
            pulse.silent_s = self._hang_timeout_s - seconds

    def close(self) -> None:
        """Ends the thread and the connection."""
        for model in list(self._pulses):
            self.forget(model)
        self._do(self._voice.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # On the loop's thread --------------------------------------------------------------------------------------------

    async def _begin(self, model: str) -> None:
        pulse = self._pulses[model] = _Pulse()
        pulse.task = asyncio.create_task(self._follow(model, pulse))

    async def _end(self, model: str) -> None:
        pulse = self._pulses.pop(model, None)
        if pulse is not None and pulse.task is not None:
            pulse.task.cancel()
            await asyncio.gather(pulse.task, return_exceptions=True)

    async def _follow(self, model: str, pulse: _Pulse) -> None:
        seen = await self._steps(model)
        while True:
            await asyncio.sleep(self._interval_s)
            steps = await self._steps(model)
            if steps is None or steps == seen:
                steps = await self._ask(model, pulse, steps)
            seen = steps

    async def _ask(self, model: str, pulse: _Pulse, seen: float | None) -> float | None:
        """Asks until the model gives a sign of life, an answer or a step; returns how many steps it has counted."""
        asked = asyncio.create_task(self._answers(model, pulse, counts=bool(seen)))
        try:
            while True:
                began = time.monotonic()
                await asyncio.wait({asked}, timeout=TICK_S)
                if asked.done() and asked.result():
                    break
                if (steps := await self._steps(model)) is not None and steps != seen:
                    break
                if asked.done():
                    await asyncio.sleep(max(0.0, began + TICK_S - time.monotonic()))  # a sick model is not stormed
                    asked = asyncio.create_task(self._answers(model, pulse, counts=bool(seen)))
                pulse.silent_s += min(time.monotonic() - began, MAX_TICK_S)
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        pulse.silent_s, pulse.said = 0.0, ""
        await asyncio.sleep(PUBLISH_S)
        return await self._steps(model)

    async def _answers(self, model: str, pulse: _Pulse, counts: bool) -> bool:
        """Asks once; tells whether that was a sign of life. `counts` says whether the model's steps are counted."""
        try:
            await ask(self._voice, model)
        except ServerFull:  # a full queue may also be one that nobody works off: then only steps tell
            return not counts or model in REFUSES_BETWEEN_STEPS
        except InvalidInput:  # it answers; another backend than ours may know no chat
            return True
        except ServerGone:  # also the SDK's own: it does not wait for ever
            return False
        except Exception as error:  # whatever comes, the model is followed on
            pulse.said = str(error) or type(error).__name__
            return False
        return True

    async def _steps(self, model: str) -> float | None:
        return await asyncio.to_thread(steps_made, self._metrics_url, model)


def steps_made(metrics_url: str, model: str) -> float | None:
    """Returns how many steps a model has counted on a server's metrics page; None if it counts none there."""
    try:
        with contextlib.closing(urllib.request.urlopen(metrics_url, timeout=METRICS_TIMEOUT_S)) as answer:
            page = answer.read().decode()
    except (OSError, http.client.HTTPException, ValueError):  # away, or no page of metrics
        return None
    found = re.search(rf"^{STEP_COUNTERS[model]}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else None
