"""Draws a benchmark's file."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from triton_voice_bench.report import Report, cell

SIZE_INCHES = (11.0, 4.8)
DPI = 130
CAPTION_CHARACTERS = 150


def plot(source: Path, target: Path) -> None:
    """Draws the file that a benchmark wrote.

    Args:
        source: The JSON file.
        target: The picture; its suffix is its format (png, svg, pdf).

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is no drawing for this benchmark.
    """
    draw(Report.read(source), target)


def can_plot(report: Report) -> bool:
    """Whether there is a drawing for this benchmark."""
    return report.bench in _DRAWINGS


def draw(report: Report, target: Path) -> None:
    """Draws a result; see `plot`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not can_plot(report):
        raise ValueError(f"no plot for the benchmark {report.bench!r}; there are {', '.join(_DRAWINGS)}")
    figure, axes = pyplot.subplots(1, 2, figsize=SIZE_INCHES, layout="constrained")
    _DRAWINGS[report.bench](report, *axes)
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize="small", framealpha=0.9)
    figure.suptitle(textwrap.fill(report.caption(), CAPTION_CHARACTERS), fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DPI)
    pyplot.close(figure)


def line(axis: Any, report: Report, x: str, y: str, label: str, **style: Any) -> None:
    """Draws one field of the rows over another; rows that lack it are left out."""
    points = [(cell(row, x), cell(row, y)) for row in report.rows if cell(row, y) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **style)


def powers(axis: Any, report: Report, x: str, label: str) -> None:
    """Makes the horizontal axis that of the rows' sizes, which double."""
    sizes = sorted({row[x] for row in report.rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(label)


def milliseconds(axis: Any) -> None:
    """Makes the vertical axis logarithmic, in plain numbers of milliseconds."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("ms")


def _asr(report: Report, left: Any, right: Any) -> None:
    for percentile, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        line(left, report, "streams", f"chunk_ms.{percentile}", f"chunk {percentile}", color="C0", linestyle=style)
        line(left, report, "streams", f"final_ms.{percentile}", f"final {percentile}", color="C3", linestyle=style)
    chunk_ms = report.settings["latency_ms"]
    left.axhline(chunk_ms, color="0.4", linewidth=1, label=f"one chunk ({chunk_ms} ms)")
    left.set_title(f"from the last sample to the answer ({report.settings['mode']})", fontsize="medium")
    powers(left, report, "streams", "streams")
    milliseconds(left)

    line(right, report, "streams", "server_cpu_percent", "server CPU", color="C1")
    line(right, report, "streams", "client_cpu_percent", "callers' CPU", color="C7")
    right.axhline(100 * report.machine["cores"], color="0.4", linewidth=1, label="all cores")
    right.set_ylim(bottom=0)
    right.set_ylabel("% of one core")
    right.set_title("cost", fontsize="medium")
    powers(right, report, "streams", "streams")
    steps = right.twinx()
    line(steps, report, "streams", "step_streams", "streams a step (right)", color="C2")
    line(steps, report, "streams", "step_ms", "step, ms (right)", color="C4")
    steps.set_ylim(bottom=0)
    steps.set_ylabel("streams a step; ms")
    lines, labels = steps.get_legend_handles_labels()
    for handle, label in zip(lines, labels, strict=True):  # one legend for both axes
        right.plot([], [], color=handle.get_color(), marker="o", markersize=4, label=label)


def _asr_engine(report: Report, left: Any, right: Any) -> None:
    line(left, report, "batch", "step_ms", "this engine, one step", color="C0")
    line(left, report, "batch", "reference_ms", "NeMo, eager, one stream's step", color="C3", linestyle="--")
    line(left, report, "batch", "floor_ms", "reading the weights once", color="0.4", linestyle=":")
    left.set_title(f"time of a step of {report.settings['latency_ms']} ms of audio", fontsize="medium")
    powers(left, report, "batch", "streams in the batch")
    milliseconds(left)

    line(right, report, "batch", "live_streams", "this engine", color="C0")
    line(right, report, "batch", "reference_live_streams", "NeMo, eager, one at a time", color="C3", linestyle="--")
    right.set_title("live streams that the steps imply", fontsize="medium")
    right.set_ylabel("streams in real time")
    right.set_ylim(bottom=0)
    powers(right, report, "batch", "streams in the batch")


def _llm(report: Report, left: Any, right: Any) -> None:
    for side, name, color in (("", "through Triton", "C0"), ("reference_", "bare vLLM", "C3")):
        for percentile, style in (("p50", "-"), ("p95", "--")):
            field = f"{side}first_token_ms.{percentile}"
            line(left, report, "streams", field, f"{name} {percentile}", color=color, linestyle=style)
        line(right, report, "streams", f"{side}tokens_per_s", name, color=color)
    left.set_title("time to first token", fontsize="medium")
    powers(left, report, "streams", "chats at once")
    milliseconds(left)
    right.set_title("all chats together", fontsize="medium")
    right.set_ylabel("tokens/s")
    right.set_ylim(bottom=0)
    powers(right, report, "streams", "chats at once")


def _tts(report: Report, left: Any, right: Any) -> None:
    for percentile, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        field = f"first_audio_ms.{percentile}"
        line(left, report, "streams", field, f"first audio {percentile}", color="C0", linestyle=style)
    line(left, report, "streams", "chunk_gap_ms.p95", "chunk gap p95", color="C2", linestyle="--")
    left.set_title("time to first audio", fontsize="medium")
    powers(left, report, "streams", "listeners")
    milliseconds(left)

    line(right, report, "streams", "rtfx", "x real time, all together", color="C0")
    line(right, report, "streams", "streams", "real time", color="0.4", linestyle=":")
    right.set_ylabel("seconds of audio a second")
    right.set_ylim(bottom=0)
    right.set_title("throughput", fontsize="medium")
    powers(right, report, "streams", "listeners")


def _tts_engine(report: Report, left: Any, right: Any) -> None:
    line(left, report, "batch", "step_ms", "this engine, one frame of all", color="C0")
    line(left, report, "batch", "reference_ms", "NeMo's do_tts, one frame of one", color="C3", linestyle="--")
    line(left, report, "batch", "floor_ms", "reading the weights once", color="0.4", linestyle=":")
    left.set_title("time of a frame", fontsize="medium")
    powers(left, report, "batch", "utterances at once")
    milliseconds(left)

    line(right, report, "batch", "rtfx", "this engine", color="C0")
    line(right, report, "batch", "reference_rtfx", "NeMo's do_tts, one after the other", color="C3", linestyle="--")
    right.set_title("throughput", fontsize="medium")
    right.set_ylabel("seconds of audio a second")
    right.set_ylim(bottom=0)
    powers(right, report, "batch", "utterances at once")


def _turn(report: Report, left: Any, right: Any) -> None:
    names = ("endpointing", "final_transcript", "turn_decision", "first_token", "first_audio")
    places = range(len(report.rows))
    reached = [0.0] * len(report.rows)
    for name in names:
        medians = [cell(row, f"{name}_ms.p50") or 0.0 for row in report.rows]
        left.bar(places, medians, 0.5, bottom=reached, label=name.replace("_", " "))
        reached = [low + value for low, value in zip(reached, medians, strict=True)]
    left.set_xticks(places, [str(row["streams"]) for row in report.rows])
    left.set_xlabel("conversations")
    left.set_ylabel("ms")
    left.set_title("the wait for an answer, median of each stage", fontsize="medium")

    left.set_xlim(-0.6, len(report.rows) + 0.6)  # room for the legend

    for number, row in enumerate(report.rows):
        of = f", {row['streams']} at once" if len(report.rows) > 1 else ""
        for field, label, style in (("turn_ms", "voice to voice", "-"), ("barge_in_ms", "barge-in to silence", "--")):
            if row[field] is not None:
                points = row[field]
                right.plot(list(points), list(points.values()), style, color=f"C{number}", marker="o", label=label + of)
    right.set_title("voice to voice, and barge-in to silence", fontsize="medium")
    right.set_xlabel("percentile of the turns")
    right.set_ylabel("ms")
    right.set_ylim(bottom=0)


_DRAWINGS = {
    "asr": _asr,
    "asr-engine": _asr_engine,
    "llm": _llm,
    "tts": _tts,
    "tts-engine": _tts_engine,
    "turn": _turn,
}
