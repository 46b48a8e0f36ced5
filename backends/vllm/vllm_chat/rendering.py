"""Short chats are rendered where they are: on the engine's event loop, not in vLLM's thread for it.

vLLM renders a chat in a thread, so that a long one does not hold up the others: the template is one trip there and
back, the tokens are another, with half a dozen tasks around them. For a chat of a few sentences that takes longer than
the rendering itself (0.5 ms), and it is on the way to the first token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

#: The most characters of a chat that is rendered on the event loop: about 1,000 tokens, which hold it up for 2 ms.
SHORT_CHARACTERS = 4000
#: Every message costs the template some work, however short it is.
SHORT_MESSAGES = 40


class Renderer(Protocol):
    """What is used of vLLM's `BaseRenderer`: the same work, on the caller's thread and in vLLM's."""

    def render_chat(self, conversations: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """Render on the caller's thread."""

    async def render_chat_async(self, conversations: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """Render in vLLM's thread."""


def short_ones_at_once(renderer: Renderer) -> None:
    """Have a renderer do short chats in place of handing them to its thread.

    Args:
        renderer: vLLM's; its `render_chat_async` is replaced.
    """
    in_thread = renderer.render_chat_async

    async def render_chat_async(conversations: Sequence[Any], chat_params: Any, *args: Any, **kwargs: Any) -> Any:
        if all(is_short(messages, chat_params.chat_template_kwargs) for messages in conversations):
            return renderer.render_chat(conversations, chat_params, *args, **kwargs)
        return await in_thread(conversations, chat_params, *args, **kwargs)

    renderer.render_chat_async = render_chat_async  # type: ignore[method-assign]


def is_short(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> bool:
    """Tell whether a chat is rendered in a moment: not long, and text alone (an image may have to be fetched).

    Args:
        messages: OpenAI messages.
        options: What else the template is given, tools and documents among it.
    """
    lists = [own for own in options.values() if isinstance(own, list | tuple)]
    if len(messages) + sum(map(len, lists)) > SHORT_MESSAGES:
        return False
    left = SHORT_CHARACTERS - sum(len(str(one)) for own in lists for one in own)
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            return False
        left -= len(content) + len(message.get("reasoning") or "")
        left -= sum(len(str(call)) for call in message.get("tool_calls") or ())
    return left >= 0
