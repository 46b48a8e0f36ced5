"""Reads a machine's results as what `capacity` computes with, or estimates another machine from them.

For another machine the steps are bracketed, not measured: at best only the reading of the weights takes longer by the
ratio of the memories' bandwidths, at worst everything does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from triton_voice.errors import InvalidInput
from triton_voice_bench.capacity import GIB, Assumptions, Capacity, Check, Curve, Demand, callers, largest
from triton_voice_bench.report import Report, Row, cell
from triton_voice_bench.results import Results

FRAME_MS = 1024 / 22050 * 1000
"""Length of a frame of the synthesiser's codec."""
FIRST_CHUNK_FRAMES = 2
"""The synthesiser's default (MAGPIE_FIRST_CHUNK_FRAMES)."""
FACTOR_STEP, MOST_SLOWER = 1.01, 20.0
"""By how much steps are lengthened at a time, and at most, to agree with the server."""
ESTIMATE = "ESTIMATE, NOT MEASURED"
MISSING = "not in this file: run `triton-voice bench all --only {bench}`"


@dataclass(frozen=True)
class Other:
    """Another machine that the figures are scaled to by memory bandwidth.

    Attributes:
        name: What it is called.
        bandwidth_gb_s: Of its memory.
        memory_gib: Of its memory.
    """

    name: str
    bandwidth_gb_s: float
    memory_gib: float


Bound = Literal["best", "worst"]
BOUNDS: tuple[Bound, ...] = ("best", "worst")
FORMULAS: dict[str, str] = {
    "best": "step + bytes of the weights x (1 / {other.bandwidth_gb_s:g} GB/s - 1 / measured bandwidth): only the "
    "reading of the weights takes longer",
    "worst": "step x measured bandwidth / {other.bandwidth_gb_s:g} GB/s: everything takes longer",
}
SPARK = Other("DGX Spark", 273.0, 119.0)
"""As published: 273 GB/s, and 128 GB (119 GiB) of memory that processor and GPU share."""


def estimate(
    results: Results, assumptions: Assumptions | None = None, other: Other | None = None, bound: Bound = "worst"
) -> Capacity:
    """Turns a machine's results into streams.

    Args:
        results: Its file.
        assumptions: See there; None takes the defaults.
        other: Another machine instead, whose steps are estimated from these.
        bound: At best, or at worst.

    Raises:
        InvalidInput: There is nothing to start from, or the figures cannot be scaled.
    """
    chosen = assumptions or Assumptions()
    newest = results.newest()
    if newest is None:
        raise InvalidInput(f"{results.name}: no benchmark has a result")
    capacity = Capacity(results.name, chosen)
    if other is not None:
        capacity.name, capacity.total_bytes = f"{other.name}, at {bound}", round(other.memory_gib * GIB)
        capacity.estimate = f"{ESTIMATE}: {_check_scalable(results, other)} {FORMULAS[bound].format(other=other)}"
    else:
        memory = newest.machine.get("gpu_memory_gib") or newest.machine["memory_gib"]
        capacity.total_bytes = round(memory * GIB)
    for build in (_parakeet, _magpie, _nemotron):
        demand = build(results, chosen, _Scaling(results, other, bound))
        if isinstance(demand, Demand):
            capacity.demands[demand.name] = demand
        else:
            capacity.missing.append(demand)
    _memory(results, capacity, scaled=other is not None)
    _mix(capacity)
    if busy := [bench for bench, entry in results.benches.items() if entry.report and entry.warnings]:
        capacity.notes.append(f"the machine had other work while {', '.join(busy)} ran: the figures are too low")
    return capacity


@dataclass(frozen=True)
class _Scaling:
    """How steps become those of another machine; with `other` None they stay."""

    results: Results
    other: Other | None
    bound: Bound

    def apply(self, curve: Curve, report: Report) -> Curve:
        """Returns the curve of the other machine."""
        if self.other is None:
            return curve
        here = self._bandwidth()
        if self.bound == "worst":
            return curve.changed(here / self.other.bandwidth_gb_s)
        weights = report.settings.get("weight_bytes") or self._llm_bytes(report)
        return curve.changed(added_ms=1000 * weights / 1e9 * (1 / self.other.bandwidth_gb_s - 1 / here))

    def turn_ms(self, milliseconds: float) -> float:
        """Scales what each turn costs besides the steps."""
        if self.other is None or self.bound == "best":
            return milliseconds
        return milliseconds * self._bandwidth() / self.other.bandwidth_gb_s

    def _bandwidth(self) -> float:
        engine = self.results.report("asr-engine")
        assert engine is not None, "looked for by _check_scalable"
        return float(engine.settings["bandwidth_gb_s"])

    def _llm_bytes(self, report: Report) -> float:
        memory = self.results.report("memory")
        rows = {row["model"]: row for row in memory.rows} if memory and report.bench == "llm" else {}
        return float(rows.get("nemotron", {}).get("weight_bytes") or 0.0)


def _parakeet(results: Results, chosen: Assumptions, scaling: _Scaling) -> Demand | str:
    engine, server = results.report("asr-engine"), results.report("asr")
    curve = _curve(engine, "batch", "step_ms") or _curve(server, "step_streams", "step_ms")
    source = engine if _curve(engine, "batch", "step_ms") else server
    if curve is None or source is None:
        return f"parakeet: {MISSING.format(bench='asr-engine')}"
    curve, period = scaling.apply(curve, source), float(source.settings["latency_ms"])
    overhead = _overhead(server)
    # The benchmark's rule: a chunk is answered before the next but one is due, every time.
    check = (
        None
        if scaling.other
        else _check("asr", server, lambda slow: callers(curve.changed(slow), period, 2 * period - overhead))
    )
    slow = check.factor if check else 1.0
    within = chosen.latency_ms - overhead
    cycle = min(period, chosen.latency_ms / 2)
    target = f"{chosen.latency_ms:g} ms ({overhead:.0f} ms of them outside the steps)"
    return Demand(
        name="parakeet",
        curve=curve,
        alone=callers(curve.changed(slow), period, within, chosen.utilisation),
        cycle_ms=cycle,
        active=chosen.caller_share * cycle / period,
        share=_share(source),
        note=f"callers who speak all the time, answered within {target}",
        check=check,
    )


def _magpie(results: Results, chosen: Assumptions, scaling: _Scaling) -> Demand | str:
    engine, server = results.report("tts-engine"), results.report("tts")
    curve = _curve(engine, "batch", "step_ms") or _curve(server, "step_streams", "step_ms")
    source = engine if _curve(engine, "batch", "step_ms") else server
    if curve is None or source is None:
        return f"magpie: {MISSING.format(bench='tts-engine')}"
    curve = scaling.apply(curve, source)
    check = (
        None if scaling.other else _check("tts", server, lambda slow: largest(lambda n: slow * curve.at(n) <= FRAME_MS))
    )
    slow = check.factor if check else 1.0
    alone = largest(lambda n: slow * curve.at(n) <= chosen.utilisation * FRAME_MS)
    lone = next((row for row in (engine.rows if engine else []) if row.get("batch") == 1), {})
    begins = max(0.0, (cell(lone, "first_audio_ms.p50") or 0.0) - FIRST_CHUNK_FRAMES * (lone.get("step_ms") or 0.0))
    return Demand(
        name="magpie",
        curve=curve,
        alone=alone,
        cycle_ms=FRAME_MS,
        active=chosen.bot_share,
        share=_share(source),
        note=f"listeners who hear speech all the time without a gap: a frame of all within {FRAME_MS:.1f} ms",
        turn_ms=scaling.turn_ms(begins) * chosen.sentences,
        turn_s=chosen.turn_s,
        check=check,
    )


def _nemotron(results: Results, chosen: Assumptions, scaling: _Scaling) -> Demand | str:
    server = results.report("llm")
    rates = [(row["streams"], row.get("tokens_per_s")) for row in (server.rows if server else [])]
    # From the whole run: pieces of text may hold several tokens, so the gaps between them are not those of steps.
    curve = Curve.of([(float(streams), 1000 * streams / rate) for streams, rate in rates if rate], "llm")
    if curve is None or server is None:
        return f"nemotron: {MISSING.format(bench='llm')}"
    curve = scaling.apply(curve, server)
    alone = largest(lambda n: curve.at(n) <= chosen.utilisation * chosen.token_ms)
    active = chosen.reply_tokens * chosen.token_ms / 1000 / chosen.turn_s
    return Demand(
        name="nemotron",
        curve=curve,
        alone=alone,
        cycle_ms=chosen.token_ms,
        active=active,
        share=1.0,
        note=f"replies at once with a token every {chosen.token_ms:g} ms",
    )


def _mix(capacity: Capacity) -> None:
    """Finds how many conversations fit, and what limits them."""
    if len(capacity.demands) < 3:
        return
    by_device = largest(lambda n: sum(capacity.load(n).values()) <= capacity.assumptions.utilisation)
    by_memory = capacity.memory_limit
    capacity.conversations = by_device if by_memory is None else min(by_device, by_memory)
    if by_memory is not None and by_memory < by_device:
        capacity.bound_by = "memory"
    else:
        loads = capacity.load(max(1, by_device))
        capacity.bound_by = f"the device's time, mostly {max(loads, key=lambda name: loads[name])}"


def _memory(results: Results, capacity: Capacity, scaled: bool) -> None:
    """Adds up what the models and a conversation take."""
    report = results.report("memory")
    rows = {row["model"]: row for row in report.rows} if report else {}
    known = [rows.get(model, {}).get("state_bytes") for model in ("parakeet", "magpie", "nemotron")]
    if any(value is None for value in known):
        capacity.missing.append(f"memory: {MISSING.format(bench='memory')}")
        return
    llm = rows["nemotron"]
    cache = llm["token_bytes"] * capacity.assumptions.context_tokens + llm["sequence_bytes"]
    capacity.memory_bytes = rows["parakeet"]["state_bytes"] + rows["magpie"]["state_bytes"] + cache
    weights = sum(row.get("weight_bytes") or 0 for row in rows.values())
    turn = results.benches.get("turn")
    whole = turn.circumstances.get("memory_gib") if turn and turn.report and not scaled else None
    gpu = report is not None and report.settings.get("device") == "cuda" and not scaled
    if whole and not gpu:
        capacity.fixed_bytes = max(weights, round(whole * GIB))
        capacity.notes.append(f"the server, its models and the bot took {whole:.1f} GiB while `bench turn` ran")
    else:
        capacity.fixed_bytes = weights
        capacity.notes.append("of the models only the weights are counted: runtimes and CUDA graphs take more")


def _check_scalable(results: Results, other: Other) -> str:
    """Says what is scaled, if it can be."""
    engine = results.report("asr-engine")
    if engine is None:
        raise InvalidInput(f"no scaling to {other.name}: {MISSING.format(bench='asr-engine')}")
    if engine.settings["device"] != "cuda":
        raise InvalidInput(f"no scaling to {other.name}: a processor's steps are not limited by its memory's bandwidth")
    if engine.weights.startswith(("tiny", "small trained")):
        raise InvalidInput(f"no scaling to {other.name}: {engine.weights.split(':')[0]} are not the published shapes")
    return f"from the steps of {results.name}, whose memory was measured at {engine.settings['bandwidth_gb_s']:g} GB/s."


def _curve(report: Report | None, size: str, value: str) -> Curve | None:
    if report is None:
        return None
    points = [(cell(row, size), cell(row, value)) for row in report.rows]
    return Curve.of([(float(x), float(y)) for x, y in points if x is not None and y is not None], report.bench)


def _overhead(server: Report | None) -> float:
    """Milliseconds of a lone caller's answer that are not the step: Triton, gRPC, the SDK."""
    rows = [row for row in (server.rows if server else []) if row["streams"] == 1 and row.get("step_ms")]
    if not rows or not (answer := cell(rows[0], "chunk_ms.p50")):
        return 0.0
    return max(0.0, float(answer) - float(rows[0]["step_ms"]))


def _share(report: Report) -> float:
    """Share of the device that a step occupies: all of a GPU, its threads' cores of a processor."""
    threads, cores = report.settings.get("threads"), report.machine["cores"]
    if report.settings.get("device") != "cpu" or not threads:
        return 1.0
    return min(1.0, float(threads) / cores)


def _check(bench: str, server: Report | None, predict: Callable[[float], int]) -> Check | None:
    """Holds a prediction against the rows of a benchmark through the server.

    Args:
        bench: Its name.
        server: Its result.
        predict: Streams by the benchmark's rule, if steps take so many times as long as measured.
    """
    rows: list[Row] = [row for row in (server.rows if server else []) if row.get("kept_up") is not None]
    if not rows:
        return None
    failed: int | None = min((row["streams"] for row in rows if row["kept_up"] < row["streams"]), default=None)
    served = [row["streams"] for row in rows if row["kept_up"] == row["streams"]]
    kept_up = max((number for number in served if failed is None or number < failed), default=0)
    predicted, factor = predict(1.0), 1.0
    while failed is not None and predict(factor) >= failed and factor < MOST_SLOWER:
        factor *= FACTOR_STEP
    return Check(bench, predicted, kept_up, failed, factor)
