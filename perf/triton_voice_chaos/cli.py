"""`python -m triton_voice_chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from triton_voice.cli.console import err, fail, out
from triton_voice.server import MODELS
from triton_voice.server.process import ServerError
from triton_voice_chaos import report as reports
from triton_voice_chaos.balancing import prove
from triton_voice_chaos.faults import FAULTS, interrupt_guard
from triton_voice_chaos.haproxy import HaproxyMissing
from triton_voice_chaos.run import Asked, run

app = typer.Typer(
    help="Break a server of this machine under load and count what its clients lose. 127.0.0.1 only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
TABLE_WIDTH = 160
NAMES = tuple(fault.name for fault in FAULTS)
Out = Annotated[Path | None, typer.Option("--out", help="Folder for JSON, Markdown and picture.")]


def _chosen(text: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else known
    if unknown := [name for name in names if name not in known]:
        fail(f"{option}: {', '.join(unknown)}: there are {', '.join(known)}")
    return names


@app.command("faults")
def faults(
    only: Annotated[str | None, typer.Option(help=f"Only these, comma separated, of {', '.join(NAMES)}.")] = None,
    models: Annotated[str | None, typer.Option(help=f"Load only these of {', '.join(MODELS)}.")] = None,
    seconds: Annotated[
        float, typer.Option(min=2, help="Steady load before each fault, and how long a fault that lasts goes on.")
    ] = 6.0,
    callers: Annotated[int, typer.Option(min=1, help="Callers in each of the two groups.")] = 2,
    chats: Annotated[int, typer.Option(min=1, help="Chats in each group.")] = 1,
    speakers: Annotated[int, typer.Option(min=1, help="Listeners of speech in each group.")] = 1,
    weights: Annotated[str | None, typer.Option(help="`--models` of serve: a folder, or `random`.")] = None,
    folder: Out = None,
) -> None:
    """Make faults one by one under load; exit code 1 if anything hung, was lost in silence or stayed away.

    Half of the clients connect directly and half through a proxy, which cuts connections when that is the fault.
    """
    options = ("--models", weights) if weights else ()
    asked = Asked(
        _chosen(only, NAMES, "--only"), _chosen(models, MODELS, "--models"), seconds, callers, chats, speakers, options
    )
    label = f"weights: {weights or 'the bundled small ones'}"
    about = reports.header("chaos", label, {"groups": "direct, proxy"})
    interrupt_guard()
    try:
        result = run(asked, _say)
    except (ServerError, TimeoutError) as error:
        fail(str(error))
    _print(reports.table(result))
    if folder is not None:
        reports.write(folder, result, about)
        err.print(f"written to {folder}")
    if not result.passed:
        fail("not passed", *(f"{o.fault}: {c}" for o in result.outcomes for c in o.complaints), *result.left_over)


@app.command("balancing")
def balancing(
    models: Annotated[str, typer.Option(help="What both servers load; the recogniser must be among them.")] = (
        "parakeet,magpie"
    ),
    seconds: Annotated[float, typer.Option(min=2, help="Steady load in each phase.")] = 8.0,
    conversations: Annotated[int, typer.Option(min=2, help="Callers at once.")] = 6,
    weights: Annotated[str | None, typer.Option(help="`--models` of serve: a folder, or `random`.")] = None,
    folder: Out = None,
) -> None:
    """Two servers behind HAProxy: how streams are pinned, what draining and killing a server cost. Needs haproxy."""
    chosen = _chosen(models, MODELS, "--models")
    if "parakeet" not in chosen:
        fail("--models: the recogniser, parakeet, must be among them: its streams are what has to be pinned")
    about = reports.header("balancing", f"weights: {weights or 'the bundled small ones'}", {"models": list(chosen)})
    interrupt_guard()
    try:
        proof = prove(chosen, seconds, conversations, ("--models", weights) if weights else (), _say)
    except (HaproxyMissing, ServerError, TimeoutError, RuntimeError) as error:
        fail(str(error))
    for shown in reports.balancing_tables(proof):
        _print(shown)
    if folder is not None:
        reports.write_balancing(folder, proof, about)
        err.print(f"written to {folder}")
    if proof.complaints:
        fail("not proven", *proof.complaints)


def _print(table: Table) -> None:
    if not out.is_terminal:  # nothing bounds it: whole words
        out.width = TABLE_WIDTH
    out.print(table)


def _say(words: str) -> None:
    err.print(words, style="dim", soft_wrap=True)
