"""The server goes away in the middle of a conversation, and comes back."""

from __future__ import annotations

import asyncio
import contextlib

from bot_room import conversing
from pipecat.frames.frames import BotStartedSpeakingFrame, BotStoppedSpeakingFrame, UserStoppedSpeakingFrame

LONG = "The first part of this answer is long. The second part of it is longer still. And the third part ends it all."
ATTEMPTS = 6
"""How often the user asks again: gRPC connects anew only every few seconds."""


class Wire:
    """What is between the bot and the server, and can be cut: to the bot that is a server that died."""

    def __init__(self, url: str):
        self._target = url.rsplit(":", 1)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def join(self) -> None:
        """Lets everything through."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Breaks every connection; new ones are refused."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._writers.add(sink)
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        self._writers.discard(sink)
        sink.transport.abort()


@contextlib.asynccontextmanager
async def wired(server):
    wire = Wire(server.grpc)
    await wire.join()
    try:
        yield wire
    finally:
        await wire.cut()


async def answered_after_a_while(guest, answers: int) -> None:
    """Asks until there is an answer again."""
    for _ in range(ATTEMPTS):
        asked = len(guest.events.of(UserStoppedSpeakingFrame))
        failed = len(guest.events.errors)
        await guest.say()
        await guest.events.until_frame(UserStoppedSpeakingFrame, asked + 1)
        await guest.events.until(
            lambda failed=failed: (
                len(guest.events.of(BotStoppedSpeakingFrame)) > answers or len(guest.events.errors) > failed
            )
        )
        if len(guest.events.of(BotStoppedSpeakingFrame)) > answers:
            return
    raise AssertionError(f"no answer after {ATTEMPTS} questions: {guest.events.errors}")


async def test_a_server_that_goes_and_comes_back_between_turns(server, says):
    script = ["One?", "Lost?", "Two?"]
    async with wired(server) as wire, conversing(wire.url, hears=script, replies=[says("Yes.")]) as guest:
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        await wire.cut()
        await guest.say()
        await guest.events.until(lambda: guest.events.errors)
        assert "not recognised" in guest.events.errors[0]
        await wire.join()
        await answered_after_a_while(guest, 1)
        assert guest.transcript[:2] == [("user", "One?"), ("assistant", "Yes.")]
        assert guest.transcript[-1] == ("assistant", "Yes.")
        assert all(text for _, text in guest.transcript)


async def test_a_server_that_dies_in_the_middle_of_an_answer(server, says):
    replies = [says(LONG, 80), says("Yes.")]
    async with wired(server) as wire, conversing(wire.url, hears=["More.", "Again."], replies=replies) as guest:
        await guest.say()
        await guest.events.until_frame(BotStartedSpeakingFrame)
        await wire.cut()
        await guest.events.until(lambda: guest.events.errors)
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        await wire.join()
        await answered_after_a_while(guest, 1)
        heard = guest.transcript[1][1]
        assert LONG.startswith(heard) and heard != LONG
        assert guest.transcript[-1] == ("assistant", "Yes.")
