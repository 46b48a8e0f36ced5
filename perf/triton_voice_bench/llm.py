"""`triton-voice bench llm`: chat through Triton's gRPC, beside vLLM's bare engine in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_voice import TritonVoice
from triton_voice.errors import ServerGone
from triton_voice.paths import project_root
from triton_voice.types import ReasoningDelta, ReplyDelta, Usage
from triton_voice_bench.report import Report, Row, percentiles

MODEL = "nemotron"
QUESTION = "What will the weather be like tomorrow morning, and should I take the early train? This is question {}."
READING = {
    "first_token_ms": "from sending the request to its first piece of text; template, tokeniser, gRPC and all",
    "token_gap_ms": "from one piece of text to the next",
    "tokens_per_s": "tokens of all streams / duration, over all rounds",
    "reference_": "vLLM's AsyncLLM in the bench's own process, given token ids; its rounds alternate with the server's",
    "added_first_token_ms": "median of first_token_ms less the reference's",
    "share_of_reference_tokens_per_s": "tokens_per_s / reference_tokens_per_s",
}
COLUMNS = (
    ("streams", "streams"),
    ("first token ms\np50 90 95 99", "first_token_ms"),
    ("bare vLLM ms\np50 90 95 99", "reference_first_token_ms"),
    ("added\nms", "added_first_token_ms"),
    ("token gap ms\np50 90 95 99", "token_gap_ms"),
    ("tokens/s", "tokens_per_s"),
    ("bare vLLM\ntokens/s", "reference_tokens_per_s"),
    ("share", "share_of_reference_tokens_per_s"),
    ("errors", "errors"),
)

#: Asks question number n and tells when each piece came and how many tokens there were.
Ask = Callable[[int, "Tally"], Awaitable[None]]


@dataclass(frozen=True)
class LlmBench:
    """What is measured.

    Attributes:
        streams: Numbers of chats at once, a row each.
        rounds: How often each row is repeated, alternating with the reference.
        tokens: Length of each reply.
        checkpoint: Folder or hub name that the reference loads; None leaves the reference out.
    """

    streams: Sequence[int]
    rounds: int = 5
    tokens: int = 128
    checkpoint: str | None = None


@dataclass
class Tally:
    """What one side of a row did."""

    first_token_ms: list[float] = field(default_factory=list)
    token_gap_ms: list[float] = field(default_factory=list)
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


def run(
    bench: LlmBench,
    url: str,
    weights: str,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Measures a running server, and the bare engine if a checkpoint is named.

    Args:
        bench: What is measured.
        url: gRPC endpoint.
        weights: What is known of the server's weights.
        on_progress: Called with what is being done.

    Raises:
        TritonVoiceError: The server cannot be reached.
    """
    settings = {"rounds": bench.rounds, "tokens": bench.tokens, "question": QUESTION, "reading": READING}
    report = Report("llm", weights, settings)
    asyncio.run(_run(bench, url, report, on_progress))
    gc.collect()  # the reference's engine, now: vLLM's destructor does not survive the interpreter's end
    return report


async def _run(bench: LlmBench, url: str, report: Report, on_progress: Callable[[str], None]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        voice = await stack.enter_async_context(TritonVoice(url))
        if not (await voice.ready((MODEL,))).all_ready:
            raise ServerGone(f"no server at {url}, or its model {MODEL} is not ready")
        sides: dict[str, Ask] = {"": lambda number, tally: _ask_server(voice, bench.tokens, number, tally)}
        if bench.checkpoint is not None:
            on_progress("bare vLLM loads")
            sides["reference_"] = await stack.enter_async_context(_reference(bench.checkpoint, bench.tokens))
        number = 0
        for ask in sides.values():  # both warm
            await ask(number, Tally())
        for streams in bench.streams:
            tallies = {side: Tally() for side in sides}
            for turn in range(bench.rounds):
                on_progress(f"{streams} streams, round {turn + 1} of {bench.rounds}")
                for side, ask in sides.items():
                    number += streams
                    await _round(ask, range(number, number + streams), tallies[side])
            report.rows.append(_row(streams, tallies))


async def _round(ask: Ask, numbers: Sequence[int], tally: Tally) -> None:
    began = time.perf_counter()
    for result in await asyncio.gather(*(ask(number, tally) for number in numbers), return_exceptions=True):
        if isinstance(result, Exception):
            tally.errors.append(f"{type(result).__name__}: {result}")
        elif isinstance(result, BaseException):
            raise result
    tally.seconds += time.perf_counter() - began


def _row(streams: int, tallies: dict[str, Tally]) -> Row:
    row: Row = {"streams": streams}
    for side, tally in tallies.items():
        row[f"{side}first_token_ms"] = percentiles(tally.first_token_ms)
        row[f"{side}token_gap_ms"] = percentiles(tally.token_gap_ms)
        row[f"{side}tokens_per_s"] = tally.tokens_per_s
    ours, reference = tallies[""], tallies.get("reference_")
    if reference is not None and ours.first_token_ms and reference.first_token_ms:
        medians = [statistics.median(tally.first_token_ms) for tally in (ours, reference)]
        row["added_first_token_ms"] = round(medians[0] - medians[1], 3)
        row["share_of_reference_tokens_per_s"] = round((ours.tokens_per_s or 0) / (reference.tokens_per_s or 1), 4)
    row["errors"] = len(ours.errors)
    row["error_messages"] = sorted(set(ours.errors))
    return row


async def _ask_server(voice: TritonVoice, tokens: int, number: int, tally: Tally) -> None:
    times, count = [], 0
    began = time.perf_counter()
    async for delta in voice.chat(QUESTION.format(number), max_tokens=tokens, temperature=0, ignore_eos=True):
        if isinstance(delta, ReplyDelta | ReasoningDelta):
            times.append(time.perf_counter())
        elif isinstance(delta, Usage):
            count = delta.completion_tokens
    tally.arrived(times, began, count)


@contextlib.asynccontextmanager
async def _reference(checkpoint: str, tokens: int) -> AsyncIterator[Ask]:
    """Loads vLLM's AsyncLLM with the arguments that the server's model has, asked the same questions."""
    backend, model = project_root() / "backends" / "vllm", project_root() / "model_repository" / MODEL
    if str(backend) not in sys.path:
        sys.path.append(str(backend))
    args = _engine_args(checkpoint, model)
    # Imported by name: vLLM reads its environment when it is imported, so only after it has been prepared.
    engine_args = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs(**args)
    llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(engine_args)
    sampling = importlib.import_module("vllm.sampling_params")
    tokenizer = llm.get_tokenizer()

    async def ask(number: int, tally: Tally) -> None:
        messages = [{"role": "user", "content": QUESTION.format(number)}]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        prompt = {"prompt_token_ids": tokenizer(text, add_special_tokens=False).input_ids}
        params = sampling.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        params.output_kind = sampling.RequestOutputKind.DELTA
        times, count = [], 0
        began = time.perf_counter()
        async for output in llm.generate(prompt, params, uuid.uuid4().hex):
            if output.outputs[0].text:
                times.append(time.perf_counter())
            count += len(output.outputs[0].token_ids)
        tally.arrived(times, began, count)

    try:
        yield ask
    finally:
        llm.shutdown()


def _engine_args(checkpoint: str, model: Path) -> dict[str, Any]:
    """The engine arguments that the backend would use for a checkpoint on this machine."""
    settings: Any = importlib.import_module("vllm_chat.settings")
    torch: Any = importlib.import_module("torch")
    environment = {**os.environ, "NEMOTRON_MODEL": checkpoint}
    parameters = {"NEMOTRON_CHAT_TEMPLATE_KWARGS": json.dumps({"enable_thinking": False})}
    wanted = settings.load(model / "1", MODEL, parameters, environment)
    on_cpu = not torch.cuda.is_available()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings would tear the table apart
    for name, value in settings.environment_defaults(wanted, on_cpu=on_cpu).items():
        os.environ.setdefault(name, value)
    args: dict[str, Any] = settings.resolve(wanted, on_cpu=on_cpu, environment=os.environ)
    return args
