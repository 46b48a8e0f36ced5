"""The two sides of `triton-voice bench llm`, in processes of the same shape: one that asks, and what answers it.

Through Triton, a process with nothing but the SDK asks tritonserver, whose stub runs vLLM's AsyncLLM, whose engine is
one more process. Bare, the asking process holds AsyncLLM itself, and the engine is its child. Both ask the same
questions in the same closed loop, and both render the chat template and tokenise within the time that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

from triton_voice import TritonVoice
from triton_voice.errors import ServerGone, TritonVoiceError
from triton_voice.paths import project_root
from triton_voice.types import ReasoningDelta, ReplyDelta, Usage
from triton_voice_bench.observe import listener_family

MODEL = "nemotron"
QUESTION = (
    "{run} is my booking. What will the weather be like tomorrow morning, and should I take the early train? "
    "This is question {number}."
)
"""The run's number stands first, because an engine remembers prompts from their beginning: what it has kept of an
earlier run must not help."""
RUN_DIGITS = 6
"""Always as many, so that the question has as many tokens in each run."""
STOP_TIMEOUT_S = 20.0
"""What vLLM may take to end its engine."""

Part = Literal["client", "server", "backend", "engine"]
PARTS: tuple[Part, ...] = ("client", "server", "backend", "engine")
"""Who works: the asking process (bare: with AsyncLLM in it), tritonserver, its stub with AsyncLLM, vLLM's engine."""

_MARKS: dict[Part, str] = {"engine": "EngineCore", "backend": "python_backend_stub", "server": "tritonserver"}
"""What each part's process has in its name or its program's."""


@dataclass
class Round:
    """What one side did in one round, or in several.

    Attributes:
        first_token_ms: From asking a question to its first piece of text.
        token_gap_ms: From one piece of text to the next.
        render_ms: Template and tokeniser, part of first_token_ms; known of bare vLLM alone.
        tokens: Tokens of all replies.
        seconds: From the first question to the last answer.
        errors: Messages of requests that failed.
    """

    first_token_ms: list[float] = field(default_factory=list)
    token_gap_ms: list[float] = field(default_factory=list)
    render_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def arrived(self, times: Sequence[float], began: float, tokens: int) -> None:
        """Adds one reply: when its pieces came, when it was asked for, and its length."""
        if times:
            self.first_token_ms.append(1000 * (times[0] - began))
            self.token_gap_ms.extend(1000 * (b - a) for a, b in itertools.pairwise(times))
        self.tokens += tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of all streams by duration."""
        return round(self.tokens / self.seconds, 1) if self.tokens else None


@dataclass(frozen=True)
class Target:
    """What a side asks.

    Attributes:
        tokens: Length of each reply.
        run: The run's number, of `RUN_DIGITS` digits.
        url: gRPC endpoint of a server, None for bare vLLM.
        checkpoint: Folder or hub name that bare vLLM loads.
    """

    tokens: int
    run: str
    url: str | None = None
    checkpoint: str = ""

    def question(self, number: int) -> str:
        """Returns a question that no other run asks."""
        return QUESTION.format(run=self.run, number=number)


#: Asks question number n and adds to the round when each piece came and how many tokens there were.
Ask = Callable[[int, Round], Awaitable[None]]


class Side:
    """One side's process; a context manager, which waits until it is ready.

    Args:
        target: What it asks.

    Raises:
        TritonVoiceError: The server cannot be reached, or the process died while it loaded.
    """

    def __init__(self, target: Target):
        self._target = target

    def __enter__(self) -> Side:
        """Starts the process; returns when it can be asked."""
        spawn = multiprocessing.get_context("spawn")  # a fork would share gRPC's and torch's threads
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_side, args=(self._target, theirs))
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the process and its engine."""
        self._pipe.close()
        self._process.join(STOP_TIMEOUT_S)
        self._process.kill()
        self._process.join()

    def round(self, chats: Sequence[Sequence[int]]) -> Round:
        """Asks the questions of these chats: the chats at once, the questions of a chat one after the other."""
        self._pipe.send(tuple(map(tuple, chats)))
        return self._receive()

    def parts(self) -> dict[Part, psutil.Process]:
        """Returns the processes that work for this side, as far as they run on this machine."""
        own = psutil.Process(self._process.pid)
        family = listener_family(self._target.url) if self._target.url else own.children(recursive=True)
        found: dict[Part, psutil.Process] = {"client": own}
        for process in family:
            with contextlib.suppress(psutil.Error):  # one that has just ended
                name = " ".join([process.name(), *process.cmdline()[:1]])
                if part := next((part for part, mark in _MARKS.items() if mark in name), None):
                    found.setdefault(part, process)
        return found

    def _receive(self) -> Any:
        try:
            message = self._pipe.recv()
        except EOFError:
            raise TritonVoiceError("a process of the benchmark died; its own message is above") from None
        if isinstance(message, TritonVoiceError):
            raise message
        return message


def _side(target: Target, pipe: Connection) -> None:
    """The process: asks what comes through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    try:
        asyncio.run(_serve(target, pipe))
    except TritonVoiceError as error:
        pipe.send(error)


async def _serve(target: Target, pipe: Connection) -> None:
    async with _triton(target) if target.url else _bare(target) as ask:
        gc.collect()
        gc.freeze()  # to look through torch's and vLLM's objects for garbage takes longer than a reply
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                chats = await asyncio.to_thread(pipe.recv)
                pipe.send(await _round(ask, chats))


async def _round(ask: Ask, chats: Sequence[Sequence[int]]) -> Round:
    done = Round()

    async def chat(numbers: Sequence[int]) -> None:
        for number in numbers:
            try:
                await ask(number, done)
            except Exception as error:
                done.errors.append(f"{type(error).__name__}: {error}")

    began = time.perf_counter()
    await asyncio.gather(*map(chat, chats))
    done.seconds = time.perf_counter() - began
    return done


@contextlib.asynccontextmanager
async def _triton(target: Target) -> AsyncIterator[Ask]:
    assert target.url is not None
    async with TritonVoice(target.url) as voice:
        if not (await voice.ready((MODEL,))).all_ready:
            raise ServerGone(f"no server at {target.url}, or its model {MODEL} is not ready")

        async def ask(number: int, done: Round) -> None:
            times, count = [], 0
            began = time.perf_counter()
            question = target.question(number)
            async for delta in voice.chat(question, max_tokens=target.tokens, temperature=0, ignore_eos=True):
                if isinstance(delta, ReplyDelta | ReasoningDelta):
                    times.append(time.perf_counter())
                elif isinstance(delta, Usage):
                    count = delta.completion_tokens
            done.arrived(times, began, count)

        yield ask


@contextlib.asynccontextmanager
async def _bare(target: Target) -> AsyncIterator[Ask]:
    """Loads vLLM's AsyncLLM with the arguments that the server's model has."""
    backend, model = project_root() / "backends" / "vllm", project_root() / "model_repository" / MODEL
    if str(backend) not in sys.path:
        sys.path.append(str(backend))
    args = _engine_args(target.checkpoint, model)
    # Imported by name: vLLM reads its environment when it is imported, so only after it has been prepared.
    engine_args = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs(**args)
    llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(engine_args)
    sampling = importlib.import_module("vllm.sampling_params")
    tokenizer = llm.get_tokenizer()

    async def ask(number: int, done: Round) -> None:
        times, count = [], 0
        began = time.perf_counter()
        messages = [{"role": "user", "content": target.question(number)}]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        prompt = {"prompt_token_ids": tokenizer(text, add_special_tokens=False).input_ids}
        done.render_ms.append(1000 * (time.perf_counter() - began))
        params = sampling.SamplingParams(temperature=0, max_tokens=target.tokens, ignore_eos=True)
        params.output_kind = sampling.RequestOutputKind.DELTA
        async for output in llm.generate(prompt, params, uuid.uuid4().hex):
            if output.outputs[0].text:
                times.append(time.perf_counter())
            count += len(output.outputs[0].token_ids)
        done.arrived(times, began, count)

    try:
        yield ask
    finally:
        llm.shutdown()
        del type(llm).__del__  # it would do so again, when the interpreter is half gone


def _engine_args(checkpoint: str, model: Path) -> dict[str, Any]:
    """The engine arguments that the backend would use for a checkpoint on this machine."""
    settings: Any = importlib.import_module("vllm_chat.settings")
    environment = {**os.environ, "NEMOTRON_MODEL": checkpoint}
    parameters = {"NEMOTRON_CHAT_TEMPLATE_KWARGS": json.dumps({"enable_thinking": False})}
    wanted = settings.load(model / "1", MODEL, parameters, environment)
    on_cpu = not importlib.import_module("torch").cuda.is_available()
    if on_cpu:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 3)))  # as the server's engine has
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings would tear the table apart
    for name, value in settings.environment_defaults(wanted, on_cpu=on_cpu).items():
        os.environ.setdefault(name, value)
    args: dict[str, Any] = settings.resolve(wanted, on_cpu=on_cpu, environment=os.environ)
    return args
