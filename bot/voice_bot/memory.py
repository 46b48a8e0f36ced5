"""What outlives a conversation: its words, voice and language, so that a page can be reloaded."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from pipecat.processors.aggregators.llm_context import LLMContext

ID_BYTES = 16
"""Randomness of a memory's id: who knows the id can read the conversation."""
LABEL_BYTES = 6


@dataclass
class Memory:
    """One person's conversation, as far as it was heard.

    Attributes:
        voice: The bot's voice.
        language: What both speak.
        context: The messages, as the language model is given them.
        id: Unguessable name: who has it can read the conversation.
        label: Another name, for logs, traces and recordings, which opens nothing.
    """

    voice: str
    language: str
    context: LLMContext = field(default_factory=LLMContext)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(ID_BYTES))
    label: str = field(default_factory=lambda: secrets.token_hex(LABEL_BYTES))

    def transcript(self) -> list[dict[str, str]]:
        """Returns what was said: `{"role": "user" | "assistant", "text"}` in order, without tool calls and results."""
        said = []
        for message in self.context.messages:
            if not isinstance(message, dict):
                continue
            role, text = message.get("role"), message.get("content")
            if role in ("user", "assistant") and isinstance(text, str) and text:
                said.append({"role": str(role), "text": text})
        return said

    def trim(self, limit: int) -> None:
        """Forgets the oldest messages beyond a limit.

        What is left begins with the user, so that no tool's result stays without its call.
        """
        messages = self.context.messages
        if len(messages) <= limit:
            return
        for start in range(len(messages) - limit, len(messages)):
            message = messages[start]
            if isinstance(message, dict) and message.get("role") == "user":
                self.context.set_messages(messages[start:])
                return
