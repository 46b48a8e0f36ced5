"""Writes what a run found: JSON for programs, Markdown and a picture for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from triton_voice_bench.report import Report
from triton_voice_chaos import timeline
from triton_voice_chaos.balancing import Proof
from triton_voice_chaos.record import Toll
from triton_voice_chaos.run import Outcome, Run

PINNING_COLUMNS = ("streams over one connection", "whole", "lost", "requests or connections")
PHASE_COLUMNS = (
    *("what was done", "new connections", "model", "answered", "errors", "cut off", "hung", "wrong"),
    *("first error", "back after"),
)
COLUMNS = (
    *("model", "a second before", "after", "answered", "failed", "cut off", "hung", "wrong"),
    *("first error", "back after"),
)


def header(bench: str, weights: str, settings: dict[str, Any]) -> Report:
    """Returns machine, versions and commit in the shape of the benchmarks' files; taken now, before the run."""
    return Report(bench, weights, settings)


def write(folder: Path, run: Run, about: Report) -> None:
    """Writes chaos.json, chaos.md and chaos.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**vars(about), **run.as_json()}
    (folder / "chaos.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    (folder / "chaos.md").write_text(markdown(run, about))
    rows = [(model, group) for model in run.asked.only for group in ("direct", "proxy")]
    spans = [(outcome.at, outcome.over_at, outcome.fault) for outcome in run.outcomes if not outcome.skipped]
    title = "Faults under load: shaded from the fault until everybody was answered again"
    timeline.draw(folder / "chaos.png", run.calls, spans, run.started, rows, title, about.caption())


def markdown(run: Run, about: Report) -> str:
    """Returns the report as Markdown."""
    lines = ["# Faults under load", "", about.caption(), "", f"**{'Passed' if run.passed else 'FAILED'}.**", ""]
    lines += ["| fault | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for outcome in run.outcomes:
        if outcome.skipped:
            lines.append(f"| {outcome.fault} | skipped: {outcome.skipped} |" + " |" * (len(COLUMNS) - 1))
        for number, (model, toll) in enumerate(outcome.tolls.items()):
            name = outcome.fault if number == 0 else ""
            lines.append(f"| {name} | " + " | ".join([model, *_rates(outcome, model), *_cells(toll)]) + " |")
    lines += ["", "![timeline](chaos.png)", ""]
    for outcome in run.outcomes:
        lines += _details(outcome)
    lines += ["## The end", ""]
    lines.append(f"Stopped in order: {'yes' if run.stopped_in_order else 'NO'}. ")
    lines.append(f"Left over: {', '.join(run.left_over) or 'nothing'}.")
    return "\n".join(lines) + "\n"


def table(run: Run) -> Table:
    """Returns the table for a terminal."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("fault")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name == "model" else "right")
    shown.add_column("verdict", max_width=50)
    for outcome in run.outcomes:
        verdict = (outcome.skipped and f"skipped: {outcome.skipped}") or "; ".join(outcome.complaints) or "passed"
        if not outcome.tolls:
            shown.add_row(outcome.fault, *[""] * len(COLUMNS), verdict)
        for number, (model, toll) in enumerate(outcome.tolls.items()):
            name = "" if number else outcome.fault
            shown.add_row(name, model, *_rates(outcome, model), *_cells(toll), "" if number else verdict)
    return shown


def _rates(outcome: Outcome, model: str) -> list[str]:
    return [f"{rate:.1f}" for rate in outcome.rates[model]]


def _cells(toll: Toll) -> list[str]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    back = (
        "never stopped"
        if toll.untouched and toll.came_back
        else "NEVER"
        if not toll.came_back
        else seconds(toll.back_s)
    )
    counts = [str(value) if value else "-" for value in (sum(toll.errors.values()), toll.cut, toll.hung, toll.wrong)]
    return [str(toll.answered), *counts, seconds(toll.first_error_s), back]


def _details(outcome: Outcome) -> list[str]:
    lines = [f"## {outcome.fault}", "", f"{outcome.does[0].upper()}{outcome.does[1:]}.", ""]
    if outcome.skipped:
        return [*lines, f"Skipped: {outcome.skipped}.", ""]
    lines += [f"- **{complaint}**" for complaint in outcome.complaints]
    for model, toll in outcome.tolls.items():
        for error, sentence in toll.examples.items():
            lines.append(f"- {model}: {toll.errors.get(error, 0) or ''} {error}, e.g. `{sentence[:160]}`")
    for name, value in outcome.notes.items():
        lines.append(f"- {name}: {json.dumps(value)}")
    if outcome.before is not None and outcome.after is not None:
        lines += ["", "| held | processes | files | threads | MiB | shm regions | callers |", "|---" * 7 + "|"]
        for name, held in (("before", outcome.before), ("after", outcome.after)):
            lines.append(
                f"| {name} | {held.processes} | {held.files} | {held.threads} | {held.memory_mib:.0f} | {held.regions} "
                f"| {held.in_use['callers']:.0f} |"
            )
    return [*lines, ""]


def write_balancing(folder: Path, proof: Proof, about: Report) -> None:
    """Writes balancing.json, balancing.md and balancing.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**vars(about), **proof.as_json()}
    (folder / "balancing.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    (folder / "balancing.md").write_text(_balancing_markdown(proof, about))
    rows = [(model, "*") for model in proof.models if model != "nemotron"]
    spans = [(phase.at, phase.over_at, phase.name) for phase in proof.phases]
    title = "Two servers behind HAProxy: each phase from its beginning until everybody was answered"
    timeline.draw(folder / "balancing.png", proof.calls, spans, proof.started, rows, title, about.caption())


def balancing_tables(proof: Proof) -> list[Table]:
    """Returns the tables for a terminal: how streams were pinned, and what the phases cost."""
    pinned = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in PINNING_COLUMNS:
        pinned.add_column(name)
    for cells in _pinning_rows(proof):
        pinned.add_row(*cells)
    phases = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in PHASE_COLUMNS:
        phases.add_column(name)
    for cells in _phase_rows(proof):
        phases.add_row(*cells)
    return [pinned, phases]


def _pinning_rows(proof: Proof) -> list[tuple[str, ...]]:
    return [(p.way, str(p.whole), str(p.lost), _shares(p.servers)) for p in proof.pinning]


def _phase_rows(proof: Proof) -> list[tuple[str, ...]]:
    rows = []
    for phase in proof.phases:
        for number, (model, cost) in enumerate(phase.tolls.items()):
            errors = ", ".join(f"{count} {name}" for name, count in sorted(cost.errors.items())) or "-"
            share = "" if number else _shares(phase.connections)
            cells = _cells(cost)
            rows.append(("" if number else phase.name, share, model, cells[0], errors, cells[2], *cells[3:]))
    return rows


def _shares(servers: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(servers.items()))


def _balancing_markdown(proof: Proof, about: Report) -> str:
    def rows(columns: Sequence[str], cells: Sequence[tuple[str, ...]]) -> list[str]:
        return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]

    verdict = f"**NOT proven:** {'; '.join(proof.complaints)}" if proof.complaints else "**Proven.**"
    lines = ["# Two servers behind HAProxy", "", about.caption(), "", verdict, "", "## What pins a stream", ""]
    lines += rows(PINNING_COLUMNS, _pinning_rows(proof))
    lines += ["", "## What was done under load", ""]
    lines += [*rows(PHASE_COLUMNS, _phase_rows(proof)), "", "![timeline](balancing.png)", ""]
    for phase in proof.phases:
        for model, cost in phase.tolls.items():
            lines += [f"- {phase.name}: {model}: {name}, e.g. `{text[:160]}`" for name, text in cost.examples.items()]
        lines += [f"- {phase.name}: {name}: {value}" for name, value in phase.notes.items()]
    return "\n".join(lines) + "\n"
