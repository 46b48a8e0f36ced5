"""A capacity as a table, as Markdown and as a plot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from triton_voice_bench.capacity import GIB, MANY, Capacity, Check, Demand
from triton_voice_bench.plot import CAPTION_CHARACTERS, DPI, SIZE_INCHES, milliseconds

HEADINGS = (
    "model",
    "streams by itself",
    "step for 1, ms",
    "for 8, ms",
    "measured by",
    "in the mix, of the device",
    "checked",
)
POINTS = 60
ROOM = 1.4
"""How far the plot goes beyond the limit."""


def rows(capacity: Capacity) -> list[tuple[str, ...]]:
    """Returns the table's rows as text, under `HEADINGS`."""
    loads = capacity.load(capacity.conversations) if capacity.conversations else {}
    return [
        (
            name,
            _many(demand.alone),
            f"{demand.curve.at(1):.3g}",
            f"{demand.curve.at(8):.3g}",
            f"bench {demand.curve.source}",
            f"{100 * loads[name]:.0f} %" if loads else "-",
            _checked(demand.check),
        )
        for name, demand in capacity.demands.items()
    ]


def _checked(check: Check | None) -> str:
    return f"{_many(check.predicted)} predicted, {check.verdict} (bench {check.bench})" if check else "-"


def summary(capacity: Capacity) -> list[str]:
    """Returns what there is to say besides the table, a sentence each."""
    chosen = capacity.assumptions
    said = [capacity.estimate] if capacity.estimate else []
    said += [f"{name} by itself: {demand.note}" for name, demand in capacity.demands.items()]
    if capacity.conversations is not None:
        said += [
            f"{_many(capacity.conversations)} conversations at once, limited by {capacity.bound_by}",
            f"assumed: turns of {chosen.turn_s:g} s; the caller speaks for {100 * chosen.caller_share:.0f} % of it and "
            f"hears speech for {100 * chosen.bot_share:.0f} %; replies of {chosen.reply_tokens} tokens in "
            f"{chosen.sentences} sentences",
            f"planned for: {100 * chosen.utilisation:.0f} % of the device's time, with room for the average number of "
            f"active streams plus {chosen.deviations:g} standard deviations",
        ]
    if capacity.memory_bytes is not None and capacity.fixed_bytes is not None:
        said.append(
            f"memory: {capacity.memory_bytes / 2**20:.3g} MiB for a conversation of {chosen.context_tokens} tokens, "
            f"{capacity.fixed_bytes / GIB:.3g} GiB for the models, of {capacity.total_bytes / GIB:.3g} GiB: room for "
            f"{_many(capacity.memory_limit or 0)}"
        )
    for name, demand in capacity.demands.items():
        if demand.check and demand.check.factor > 1:
            said.append(
                f"{name}: steps are taken to be {demand.check.factor:.2f} times as long as measured, because the "
                "server kept up with fewer than the model says"
            )
    return [*said, *capacity.notes, *capacity.missing]


def table(capacity: Capacity) -> Table:
    """Returns the table for a terminal."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, title=capacity.name, title_justify="left")
    for heading in HEADINGS:
        drawn.add_column(heading, justify="right" if heading in HEADINGS[1:4] else "left", overflow="fold")
    for row in rows(capacity):
        drawn.add_row(*row)
    return drawn


def markdown(capacity: Capacity) -> list[str]:
    """Returns the lines of a Markdown section."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows(capacity)]
    return [*lines, "", *(f"- {sentence}" for sentence in summary(capacity))]


def plot(capacity: Capacity, target: Path) -> None:
    """Draws step times and, if all three models were measured, what the conversations take.

    Args:
        capacity: What is drawn.
        target: The picture; its suffix is its format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE_INCHES, layout="constrained")
    for number, demand in enumerate(capacity.demands.values()):
        _steps(left, demand, f"C{number}")
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    milliseconds(left)
    left.set_xlabel("streams in a step")
    left.set_title("time of a step (dotted: extrapolated)", fontsize="medium")
    if capacity.conversations is None:
        right.axis("off")
        right.text(0.5, 0.5, "\n".join(capacity.missing), ha="center", va="center", wrap=True, fontsize="small")
    else:
        _mix(right, capacity)
    for axis in (left, right):
        if axis.has_data():
            axis.grid(True, which="major", alpha=0.3)
            axis.legend(fontsize="small", framealpha=0.9)
    title = f"{capacity.name}: streams from measured steps"
    said = textwrap.fill(capacity.estimate, CAPTION_CHARACTERS)
    figure.suptitle(f"{title}\n{said}" if said else title, fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DPI)
    pyplot.close(figure)


def _steps(axis: Any, demand: Demand, color: str) -> None:
    measured = demand.curve
    axis.plot(measured.sizes, measured.milliseconds, "o-", color=color, markersize=4, label=demand.name)
    last = measured.sizes[-1]
    beyond = np.geomspace(last, 4 * last, 12)
    axis.plot(beyond, [measured.at(size) for size in beyond], ":", color=color, linewidth=1)


def _mix(axis: Any, capacity: Capacity) -> None:
    limit = capacity.conversations or 0
    numbers = np.linspace(0, max(2.0, ROOM * limit), POINTS)
    shares = {name: [100 * capacity.load(n)[name] for n in numbers] for name in capacity.demands}
    axis.stackplot(numbers, list(shares.values()), labels=list(shares), colors=["C0", "C1", "C2"], alpha=0.7)
    planned = 100 * capacity.assumptions.utilisation
    axis.axhline(planned, color="0.3", linewidth=1, label=f"planned for: {planned:.0f} %")
    axis.axvline(limit, color="C3", linestyle="--", linewidth=1.5, label=f"limit: {limit}")
    if (memory := capacity.memory_limit) is not None and memory < numbers[-1]:
        axis.axvline(memory, color="0.3", linestyle=":", label=f"memory: {memory}")
    axis.set_xlim(0, numbers[-1])
    axis.set_ylim(0, max(planned * ROOM, sum(share[-1] for share in shares.values())))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("conversations at once")
    axis.set_ylabel("% of the device's time")
    axis.set_title(f"the mix, limited by {capacity.bound_by}", fontsize="medium")


def _many(number: int) -> str:
    return f"more than {MANY}" if number >= MANY - 1 else str(number)
