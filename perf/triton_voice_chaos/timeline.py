"""Draws a run: every model's calls over time, and the faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from triton_voice_chaos.record import Call

MIN_BIN_S, MAX_BINS = 1.0, 250
GOOD, BAD = "#4c9f70", "#c8443a"
WHO = {"parakeet": "pieces of audio", "magpie": "speeches", "nemotron": "chats"}


def draw(
    path: Path,
    calls: Sequence[Call],
    spans: Sequence[tuple[float, float, str]],
    start: float,
    rows: Sequence[tuple[str, str]],
    title: str,
    caption: str,
) -> None:
    """Writes the picture.

    Args:
        path: Where to; the ending decides the format.
        calls: All calls.
        spans: Begin, end and name of each fault, on the clock of the calls.
        start: What is zero on the time axis.
        rows: Model and client group of each row; group `*` stands for all.
        title: Of the whole picture.
        caption: Below it: where and with what it ran.
    """
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(13, 1.2 + 1.7 * len(rows)), sharex=True, squeeze=False, layout="constrained"
    )
    end = max([call.ended for call in calls], default=start + 1) - start
    bin_s = max(MIN_BIN_S, np.ceil(end / MAX_BINS))
    edges = np.arange(0, end + 2 * bin_s, bin_s)
    for axis, (model, group) in zip(axes[:, 0], rows, strict=True):
        own = [call for call in calls if call.model == model and group in ("*", call.client)]
        good, _ = np.histogram([call.ended - start for call in own if call.ok], edges)
        bad, _ = np.histogram([call.ended - start for call in own if not call.ok], edges)
        axis.bar(edges[:-1], good / bin_s, bin_s, align="edge", color=GOOD, label="answered")
        axis.bar(edges[:-1], -bad / bin_s, bin_s, align="edge", color=BAD, label="failed with an error")
        hung = [call.ended - start for call in own if call.outcome in ("hung", "wrong")]
        axis.plot(hung, [0] * len(hung), "kx", label="hung or wrong")
        axis.axhline(0, color="0.3", linewidth=0.8)
        name = model if group == "*" else f"{model}, {group}"
        axis.set_ylabel(f"{name}\n{WHO.get(model, 'calls')} a second", fontsize="small")
        axis.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        for begin, over, _ in spans:
            axis.axvspan(begin - start, over - start, color="#e9b44c", alpha=0.18, linewidth=0)
            axis.axvline(begin - start, color="#b9770e", linewidth=1.2)
        axis.margins(x=0)
        axis.spines[["top", "right"]].set_visible(False)
    top = axes[0, 0]
    for number, (begin, _, name) in enumerate(spans):
        top.annotate(
            name,
            (begin - start, 1.02 + 0.16 * (number % 2)),
            xycoords=("data", "axes fraction"),
            fontsize="small",
            color="#7a4f0a",
        )
    axes[-1, 0].set_xlabel("seconds")
    handles, labels = top.get_legend_handles_labels()
    top.set_xlim(left=max(0.0, min([call.began for call in calls], default=start) - start - 2))
    figure.legend(handles, labels, loc="outside lower right", fontsize="x-small", ncols=3, frameon=False)
    figure.suptitle(title, fontsize="medium")
    figure.text(0.01, 0.005, caption, ha="left", va="bottom", fontsize="x-small", color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
