"""One conversation in a terminal, with this machine's microphone and loudspeaker."""

from __future__ import annotations

import asyncio
from typing import Any

from pipecat.frames.frames import ErrorFrame
from rich.console import Console

from bot import Conversation
from voice_bot.latency import TurnLatency
from voice_bot.local_audio import LocalAudioTransport
from voice_bot.memory import Memory
from voice_bot.settings import BotSettings, TurnTaking

NAMES = {"user": "[bold cyan]you[/]", "assistant": "[bold magenta]bot[/]"}


async def talk(settings: BotSettings, console: Console) -> None:
    """Converses until it is cancelled (Ctrl-C), or until nobody has said anything for long.

    Args:
        settings: How the bot runs.
        console: Shows what is said, and what goes wrong.
    """

    def show(role: str, text: str) -> None:
        console.print(NAMES[role], end="  ")
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    async def show_wait(latency: TurnLatency) -> None:
        console.print(f"answered after {latency.total_ms:.0f} ms", style="dim")

    memory = Memory(settings.voice, settings.language)
    conversation = await Conversation.create(
        LocalAudioTransport(), settings, TurnTaking(), memory, on_latency=show_wait, on_said=show
    )

    @conversation.worker.event_handler("on_pipeline_started")
    async def on_started(worker: Any, frame: Any) -> None:
        await conversation.greet()

    @conversation.worker.event_handler("on_pipeline_error")
    async def on_error(worker: Any, frame: ErrorFrame) -> None:
        console.print(f"[red]{frame.error}[/]", highlight=False, soft_wrap=True)

    running = asyncio.create_task(conversation.run())
    try:
        await asyncio.shield(running)
    finally:
        await conversation.end()
        await running
