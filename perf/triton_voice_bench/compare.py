"""`triton-voice bench compare`: two results side by side, row by row, with a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from triton_voice_bench.report import BUSY_LOAD, Report, cell
from triton_voice_bench.results import BENCHES, Results, row_key

Verdict = Literal["better", "worse", "within noise", "only in the first", "only in the second"]
BETTER, WORSE, SAME = "better", "worse", "within noise"
HIGHER_IS_BETTER = frozenset(
    {"rtfx", "tokens_per_s", "kept_up", "live_streams", "speedup", "requests_per_s", "share_of_reference_tokens_per_s"}
)
LOWER_IS_BETTER = frozenset(
    {"errors", "underruns", "step_ms", "server_cpu_percent", "added_first_token_ms", "state_bytes", "weight_bytes"}
)
"""Single figures by which results are compared; objects of percentiles are, by their median and 95th."""
PERCENTILES = ("p50", "p95")
NOT_COMPARED = ("reference_", "step_percentiles_ms")
"""What upstream did in the same run, and what says the same once more."""
LEAST_MS = 0.5
"""Differences below this are noise, whatever their ratio."""
TAIL_NOISE = 2
"""A 95th percentile rests on few samples: it is noise up to so many times the threshold."""
SETTINGS = ("latency_ms", "precision", "mode", "device", "tokens", "max_seconds", "reply_tokens", "model")
"""Settings that make rows incomparable if they differ."""
STYLES: dict[str, str] = {BETTER: "green", WORSE: "red", SAME: "dim"}
HEADINGS = ("benchmark", "row", "figure", "first", "second", "second / first", "verdict")


@dataclass(frozen=True)
class Difference:
    """One figure in both results.

    Attributes:
        bench: Its benchmark.
        row: What the row is of, e.g. `streams 4`.
        figure: Field of the row, e.g. `chunk_ms.p95`.
        first: Its value in the first result; None if it is not there.
        second: In the second.
        worsening: By how much the second is worse, as a share of the first; below zero if it is better. None if one of
            them is missing.
        verdict: In words.
    """

    bench: str
    row: str
    figure: str
    first: float | None
    second: float | None
    worsening: float | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """Second by first."""
        if self.first is None or self.second is None or not self.first:
            return None
        return self.second / self.first


@dataclass
class Comparison:
    """Two results.

    Attributes:
        names: Of the two.
        differences: Every figure that both have in a row of the same kind, and those that one lacks.
        notes: Why the figures may differ: hardware, weights, commits, other work on a machine, settings.
    """

    names: tuple[str, str]
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def regressions(self, limit: float) -> list[Difference]:
        """Returns the figures that are worse by more than a share of the first, and not merely noise."""
        return [d for d in self.differences if d.verdict == WORSE and d.worsening is not None and d.worsening > limit]

    def count(self, verdict: str) -> int:
        """Returns how many figures have a verdict."""
        return sum(difference.verdict == verdict for difference in self.differences)


def compare(first: Results, second: Results, threshold: float = 0.1) -> Comparison:
    """Compares two results.

    Args:
        first: What it is compared with.
        second: What is judged.
        threshold: Share of the first by which a figure must differ to be more than noise; a 95th percentile by twice
            as much.
    """
    comparison = Comparison((first.name, second.name))
    for bench in sorted({*first.benches, *second.benches}, key=_place):
        one, other = first.report(bench), second.report(bench)
        if one is None or other is None:
            lacking = second.name if other is None else first.name
            comparison.notes.append(f"{bench}: {lacking} has no result")
            continue
        comparison.notes += [f"{bench}: {note}" for note in _circumstances(first, second, bench)]
        differing = [name for name in SETTINGS if one.settings.get(name) != other.settings.get(name)]
        if differing:
            told = ", ".join(f"{n} {one.settings.get(n)} and {other.settings.get(n)}" for n in differing)
            comparison.notes.append(f"{bench}: not compared, because the settings differ: {told}")
            continue
        comparison.differences += _rows(bench, one, other, threshold)
    comparison.notes = _hardware(first, second) + comparison.notes
    return comparison


def _rows(bench: str, one: Report, other: Report, threshold: float) -> Iterator[Difference]:
    ours, theirs = ({row_key(row): row for row in report.rows} for report in (one, other))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        name = ", ".join(f"{field} {value}" for field, value in key) or "the whole"
        if key not in theirs or key not in ours:
            alone: Verdict = "only in the second" if key in theirs else "only in the first"
            yield Difference(bench, name, "", None, None, None, alone)
            continue
        for figure, higher in _figures(ours[key]):
            before, after = cell(ours[key], figure), cell(theirs[key], figure)
            if isinstance(before, int | float) and isinstance(after, int | float):
                yield _difference(bench, name, figure, float(before), float(after), higher, threshold)


def _difference(
    bench: str, row: str, figure: str, before: float, after: float, higher: bool, threshold: float
) -> Difference:
    change = after - before
    worse_by = -change if higher else change
    worsening = worse_by / abs(before) if before else (0.0 if not change else float("inf") if worse_by > 0 else -1.0)
    is_small = "_ms" in figure and abs(change) < LEAST_MS
    noise = threshold * (TAIL_NOISE if figure.endswith(".p95") else 1)
    verdict: Verdict = "within noise"
    if abs(worsening) > noise and not is_small:
        verdict = "worse" if worsening > 0 else "better"
    return Difference(bench, row, figure, before, after, worsening, verdict)


def _figures(row: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yields the figures of a row that are compared, and whether more is better."""
    for name, value in row.items():
        if name.startswith(NOT_COMPARED):
            continue
        if isinstance(value, dict):
            yield from ((f"{name}.{percentile}", False) for percentile in PERCENTILES if percentile in value)
        elif name in HIGHER_IS_BETTER or name in LOWER_IS_BETTER:
            yield name, name in HIGHER_IS_BETTER


def _hardware(first: Results, second: Results) -> list[str]:
    """Says how the machines and versions differ."""
    one, other = first.newest(), second.newest()
    if one is None or other is None:
        return []
    notes = []
    for name in ("cpu", "architecture", "cores", "memory_gib", "gpu", "driver"):
        if one.machine.get(name) != other.machine.get(name):
            notes.append(f"machine: {name} {one.machine.get(name)} and {other.machine.get(name)}")
    packages = sorted({*one.versions, *other.versions} - {"triton-voice"})
    changed = [p for p in packages if one.versions.get(p) != other.versions.get(p)]
    notes += [f"version: {p} {one.versions.get(p, 'none')} and {other.versions.get(p, 'none')}" for p in changed]
    return notes


def _circumstances(first: Results, second: Results, bench: str) -> Iterator[str]:
    """Says how the runs of a benchmark differ."""
    one, other = first.report(bench), second.report(bench)
    assert one is not None and other is not None
    if one.weights != other.weights:
        yield f"weights: {one.weights} and {other.weights}"
    if one.commit != other.commit:
        yield f"commit: {_short(one.commit)} and {_short(other.commit)}"
    for results in (first, second):
        for warning in results.benches[bench].warnings:
            yield f"{results.name}: {warning}"
    for results, report in ((first, one), (second, other)):
        if not results.benches[bench].circumstances and report.machine["load_1min"] > BUSY_LOAD:
            yield f"{results.name}: load {report.machine['load_1min']:g} before the run"


def table(comparison: Comparison, everything: bool = False) -> Table:
    """Returns the figures as a table.

    Args:
        comparison: What is shown.
        everything: Also what is within noise.
    """
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in HEADINGS:
        drawn.add_column(heading, justify="right" if heading in HEADINGS[3:6] else "left", no_wrap=True)
    for difference in comparison.differences:
        if everything or difference.verdict != SAME:
            style = STYLES.get(difference.verdict)
            drawn.add_row(*_cells(difference), style=style)
    return drawn


def markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    first, second = comparison.names
    lines = [f"# {second} compared with {first}", "", verdict(comparison), ""]
    lines += [f"- {note}" for note in comparison.notes]
    lines += ["", f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(_cells(difference))} |" for difference in comparison.differences]
    return "\n".join(lines) + "\n"


def verdict(comparison: Comparison) -> str:
    """Returns the count of verdicts in a sentence."""
    counts = [f"{comparison.count(name)} {name}" for name in (BETTER, WORSE, SAME)]
    alone = comparison.count("only in the first") + comparison.count("only in the second")
    return f"{', '.join(counts)}{f'; {alone} rows in one alone' if alone else ''}"


def _cells(difference: Difference) -> tuple[str, ...]:
    ratio = difference.ratio
    return (
        difference.bench,
        difference.row,
        difference.figure or "-",
        _number(difference.first),
        _number(difference.second),
        "-" if ratio is None else f"{ratio:.2f}",
        difference.verdict,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _short(commit: str | None) -> str:
    name, _, changed = (commit or "unknown").partition("-")
    return f"{name[:12]}{' with changes' if changed else ''}"


def _place(bench: str) -> int:
    return BENCHES.index(bench) if bench in BENCHES else len(BENCHES)
