"""`triton-voice talk`, with a microphone and a loudspeaker of memory in the place of this machine's."""

from __future__ import annotations

import asyncio
import contextlib
import io

from bot_room import QUESTION
from rich.console import Console

from voice_bot import talk
from voice_bot.loopback import LoopbackTransport
from voice_bot.settings import BotSettings

PATIENCE_S = 60


async def until(console: Console, words: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while words not in console.file.getvalue():
            await asyncio.sleep(0.05)


async def test_what_is_said_and_how_long_the_answer_took_is_shown(server, monkeypatch):
    room = LoopbackTransport()
    monkeypatch.setattr(talk, "LocalAudioTransport", lambda: room)
    console = Console(file=io.StringIO(), width=10_000)
    settings = BotSettings(server=server.grpc, greeting="Hello there.", reply_tokens=8)
    talking = asyncio.create_task(talk.talk(settings, console))
    await until(console, "bot  Hello there.")
    await room.say(QUESTION)
    await until(console, "you  ")
    await until(console, "answered after ")
    assert room.played
    talking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(talking, PATIENCE_S)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_is_away_is_said_to_be(monkeypatch):
    monkeypatch.setattr(talk, "LocalAudioTransport", LoopbackTransport)
    console = Console(file=io.StringIO(), width=10_000)
    talking = asyncio.create_task(talk.talk(BotSettings(server="127.0.0.1:9"), console))
    await until(console, "was not spoken")
    talking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(talking, PATIENCE_S)
