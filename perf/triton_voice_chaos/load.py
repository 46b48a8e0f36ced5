"""Steady load from client processes of their own, through the SDK, each call recorded.

The same requests over and over: audio, messages and seeds are fixed, so that the answer before the fault is the
reference for every answer after it. A reply that is different was lost in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.process
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from triton_voice import TritonVoice
from triton_voice.audio import Samples
from triton_voice.errors import TritonVoiceError
from triton_voice.types import ASR_SAMPLE_RATE, ChatFinish, ReplyDelta
from triton_voice_chaos.record import HUNG, OK, WRONG, Call

HUNG_S = 75.0
"""Longer than any deadline of the SDK (30 s for a piece of audio) and than `serve` takes to end a server that hangs."""
PIECE_MS = 160
RETRY_S = 0.3
"""What a patient client waits after an error before it calls again."""
PAUSE_S = 0.4
"""Between two chats or two speeches of one client."""
FLUSH_S = 0.2
STOP_TIMEOUT_S = 10.0
MESSAGE = "Could you set a timer for ten minutes?"
SENTENCE = "Your timer is set."
MAX_TOKENS = 24


@dataclass(frozen=True)
class Group:
    """Clients that share a process and a connection.

    Attributes:
        name: What they are called in the records.
        url: gRPC endpoint.
        callers: Callers who transcribe in real time.
        chats: Chats, one after the other.
        speakers: Speech requests, one after the other.
        reconnect: Each utterance and each reply has a connection of its own, as conversations behind a balancer should.
    """

    name: str
    url: str
    callers: int = 0
    chats: int = 0
    speakers: int = 0
    reconnect: bool = False


class Load:
    """Client processes that run until `stop`; `calls` grows while they do.

    Args:
        groups: One process each.
        audio: int16 (samples,), 16 kHz: what every caller says, again and again.
    """

    def __init__(self, groups: Sequence[Group], audio: Samples):
        self.calls: list[Call] = []
        self.groups = tuple(groups)
        self._audio = audio
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Load:
        """Starts the processes."""
        spawn = multiprocessing.get_context("spawn")
        for group in self.groups:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_client, args=(group, self._audio, theirs), daemon=True)
            process.start()
            theirs.close()
            reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
            reader.start()
            self._processes.append(process)
            self._readers.append(reader)
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops them; they give their slots back first."""
        self.stop()

    def stop(self) -> None:
        """Stops the processes, in order if they let us. Idempotent."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(STOP_TIMEOUT_S)
            process.kill()
            process.join()
        for reader in self._readers:
            reader.join()

    def alive(self) -> bool:
        """Whether every client process still runs: a client may fail calls, but not die."""
        return all(process.is_alive() for process in self._processes)

    def _read(self, pipe: Connection) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self.calls.extend(pipe.recv())


def _client(group: Group, audio: Samples, pipe: Connection) -> None:
    """A client process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process by SIGTERM
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_work(_Recorder(group, audio, pipe)))


async def _work(recorder: _Recorder) -> None:
    group = recorder.group
    loop = asyncio.get_running_loop()
    async with TritonVoice(group.url) as shared:

        @contextlib.asynccontextmanager
        async def connection() -> AsyncIterator[TritonVoice]:
            if not group.reconnect:
                yield shared
                return
            async with TritonVoice(group.url) as own:
                yield own

        workers = [
            *(recorder.transcribe(connection, number) for number in range(group.callers)),
            *(recorder.repeat("nemotron", connection, _chat) for _ in range(group.chats)),
            *(recorder.repeat("magpie", connection, _speak) for _ in range(group.speakers)),
        ]
        tasks = [asyncio.create_task(worker) for worker in workers]
        tasks.append(asyncio.create_task(recorder.flush_forever()))
        loop.add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
        await asyncio.gather(*tasks, return_exceptions=True)
        recorder.flush()


class _Incomplete(Exception):
    """A reply broke off after it had begun; the cause is the SDK's error."""


async def _chat(voice: TritonVoice) -> str:
    text, finished, begun = "", False, False
    try:
        async for delta in voice.chat(MESSAGE, max_tokens=MAX_TOKENS, temperature=0):
            begun = True
            text += delta.text if isinstance(delta, ReplyDelta) else ""
            finished = finished or isinstance(delta, ChatFinish)
    except TritonVoiceError as error:
        if begun:
            raise _Incomplete from error
        raise
    return text if finished else f"{text} [no end]"


async def _speak(voice: TritonVoice) -> str:
    samples, begun = 0, False
    try:
        async for chunk in voice.speak(SENTENCE, seed=1):
            begun = True
            samples += len(chunk.audio)
    except TritonVoiceError as error:
        if begun:
            raise _Incomplete from error
        raise
    return f"{samples} samples"


Connect = Callable[[], contextlib.AbstractAsyncContextManager[TritonVoice]]


class _Recorder:
    """Makes the calls of one process and writes them down."""

    def __init__(self, group: Group, audio: Samples, pipe: Connection):
        self.group = group
        self._audio = audio
        self._pipe = pipe
        self._calls: list[Call] = []
        self._references: dict[str, str] = {}

    async def flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()

    def flush(self) -> None:
        calls, self._calls = self._calls, []
        if calls:
            self._pipe.send(calls)

    async def transcribe(self, connection: Connect, number: int) -> None:
        """One caller: utterance after utterance, each piece sent when its last sample would have been spoken.

        A caller whose stream fails goes on with it once, as one would who does not look at the error's class, to see
        what the next piece is told.
        """
        size = PIECE_MS * ASR_SAMPLE_RATE // 1000
        pieces = [self._audio[start : start + size] for start in range(0, len(self._audio), size)]
        await asyncio.sleep(number * PIECE_MS / 1000 / max(1, self.group.callers))
        while True:
            async with connection() as voice, voice.open_stream() as stream:
                due, failed = time.monotonic(), False
                for index, piece in enumerate(pieces):
                    due += len(piece) / ASR_SAMPLE_RATE
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    last = index == len(pieces) - 1

                    async def send(piece: Samples = piece, last: bool = last, whole: bool = not failed) -> str | None:
                        answer = await (stream.end(piece) if last else stream.send(piece))
                        return answer.text if last and whole else None

                    answered = await self._call("parakeet", send, begun=index > 0 and not failed)
                    if failed:
                        break
                    failed = not answered
            if failed:
                await asyncio.sleep(RETRY_S)

    async def repeat(self, model: str, connection: Connect, ask: Callable[[TritonVoice], Awaitable[str]]) -> None:
        """One client that asks the same again and again."""
        while True:
            async with connection() as voice:
                answered = await self._call(model, lambda: ask(voice), begun=False)
            await asyncio.sleep(PAUSE_S if answered else RETRY_S)

    async def _call(self, model: str, ask: Callable[[], Awaitable[str | None]], begun: bool) -> bool:
        began = time.monotonic()
        outcome, detail = OK, ""
        try:
            answer = await asyncio.wait_for(ask(), HUNG_S)
            if answer is not None and answer != (expected := self._references.setdefault(model, answer)):
                outcome, detail = WRONG, f"{answer!r} instead of {expected!r}"
        except TimeoutError:
            outcome, detail = HUNG, f"no answer within {HUNG_S:.0f} s"
        except _Incomplete as broken:
            begun, outcome, detail = True, type(broken.__cause__).__name__, str(broken.__cause__)
        except TritonVoiceError as error:
            outcome, detail = type(error).__name__, str(error)
        except Exception as error:  # an exception that is not the SDK's is a defect of the SDK: shown under its name
            outcome, detail = type(error).__name__, str(error)
        cut = begun and outcome != OK
        self._calls.append(Call(model, self.group.name, began, time.monotonic(), outcome, detail, cut))
        return outcome == OK


def question(audio: np.ndarray, seconds: float = 4.0) -> Samples:
    """Returns the beginning of some audio, so that utterances end often."""
    return audio[: round(seconds * ASR_SAMPLE_RATE)]
