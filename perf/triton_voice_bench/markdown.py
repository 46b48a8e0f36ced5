"""The Markdown page of a machine's results, with its plots."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_voice.errors import InvalidInput
from triton_voice_bench import capacity_view
from triton_voice_bench.capacity import Assumptions
from triton_voice_bench.capacity_estimate import estimate
from triton_voice_bench.plot import can_plot, draw
from triton_voice_bench.report import Report, Row, cell, words
from triton_voice_bench.results import Entry, Results

MODULES = {"asr-engine": "asr_engine", "tts-engine": "tts_engine"}
TITLES = {
    "memory": "Memory of the models and of a stream",
    "asr-engine": "The recogniser's engine, without a server",
    "tts-engine": "The synthesiser's engine, without a server",
    "asr": "The recogniser under callers",
    "tts": "The synthesiser under listeners",
    "llm": "The language model",
    "turn": "Whole turns",
}


def write(results: Results, folder: Path, assumptions: Assumptions | None = None) -> Path:
    """Writes the page and draws the plots, from the results alone.

    Args:
        results: What is shown.
        folder: Gets `<name>.md` and, in the folder `<name>`, the plots.
        assumptions: Of the capacity.

    Returns:
        The page.

    Raises:
        InvalidInput: No benchmark has a result.
    """
    newest = results.newest()
    if newest is None:
        raise InvalidInput(f"{results.name}: no benchmark has a result yet")
    plots = folder / results.name
    lines = [f"# {results.name}", "", f"{_where(newest)}. Weights: {newest.weights}.", ""]
    lines += [*_headlines(results), "", *_machine(newest), "", *_runs(results), ""]
    for bench, entry in results.benches.items():
        if entry.report is not None:
            lines += _section(bench, entry, entry.report, newest, plots)
    lines += _capacity(results, plots, assumptions)
    page = folder / f"{results.name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")
    return page


def _where(report: Report) -> str:
    machine = report.machine
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"
    return f"{machine['gpu']}; {where}" if machine.get("gpu") else f"{where}, no GPU"


def _headlines(results: Results) -> list[str]:
    """The few figures that are looked for first, each with what it is of."""
    said = []
    for bench, describe in (("asr", _asr_headline), ("tts", _tts_headline), ("llm", _llm_headline)):
        if (report := results.report(bench)) and (headline := describe(report.rows)):
            said.append(headline)
    turn = results.report("turn")
    if turn and turn.rows and (voice := cell(turn.rows[0], "turn_ms")):
        barge = cell(turn.rows[0], "barge_in_ms.p50")
        interrupted = f"; from a barge-in to silence {words(barge)} ms (p50)" if barge is not None else ""
        said.append(f"voice to voice {words(voice['p50'])} ms (p50), {words(voice['p95'])} ms (p95){interrupted}")
    return [f"- {headline}" for headline in said]


def _asr_headline(rows: Sequence[Row]) -> str | None:
    kept = [row for row in rows if row.get("kept_up") == row["streams"] and row.get("final_ms")]
    if not kept:
        return None
    row = max(kept, key=lambda row: row["streams"])
    chunk, final = words(cell(row, "chunk_ms.p95")), words(cell(row, "final_ms.p95"))
    callers = "caller" if row["streams"] == 1 else "callers"
    return f"{row['streams']} {callers} at once kept up: chunks within {chunk} ms, finals within {final} ms (p95)"


def _tts_headline(rows: Sequence[Row]) -> str | None:
    if not rows or not rows[0].get("first_audio_ms"):
        return None
    kept = max((row["streams"] for row in rows if row["kept_up"] == row["streams"]), default=0)
    first = words(cell(rows[0], "first_audio_ms.p50"))
    alone = f"first audio after {first} ms (p50, {rows[0]['streams']} at once)"
    return f"{alone}; {kept} {'listener' if kept == 1 else 'listeners'} at once without an underrun"


def _llm_headline(rows: Sequence[Row]) -> str | None:
    if not rows or not rows[0].get("first_token_ms"):
        return None
    fastest = max(rows, key=lambda row: row.get("tokens_per_s") or 0)
    first = words(cell(rows[0], "first_token_ms.p50"))
    return (
        f"first token after {first} ms (p50, {rows[0]['streams']} at once); "
        f"{words(fastest['tokens_per_s'])} tokens/s for {fastest['streams']} chats"
    )


def _machine(report: Report) -> list[str]:
    machine = report.machine
    facts: list[tuple[str, Any]] = [
        ("GPU", machine.get("gpu")),
        ("GPU memory, GiB", machine.get("gpu_memory_gib")),
        ("driver", machine.get("driver")),
        ("processor", f"{machine['cpu']} ({machine['architecture']})"),
        ("cores", machine["cores"]),
        ("memory, GiB", machine["memory_gib"]),
        ("power", ", ".join(f"{name} {value}" for name, value in (machine.get("power") or {}).items())),
        ("system", ", kernel ".join(filter(None, [machine.get("system"), machine.get("kernel")]))),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("commit", report.commit),
    ]
    return _table(("", ""), [(name, words(value)) for name, value in facts if value])


def _runs(results: Results) -> list[str]:
    """What ran, when, how long, and whether the machine was free."""
    rows = []
    for bench, entry in results.benches.items():
        seen = entry.circumstances
        said = [*entry.warnings, *([f"the newest attempt failed: {entry.failure}"] if entry.failure else [])]
        rows.append(
            (
                bench,
                entry.mode or "-",
                entry.began or "-",
                words(seen.get("seconds")),
                words((seen.get("load_before") or [None])[0]),
                words(seen.get("others_percent")),
                words(seen.get("memory_gib")),
                "; ".join(said) or "none",
            )
        )
    heads = ("benchmark", "mode", "began (UTC)", "seconds", "load before", "others' CPU %", "memory GiB", "doubts")
    notes = (
        "*load before*: over one minute, the benchmark before it included. *others' CPU*: of all cores, by processes "
        "that are not the benchmark's. *memory*: by how much the free memory fell at most."
    )
    return [*_table(heads, rows), "", notes]


def _section(bench: str, entry: Entry, report: Report, newest: Report, plots: Path) -> list[str]:
    module = importlib.import_module(f"triton_voice_bench.{MODULES.get(bench, bench)}")
    lines = [f"## {TITLES.get(bench, bench)}", ""]
    if entry.command:
        lines += [f"`{entry.command}`", ""]
    if report.weights != newest.weights:
        lines += [f"Weights: {report.weights}.", ""]
    if report.commit != newest.commit:
        lines += [f"Measured at another commit than the rest: {report.commit}.", ""]
    if entry.warnings:
        lines += [f"**To be doubted: {'; '.join(entry.warnings)}.**", ""]
    columns = [(title.replace("\n", " ").strip(), path) for title, path in module.COLUMNS]
    shown = [(title, path) for title, path in columns if any(cell(row, path) is not None for row in report.rows)]
    lines += _table(
        [title for title, _ in shown], [[words(cell(row, path)) for _, path in shown] for row in report.rows]
    )
    if can_plot(report):
        target = plots / f"{bench}.png"
        draw(report, target)
        lines += ["", f"![{TITLES.get(bench, bench)}]({_link(target, plots)})"]
    errors = [message for row in report.rows for message in row.get("error_messages") or ()]
    lines += ["", *(f"- error: {message}" for message in errors)]
    reading = report.settings.get("reading", {})
    lines += ["<details><summary>What the figures are</summary>", "", *(f"- `{k}`: {v}" for k, v in reading.items())]
    settings = ", ".join(f"{k} {v}" for k, v in report.settings.items() if k != "reading" and not isinstance(v, dict))
    return [*lines, f"- settings: {settings}", "", "</details>", ""]


def _capacity(results: Results, plots: Path, assumptions: Assumptions | None) -> list[str]:
    found = estimate(results, assumptions)
    if not found.demands:
        return []
    target = plots / "capacity.png"
    capacity_view.plot(found, target)
    return [
        "## What the machine can serve",
        "",
        "From the measured steps by a model whose assumptions are below; `triton-voice bench capacity` takes others.",
        "",
        *capacity_view.markdown(found),
        "",
        f"![What the machine can serve]({_link(target, plots)})",
    ]


def _link(target: Path, plots: Path) -> str:
    return os.path.relpath(target, plots.parent)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
