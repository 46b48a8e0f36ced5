"""Chat for people: the SDK's typed deltas and `triton-voice chat`, on the real server."""

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from llm_client import chat as raw_chat
from llm_client import joined, until_running
from triton_voice import ChatFinish, InvalidInput, ReasoningDelta, ReplyDelta, ServerGone, TritonVoice, Usage

TOOLS = [
    {
        "type": "function",
        "function": {"name": "stop_timer", "parameters": {"type": "object", "properties": {}, "required": []}},
    }
]
WAIT_S = 60


@pytest.fixture
def command():
    """`triton-voice chat`, as an installed script would run it."""
    return [sys.executable, "-c", "from triton_voice.cli.app import main; main()", "chat"]


async def collect(deltas):
    return [delta async for delta in deltas]


async def test_the_sdk_yields_the_reply_its_end_and_what_it_cost(voice):
    deltas = await collect(voice.chat("Hi", max_tokens=12, temperature=0))
    said = "".join(delta.text for delta in deltas if isinstance(delta, ReplyDelta))
    assert said == joined(await raw_chat(voice.client, max_tokens=12, temperature=0)) != ""
    assert deltas[-2] == ChatFinish("length")
    assert isinstance(deltas[-1], Usage)
    assert deltas[-1].completion_tokens == 12


async def test_thoughts_come_apart_from_the_reply(voice):
    deltas = await collect(voice.chat("Hi", reasoning=True, max_tokens=12, temperature=0))
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) != ""
    assert not [delta for delta in deltas if isinstance(delta, ReplyDelta)]
    assert deltas[-1].reasoning_tokens == 12


async def test_a_tool_call_comes_whole_with_the_end(voice):
    deltas = await collect(voice.chat("Stop!", tools=TOOLS, tool_choice="required", max_tokens=60, temperature=0))
    (finish,) = [delta for delta in deltas if isinstance(delta, ChatFinish)]
    assert finish.tool_calls[0].name == "stop_timer"
    assert finish.tool_calls[0].id


async def test_leaving_early_stops_the_engine(server, voice):
    await until_running(server, 0)
    async for delta in voice.chat("Hi", max_tokens=30000, ignore_eos=True):
        assert isinstance(delta, ReplyDelta)
        break
    await until_running(server, 0)


async def test_errors_are_the_sdks(voice):
    with pytest.raises(InvalidInput, match="did you mean temperature"):
        await collect(voice.chat("Hi", temprature=1))
    async with TritonVoice("127.0.0.1:9") as nowhere:
        with pytest.raises(ServerGone):
            await collect(nowhere.chat("Hi"))


def run(command, server, *arguments, **options):
    return subprocess.run(
        [*command, "--server", server.grpc, *arguments], capture_output=True, text=True, timeout=WAIT_S, **options
    )


def test_one_question_is_answered_on_stdout(command, server):
    asked = ["--max-tokens", "12", "--temperature", "0"]
    plain = run(command, server, "Hi", *asked)
    assert plain.returncode == 0, plain.stderr
    answer = json.loads(run(command, server, "Hi", *asked, "--json").stdout)
    assert plain.stdout.strip() == answer["text"].strip() != ""
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["first_token_ms"] > 0
    piped = run(command, server, *asked, input="Hi\n")
    assert piped.stdout == plain.stdout


def test_a_server_that_is_not_there_is_said(command):
    done = subprocess.run([*command, "--server", "127.0.0.1:9", "Hi"], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    assert "ServerGone" in done.stderr


def test_nothing_asked_is_said(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, input=" \n")
    assert done.returncode == 1
    assert "nothing was asked" in done.stderr


class Terminal:
    """`triton-voice chat` on a terminal of its own, driven as a person does."""

    def __init__(self, command, server, home, *arguments):
        self.fd, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "XDG_CACHE_HOME": str(home), "HOME": str(home), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*command, "--server", server.grpc, "--temperature", "0", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text):
        """Reads until a text appears; returns what came since the last one."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; this did: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the program ended before {text!r}: {self.seen!r}") from None
        found, _, self.seen = self.seen.partition(text)
        return found

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def tokens_read(self):
        """How long the conversation was that the last answer went on from."""
        self.type("/usage")
        return int(self.until(" tokens (").rpartition("read ")[2])

    def stop_answer(self):
        os.kill(self.process.pid, signal.SIGINT)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(command, server, tmp_path):
    terminal = Terminal(command, server, tmp_path)
    yield terminal
    terminal.close()


async def test_ctrl_c_stops_the_answer_and_not_the_program(server, terminal):
    def talk():
        terminal.until("> ")
        terminal.type("/help")
        terminal.until("/reset")
        terminal.until("> ")
        terminal.type("Tell me everything.")  # a model of random weights ends its turn only by chance

    await asyncio.to_thread(talk)
    await until_running(server, 1)
    terminal.stop_answer()

    def leave():
        terminal.until("stopped")
        terminal.until("> ")
        terminal.type("/thinking on")
        terminal.until("thinking on")
        terminal.until("> ")
        terminal.type("/reset")
        terminal.until("a new conversation")
        terminal.until("> ")
        terminal.type("/quit")
        return terminal.process.wait(WAIT_S)

    assert await asyncio.to_thread(leave) == 0
    await until_running(server, 0)


def test_reset_forgets_the_conversation(command, server, tmp_path):
    terminal = Terminal(command, server, tmp_path, "--max-tokens", "5")
    try:
        terminal.until("> ")
        terminal.type("Hello there.")
        alone = terminal.tokens_read()
        terminal.type("Hello there.")
        with_the_first = terminal.tokens_read()
        terminal.type("/reset")
        terminal.type("Hello there.")
        assert alone == terminal.tokens_read() < with_the_first
    finally:
        terminal.close()


UP, CLEAR_LINE, END_OF_INPUT = "\x1b[A", "\x15", "\x04"


def test_questions_of_earlier_sessions_come_back_and_are_the_users_alone(command, server, tmp_path):
    pytest.importorskip("readline")
    kept = tmp_path / "triton-voice" / "chat_history"
    kept.parent.mkdir()
    kept.touch(mode=0o644)  # as a careless copy of the home folder leaves it
    for keys in ("Where is the tea?\n", f"{UP}{UP}\n"):
        terminal = Terminal(command, server, tmp_path, "--max-tokens", "5")
        try:
            terminal.until("> ")
            terminal.press(keys)
            terminal.until("Where is the tea?")
            assert terminal.tokens_read() > 0  # it was asked
            terminal.until("> ")
            terminal.press(f"{UP}{UP}")
            terminal.until("Where is the tea?")
            terminal.press(CLEAR_LINE + END_OF_INPUT)
            assert terminal.process.wait(WAIT_S) == 0
        finally:
            terminal.close()
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.read_text().splitlines()[-2:] == ["Where is the tea?", "/usage"]
