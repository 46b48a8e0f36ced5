"""`triton-voice bench llm`: chat through Triton's gRPC, beside vLLM's bare engine in the same run.

Both sides run all the time and are asked in turns, the first of a round being the second of the next, so that whatever
else the machine does hits both. What is compared is compared within a round, and the median over the rounds is shown.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import psutil

from triton_voice import checkpoints
from triton_voice.checkpoints import llm
from triton_voice_bench.llm_sides import PARTS, QUESTION, RUN_DIGITS, Part, Round, Side, Target
from triton_voice_bench.report import Report, Row, percentiles

GOAL_ADDED_MS, GOAL_SHARE = 3.0, 0.95
"""What chat through Triton may add to the first token, and what it must keep of bare vLLM's tokens/s."""
BUSY_PERCENT = 10.0
"""Processor time of other programs, in percent of the machine, beyond which nothing can be said."""
REFERENCE = "reference_"
RANDOM = "random:"
"""Begins the name of a checkpoint that is to be made, of one of the sizes of `triton_voice.checkpoints.llm.SHAPES`."""
READING = {
    "first_token_ms": "from sending the request to its first piece of text; template, tokeniser, gRPC and all",
    "token_gap_ms": "from one piece of text to the next; a piece is one token, or several that came together",
    "tokens_per_s": "tokens of all streams / duration, median of the rounds",
    "reference_": "vLLM's AsyncLLM in a process of its own; from the messages on too, with template and tokeniser",
    "reference_render_ms": "chat template and tokeniser, a part of reference_first_token_ms; ours does the same work",
    "added_first_token_ms": "a round's median of first_token_ms less the reference's, median of the rounds",
    "share_of_reference_tokens_per_s": "a round's tokens_per_s / the reference's, median of the rounds",
    "cpu_us_per_token": "processor time of each process: client, tritonserver, its stub with AsyncLLM, vLLM's engine",
    "others_percent": "processor time of all other programs (and of other machines on this host) in % of this machine",
    "goal": f"at most {GOAL_ADDED_MS:g} ms added and a share of {GOAL_SHARE:g}; says 'too busy' if others took more "
    f"than {BUSY_PERCENT:g} % of the machine",
}
COLUMNS = (
    ("streams", "streams"),
    ("first token ms\np50 90 95 99", "first_token_ms"),
    ("bare vLLM ms\np50 90 95 99", "reference_first_token_ms"),
    ("of it\nrendering", "reference_render_ms.p50"),
    ("added\nms", "added_first_token_ms"),
    ("gap ms\np50", "token_gap_ms.p50"),
    ("tokens/s", "tokens_per_s"),
    ("bare vLLM\ntokens/s", "reference_tokens_per_s"),
    ("share", "share_of_reference_tokens_per_s"),
    ("CPU us/token: client\nserver stub engine", "cpu_us_per_token"),
    ("bare: client\nengine", "reference_cpu_us_per_token"),
    ("other\nCPU %", "others_percent"),
    ("goal", "goal"),
    ("errors", "errors"),
)


def checkpoint(named: str) -> tuple[str, str]:
    """Finds the checkpoint to load.

    Args:
        named: A folder, a hub name, or e.g. `random:0.2B`, which is made in the cache (random weights, seconds).

    Returns:
        Its folder or hub name, and what is to be said of its weights.

    Raises:
        ValueError: There is no such size.
    """
    if not named.startswith(RANDOM):
        return named, named
    size = named.removeprefix(RANDOM)
    if size not in llm.SHAPES:
        raise ValueError(f"{named}: the sizes are {', '.join(llm.SHAPES)}")
    made = checkpoints.make(cast(checkpoints.Size, size), parts=("llm",)).llm
    return str(made), f"a Llama of size {size}, {checkpoints.RANDOM_WEIGHTS_NOTE}"


@dataclass(frozen=True)
class LlmBench:
    """What is measured.

    Attributes:
        streams: Numbers of chats at once, a row each.
        rounds: How often each row is repeated, alternating with the reference.
        questions: How many questions each chat asks in a round, one after the other. The first finds the processor's
            caches full of the other side's work.
        tokens: Length of each reply.
        checkpoint: Folder or hub name that the reference loads; None leaves the reference out.
    """

    streams: Sequence[int]
    rounds: int = 5
    questions: int = 4
    tokens: int = 128
    checkpoint: str | None = None


@dataclass
class Tally:
    """What one side of a row did.

    Attributes:
        rounds: Its rounds in order.
        cpu_s: Processor time by part.
    """

    rounds: list[Round] = field(default_factory=list)
    cpu_s: dict[Part, float] = field(default_factory=dict)

    def whole(self) -> Round:
        """Returns all rounds as one."""
        total = Round()
        for done in self.rounds:
            total.first_token_ms += done.first_token_ms
            total.token_gap_ms += done.token_gap_ms
            total.render_ms += done.render_ms
            total.tokens += done.tokens
            total.seconds += done.seconds
            total.errors += done.errors
        return total


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
    settings = {
        "rounds": bench.rounds,
        "questions": bench.questions,
        "tokens": bench.tokens,
        "question": QUESTION,
        "reading": READING,
    }
    report = Report("llm", weights, settings)
    with contextlib.ExitStack() as stack:
        this_run = f"{secrets.randbelow(10**RUN_DIGITS):0{RUN_DIGITS}}"
        sides = {"": stack.enter_context(Side(Target(bench.tokens, this_run, url=url)))}
        if bench.checkpoint is not None:
            on_progress("bare vLLM loads")
            sides[REFERENCE] = stack.enter_context(Side(Target(bench.tokens, this_run, checkpoint=bench.checkpoint)))
        number = 0
        for streams in bench.streams:
            tallies = {name: Tally() for name in sides}
            parts = {name: side.parts() for name, side in sides.items()}
            others = _Others(list(parts.values()))
            for turn in range(bench.rounds + 1):
                on_progress(f"{streams} streams, " + (f"round {turn} of {bench.rounds}" if turn else "warm-up"))
                if turn == 1:
                    others.reset()
                # The same questions for both, new ones each round: an engine remembers prompts that it has read.
                asked = streams * bench.questions
                chats = [range(number + chat, number + asked, streams) for chat in range(streams)]
                number += asked
                for name in list(sides)[:: -1 if turn % 2 else 1]:
                    _one_round(sides[name], parts[name], chats, tallies[name] if turn else Tally())
            report.rows.append(_row(streams, tallies, others.percent()))
    return report


def _one_round(side: Side, parts: Mapping[Part, psutil.Process], chats: Sequence[Sequence[int]], tally: Tally) -> None:
    before = {part: _cpu_s(process) for part, process in parts.items()}
    tally.rounds.append(side.round(chats))
    for part, process in parts.items():
        tally.cpu_s[part] = tally.cpu_s.get(part, 0.0) + _cpu_s(process) - before[part]


def _row(streams: int, tallies: Mapping[str, Tally], others_percent: float | None = None) -> Row:
    row: Row = {"streams": streams}
    for side, tally in tallies.items():
        whole = tally.whole()
        row[f"{side}first_token_ms"] = percentiles(whole.first_token_ms)
        row[f"{side}token_gap_ms"] = percentiles(whole.token_gap_ms)
        row[f"{side}tokens_per_s"] = _median([done.tokens_per_s for done in tally.rounds])
        shown = [part for part in PARTS if side != REFERENCE or part in ("client", "engine")]
        row[f"{side}cpu_us_per_token"] = {
            part: round(1e6 * tally.cpu_s[part] / whole.tokens) if part in tally.cpu_s and whole.tokens else None
            for part in shown
        }
        if whole.render_ms:
            row[f"{side}render_ms"] = percentiles(whole.render_ms)
    ours, reference = tallies[""], tallies.get(REFERENCE)
    if reference is not None:
        pairs = list(zip(ours.rounds, reference.rounds, strict=True))
        added = _median([_less(_median(a.first_token_ms), _median(b.first_token_ms)) for a, b in pairs])
        share = _median([a.tokens_per_s / b.tokens_per_s for a, b in pairs if a.tokens_per_s and b.tokens_per_s])
        if added is not None and share is not None:
            row["added_first_token_ms"] = round(added, 3)
            row["share_of_reference_tokens_per_s"] = round(share, 4)
            row["goal"] = "met" if added <= GOAL_ADDED_MS and share >= GOAL_SHARE else "missed"
            if others_percent is not None and others_percent > BUSY_PERCENT:
                row["goal"] = "too busy"
    row["others_percent"] = others_percent
    errors = ours.whole().errors
    row["errors"] = len(errors)
    row["error_messages"] = sorted(set(errors))
    return row


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


class _Others:
    """Processor time that this machine spends on anything but the benchmark."""

    def __init__(self, parts: Sequence[Mapping[Part, psutil.Process]]):
        processes = [process for side in parts for process in side.values()]
        self._ours = {process.pid: process for process in (psutil.Process(), *processes)}
        self.reset()

    def reset(self) -> None:
        """Counts from now on."""
        self._start = self._seconds()
        self._wall = time.monotonic()

    def percent(self) -> float:
        """Returns it in percent of all processors since the last `reset`."""
        wall = (time.monotonic() - self._wall) * (os.cpu_count() or 1)
        return round(max(0.0, 100 * (self._seconds() - self._start) / wall), 1)

    def _seconds(self) -> float:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # user holds the guests' time
        return busy - sum(_cpu_s(process) for process in self._ours.values())


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
