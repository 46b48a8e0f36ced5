"""Callers of the recogniser, in processes of their own: they share no interpreter lock with what they measure.

Load is open loop: a paced stream sends each chunk when its last sample would have been spoken, and its latency counts
from that moment, so time that a slow server makes later chunks wait is measured too (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import numpy as np

from triton_voice import TritonVoice
from triton_voice.audio import Samples
from triton_voice.errors import ServerGone, TritonVoiceError
from triton_voice.recognition import RecognitionStream
from triton_voice.types import ASR_SAMPLE_RATE

START_DELAY_S = 0.3
"""From the last caller's readiness to the first sample of the first stream."""
GRACE_S = 10.0
"""Streams that are this far behind the end of the run stop sending."""
PROGRESS_S = 0.25
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
STREAMS_PER_PROCESS = 16


@dataclass(frozen=True)
class Plan:
    """What all streams of one run do.

    Attributes:
        url: gRPC endpoint.
        audio: int16 (samples,), 16 kHz; each stream begins elsewhere in it and goes round.
        streams: How many there are.
        latency_ms: Their lookahead, which is also the length of a chunk.
        chunks: Chunks that each stream sends.
        utterance_chunks: Every so many of them close an utterance; the first ones of the streams are of other lengths,
            so that they do not all end at once.
        paced: At the speed of speech; else each as fast as it is answered.
    """

    url: str
    audio: Samples
    streams: int
    latency_ms: int
    chunks: int
    utterance_chunks: int
    paced: bool

    @property
    def period_s(self) -> float:
        """Length of a chunk in seconds."""
        return self.latency_ms / 1000

    def closes(self, stream: int, chunk: int) -> bool:
        """Whether this chunk is the last of an utterance."""
        return chunk == self.chunks - 1 or (chunk + 1 + stream) % self.utterance_chunks == 0

    def piece(self, stream: int, chunk: int) -> Samples:
        """The chunk's samples."""
        size = round(self.period_s * ASR_SAMPLE_RATE)
        start = round(len(self.audio) * stream / self.streams) + chunk * size
        return self.audio.take(range(start, start + size), mode="wrap")


@dataclass
class Tally:
    """What some streams saw.

    Attributes:
        chunk_ms: Latency of each chunk inside an utterance. Paced: from its last sample to its answer.
        final_ms: Latency of each chunk that closed an utterance, to the final transcript.
        kept_up: Streams that sent no chunk later than one chunk after it was spoken, and failed none (paced).
        errors: Failed requests by message.
        unsent: Chunks that were not sent because the run was over.
        cpu_s: Processor time of the caller's process.
        ended: Clock (monotonic, common to all processes) of the last answer.
    """

    chunk_ms: list[float] = field(default_factory=list)
    final_ms: list[float] = field(default_factory=list)
    kept_up: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    cpu_s: float = 0.0
    ended: float = 0.0

    @property
    def settled(self) -> int:
        """Chunks that need no more waiting for."""
        return len(self.chunk_ms) + len(self.final_ms) + self.errors.total() + self.unsent

    def add(self, other: Tally) -> None:
        """Adds what other streams saw."""
        self.chunk_ms += other.chunk_ms
        self.final_ms += other.final_ms
        self.kept_up += other.kept_up
        self.errors += other.errors
        self.unsent += other.unsent
        self.cpu_s += other.cpu_s
        self.ended = max(self.ended, other.ended)


def call(
    plan: Plan,
    processes: int | None = None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[int], None] = lambda chunks: None,
) -> Tally:
    """Runs all streams of a plan.

    Args:
        plan: What they do.
        processes: How many processes they are spread over; None takes one for each 16 streams, two at least.
        on_start: Called when all of them are connected and about to begin.
        on_progress: Called with the number of chunks settled so far.

    Returns:
        What they saw; `ended` is made relative to the first stream's first sample.

    Raises:
        TritonVoiceError: The server does not recognise a first piece of audio, or a caller's process died.
    """
    count = min(plan.streams, processes or max(2, -(-plan.streams // STREAMS_PER_PROCESS)))
    spawn = multiprocessing.get_context("spawn")
    callers, pipes = [], []
    for number in range(count):
        ours, theirs = spawn.Pipe()
        members = tuple(range(number, plan.streams, count))
        callers.append(spawn.Process(target=_caller, args=(plan, members, theirs), daemon=True))
        callers[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        for pipe in pipes:
            _receive(pipe, READY_TIMEOUT_S)
        on_start()
        start = time.monotonic() + START_DELAY_S
        for pipe in pipes:
            pipe.send(start)
        total, settled = Tally(), dict.fromkeys(pipes, 0)
        while pipes:
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                message = _receive(ready)
                if isinstance(message, Tally):
                    total.add(message)
                    settled[ready] = message.settled
                    pipes.remove(ready)
                else:
                    settled[ready] = message
            on_progress(sum(settled.values()))
    finally:
        for caller in callers:
            caller.terminate()
        for caller in callers:
            caller.join(STOP_TIMEOUT_S)
            caller.kill()
            caller.join()
    total.ended -= start
    return total


def _receive(pipe: Connection, timeout_s: float | None = None) -> Tally | int:
    try:
        if timeout_s is not None and not pipe.poll(timeout_s):
            raise ServerGone(f"no answer to a first piece of audio within {timeout_s:.0f} s")
        message = pipe.recv()
    except EOFError:
        raise TritonVoiceError("a caller's process died; its own message is above") from None
    if isinstance(message, TritonVoiceError):
        raise message
    return message


def _caller(plan: Plan, members: tuple[int, ...], pipe: Connection) -> None:
    """A caller's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process by SIGTERM
    try:
        asyncio.run(_until_terminated(_streams(plan, members, pipe)))
    except TritonVoiceError as error:
        pipe.send(error)
    except asyncio.CancelledError:
        pass


async def _until_terminated(work: Coroutine[None, None, None]) -> None:
    """Does some work; SIGTERM cancels it, so that it gives its slots on the server back."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


async def _streams(plan: Plan, members: tuple[int, ...], pipe: Connection) -> None:
    async with TritonVoice(plan.url) as voice:
        async with voice.open_stream(latency_ms=plan.latency_ms) as stream:  # connects; imports what is imported late
            await stream.end(np.zeros(round(plan.period_s * ASR_SAMPLE_RATE), np.int16))
        tallies = {member: Tally() for member in members}
        pipe.send(0)
        start = await asyncio.to_thread(pipe.recv)
        cpu = time.process_time()
        finished = threading.Event()
        reporting = asyncio.create_task(asyncio.to_thread(_report, pipe, list(tallies.values()), finished))
        try:
            await asyncio.gather(*(_stream(voice, plan, member, start, tallies[member]) for member in members))
        finally:
            finished.set()
            await reporting
        total = Tally()
        for tally in tallies.values():
            total.add(tally)
        total.cpu_s = time.process_time() - cpu
        pipe.send(total)


def _report(pipe: Connection, tallies: list[Tally], finished: threading.Event) -> None:
    while not finished.wait(PROGRESS_S):
        pipe.send(sum(tally.settled for tally in tallies))


async def _stream(voice: TritonVoice, plan: Plan, number: int, start: float, tally: Tally) -> None:
    """One stream's run."""
    first_sample = start + plan.period_s * number / plan.streams
    stop = first_sample + plan.chunks * plan.period_s + GRACE_S
    kept_up = plan.paced
    stream: RecognitionStream | None = None
    try:
        for chunk in range(plan.chunks):
            piece = plan.piece(number, chunk)
            spoken = first_sample + (chunk + 1 if plan.paced else 0) * plan.period_s
            await asyncio.sleep(max(0.0, spoken - time.monotonic()))
            now = time.monotonic()
            if now > stop:
                tally.unsent, kept_up = plan.chunks - chunk, False
                break
            if not plan.paced:
                spoken = now
            kept_up &= now - spoken <= plan.period_s
            stream = stream or voice.open_stream(latency_ms=plan.latency_ms)
            closes = plan.closes(number, chunk)
            try:
                await (stream.end(piece) if closes else stream.send(piece))
            except TritonVoiceError as error:
                tally.errors[f"{type(error).__name__}: {error}"] += 1
                kept_up = False
                await stream.__aexit__(None, None, None)
                stream = None
                continue
            finally:
                tally.ended = time.monotonic()
            (tally.final_ms if closes else tally.chunk_ms).append(1000 * (tally.ended - spoken))
            if closes:
                stream = None
    finally:
        if stream is not None:
            await stream.__aexit__(None, None, None)
    tally.kept_up = int(kept_up)
