"""`triton-voice chat`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.control import strip_control_codes

from triton_voice.cli.console import URL, Url, err, fail, out
from triton_voice.client import TritonVoice
from triton_voice.errors import TritonVoiceError
from triton_voice.paths import cache_dir
from triton_voice.types import ChatFinish, ReasoningDelta, ReplyDelta, ToolCall, Usage

HELP = """\
/reset            forget the conversation
/system [TEXT]    show or set the system message, which begins a new conversation
/thinking on|off  let the model think first
/usage            what the last answer cost
/help             this
/quit             leave (so does Ctrl-D); Ctrl-C stops an answer"""
HISTORY_LINES = 1000


@dataclasses.dataclass
class Answer:
    """One reply, as far as it has come.

    Attributes:
        text: What it says.
        reasoning: What was thought before.
        tool_calls: Calls that the model asks for.
        finish_reason: Why it ended; None while it runs, or when it was stopped.
        usage: What it cost.
        first_token_ms: From the request to the first piece.
        tokens_per_s: From the first piece on.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    first_token_ms: float | None = None
    tokens_per_s: float | None = None


class Conversation:
    """Messages so far, and how to go on.

    Args:
        system: The system message; empty for none.
        reasoning: Whether the model thinks first; None leaves it to the server.
        sampling: Fields of the chat request.
    """

    def __init__(self, system: str, reasoning: bool | None, sampling: dict[str, Any]):
        self.system = system
        self.reasoning = reasoning
        self._sampling = sampling
        self._turns: list[dict[str, Any]] = []
        self.last = Answer()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._turns.clear()

    async def ask(self, voice: TritonVoice, question: str, show: bool) -> Answer:
        """Asks and shows the answer as it comes; what was said until an interruption stays in the conversation."""
        self._turns.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        self.last = answer = Answer()
        try:
            await _stream(voice, answer, [*system, *self._turns], self.reasoning, self._sampling, show)
        finally:  # a question without an answer was not asked, so that the next one does not carry it
            if answer.text:
                self._turns.append({"role": "assistant", "content": answer.text})
            elif self._turns and self._turns[-1]["role"] == "user":
                self._turns.pop()
        return answer


async def _stream(
    voice: TritonVoice,
    answer: Answer,
    messages: list[dict[str, Any]],
    reasoning: bool | None,
    sampling: dict[str, Any],
    show: bool,
) -> None:
    began, first = time.monotonic(), 0.0
    deltas = voice.chat(messages, reasoning=reasoning, **sampling)
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            if not first:
                first = time.monotonic()
                answer.first_token_ms = round((first - began) * 1000, 1)
            if isinstance(delta, ReplyDelta):
                piece = delta.text if answer.text else delta.text.lstrip("\n")  # left over from the end of the thoughts
                if show and answer.reasoning and piece and not answer.text:
                    err.print()
                answer.text += piece
                if show:
                    out.print(strip_control_codes(piece), end="", markup=False, highlight=False, soft_wrap=True)
            elif isinstance(delta, ReasoningDelta):
                answer.reasoning += delta.text
                if show:
                    text = strip_control_codes(delta.text)
                    err.print(text, end="", style="dim italic", markup=False, highlight=False, soft_wrap=True)
            elif isinstance(delta, ChatFinish):
                answer.finish_reason, answer.tool_calls = delta.reason, delta.tool_calls
            elif isinstance(delta, Usage):
                answer.usage = delta
                seconds = time.monotonic() - first
                if delta.completion_tokens > 1 and seconds > 0:
                    answer.tokens_per_s = round((delta.completion_tokens - 1) / seconds, 1)
    if show and answer.text:
        out.print()


def chat(
    prompt: Annotated[str | None, typer.Argument(help="Ask this and leave; - reads it from stdin.")] = None,
    server: Url = URL,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="Think first, shown dimmed. Default: the server's.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest word.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, with usage and times; needs a prompt.")
    ] = False,
) -> None:
    """Talk to the language model by keyboard, or ask one thing."""
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    conversation = Conversation(system, thinking, sampling)
    if prompt is None and sys.stdin.isatty():
        if as_json:
            fail("--json needs a prompt")
        _converse(conversation, server)
        return
    question = sys.stdin.read().strip() if prompt is None or prompt == "-" else prompt
    if not question:
        fail("nothing was asked: give a prompt, or text on stdin")

    async def once() -> Answer:
        async with TritonVoice(server) as voice:
            return await conversation.ask(voice, question, show=not as_json)

    answer = asyncio.run(once())
    if as_json:
        print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))


def _converse(conversation: Conversation, server: str) -> None:
    """Questions and answers until the user leaves."""
    with _line_editing(), asyncio.Runner() as runner:

        async def connect() -> TritonVoice:
            return TritonVoice(server)

        voice = runner.run(connect())
        err.print("/help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves", style="dim")
        try:
            while True:
                try:
                    line = input("\n> ").strip()
                except EOFError:
                    err.print()
                    return
                except KeyboardInterrupt:
                    err.print("\nCtrl-D leaves", style="dim")
                    continue
                if line.startswith("/"):
                    if not _command(conversation, line):
                        return
                elif line:
                    _answer(runner, conversation, voice, line)
        finally:
            runner.run(voice.close())


def _answer(runner: asyncio.Runner, conversation: Conversation, voice: TritonVoice, question: str) -> None:
    """One answer; Ctrl-C stops it, an error is told, and the conversation goes on."""
    try:
        runner.run(conversation.ask(voice, question, show=True))
    except KeyboardInterrupt:
        err.print("\nstopped", style="dim")
    except TritonVoiceError as error:
        err.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
    else:
        if conversation.last.finish_reason == "length":
            err.print("(cut off: --max-tokens, or the conversation fills the model's context)", style="dim")


def _command(conversation: Conversation, line: str) -> bool:
    """Obeys a command; False means to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.reset()
        err.print("a new conversation", style="dim")
    elif name == "/system":
        if rest:
            conversation.system = rest
            conversation.reset()
        err.print(conversation.system or "no system message", style="dim", markup=False, highlight=False)
    elif name == "/thinking" and rest in ("on", "off"):
        conversation.reasoning = rest == "on"
        err.print(f"thinking {rest}", style="dim")
    elif name == "/usage":
        err.print(_cost(conversation.last), style="dim", highlight=False)
    else:
        err.print(HELP, style="dim", markup=False, highlight=False)
    return True


def _cost(answer: Answer) -> str:
    if answer.usage is None:
        return "no answer yet"
    usage = answer.usage
    speed = f", {answer.tokens_per_s:.0f} tokens/s" if answer.tokens_per_s else ""
    return (
        f"read {usage.prompt_tokens} tokens ({usage.cached_tokens} known from before), wrote "
        f"{usage.completion_tokens} ({usage.reasoning_tokens} of them thoughts); first after "
        f"{answer.first_token_ms:.0f} ms{speed}"
    )


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Cursor keys, and the questions of earlier sessions, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = cache_dir() / "chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)  # what was asked is nobody else's business, however the file got here
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
