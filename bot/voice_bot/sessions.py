"""Who converses now, and what is kept of those who have just gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from loguru import logger

from bot import Conversation
from voice_bot.memory import Memory
from voice_bot.settings import BotSettings

MAX_KEPT = 200
"""Ended conversations that are kept at most; the oldest goes first."""

#: Makes a conversation from its memory; the transport is ready.
Starter = Callable[[Memory], Awaitable[Conversation]]


class BotFull(Exception):
    """As many people converse as may; the message says so to the next one.

    Attributes:
        reason: `full`, or `address`: from one address.
    """

    def __init__(self, message: str, reason: str = "full"):
        super().__init__(message)
        self.reason = reason


@dataclass
class _Seat:
    """One person's place.

    Attributes:
        memory: What was said.
        conversation: The one that runs; None between two of them.
        task: What runs it.
        forget: Forgets the memory when its time has come.
    """

    memory: Memory
    conversation: Conversation | None = None
    task: asyncio.Task[None] | None = None
    forget: asyncio.TimerHandle | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """The conversations of one bot.

    Args:
        settings: Has the limits.
    """

    def __init__(self, settings: BotSettings):
        self._settings = settings
        self._seats: dict[str, _Seat] = {}
        self._taken = 0
        self._taken_by: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """How many converse, those who are just connecting included."""
        return self._taken

    def transcript(self, session: str) -> list[dict[str, str]] | None:
        """Returns what was said in a conversation, `Memory.transcript`; None if it is not known (any more)."""
        seat = self._seats.get(session)
        return seat.memory.transcript() if seat else None

    @contextlib.contextmanager
    def _place(self, address: str) -> Iterator[None]:
        if address and self._taken_by[address] >= self._settings.max_per_address:
            raise BotFull(f"{self._taken_by[address]} conversations run from your address already.", "address")
        if self._taken >= self._settings.max_conversations:
            people = f"{self._taken} people talk" if self._taken > 1 else "somebody else talks"
            raise BotFull(f"All lines are busy: {people} to the bot just now. Please try again in a minute.")
        self._taken += 1
        self._taken_by[address] += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._taken_by[address] -= 1
            if not self._taken_by[address]:
                del self._taken_by[address]

    async def begin(self, session: str | None, voice: str, language: str, start: Starter, address: str = "") -> str:
        """Begins a conversation, or goes on with one.

        Args:
            session: Its id; None or an unknown one begins anew. A conversation that still runs under this id is ended
                first: its page was reloaded, or lost its connection.
            voice: The bot's voice.
            language: What both speak.
            start: Makes the conversation from its memory.
            address: Whence it comes; empty for no limit of its own.

        Returns:
            The conversation's id.

        Raises:
            BotFull: As many people converse as may, or as may from this address.
        """
        seat = self._seats.get(session) if session else None
        if seat is None:
            seat = _Seat(Memory(voice, language))
        async with seat.lock:
            await self._end(seat, None)
            seat.memory.voice, seat.memory.language = voice, language
            with contextlib.ExitStack() as place:
                place.enter_context(self._place(address))
                conversation = await start(seat.memory)
                if seat.forget is not None:
                    seat.forget.cancel()
                    seat.forget = None
                self._seats[seat.memory.id] = seat
                seat.conversation = conversation
                leave = place.pop_all()  # from here on the task gives the place back
                seat.task = asyncio.create_task(self._run(seat, conversation, leave))
        self._drop_oldest()
        return seat.memory.id

    async def close(self, reason: str) -> None:
        """Ends every conversation and forgets them all."""
        seats = list(self._seats.values())
        await asyncio.gather(*(self._end(seat, reason) for seat in seats))
        for seat in seats:
            if seat.forget is not None:
                seat.forget.cancel()
        self._seats.clear()

    async def _run(self, seat: _Seat, conversation: Conversation, leave: contextlib.ExitStack) -> None:
        with leave:
            try:
                await conversation.run()
            except Exception:
                logger.bind(conversation=seat.memory.label).exception("the conversation broke down")
            finally:
                seat.conversation = seat.task = None
                keep_s = self._settings.keep_minutes * 60
                seat.forget = asyncio.get_running_loop().call_later(keep_s, self._seats.pop, seat.memory.id, None)

    async def _end(self, seat: _Seat, reason: str | None) -> None:
        conversation, task = seat.conversation, seat.task
        if conversation is not None and task is not None:
            await conversation.end(reason)
            await task

    def _drop_oldest(self) -> None:
        ended = [session for session, seat in self._seats.items() if seat.conversation is None]
        for session in ended[: max(0, len(ended) - MAX_KEPT)]:
            if (forget := self._seats.pop(session).forget) is not None:
                forget.cancel()
