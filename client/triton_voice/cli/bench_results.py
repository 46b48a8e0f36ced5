"""`triton-voice bench all`, `report`, `compare` and `capacity`: everything at once, and what is made of the results."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from triton_voice.cli.bench_common import (
    CheckpointSize,
    Json,
    MetricsUrl,
    Precision,
    Server,
    Size,
    print_table,
    require_package,
    show,
    weights_of,
)
from triton_voice.cli.console import err, fail, out
from triton_voice.cli.serving import stop_on_signals
from triton_voice.errors import InvalidInput
from triton_voice.paths import project_root
from triton_voice.server.settings import Device, Weights

if TYPE_CHECKING:
    from triton_voice_bench.capacity import Assumptions
    from triton_voice_bench.results import Entry
    from triton_voice_bench.suite import Job, Watcher

RESULTS = Path("perf/results")
ANY_PLOT = Path("any.png")
"""Says that plots are wanted, where their names are not known yet."""
INTERRUPTED = 130
OwnModels = Annotated[
    Path | None,
    typer.Option(
        "--models", exists=True, file_okay=False, help="Folder with parakeet.nemo, magpie.nemo, codec.nemo and llm/."
    ),
]
Latency = Annotated[float, typer.Option(help="From a chunk's last sample to its answer, ms.")]
TokenTime = Annotated[float, typer.Option(help="Time that a token of a reply may take, ms.")]
Utilisation = Annotated[float, typer.Option(help="Share of the device's time that is planned for.")]
TurnLength = Annotated[float, typer.Option(help="From one question's beginning to the next's, s.")]
CallerShare = Annotated[float, typer.Option(help="Share of a turn in which the caller speaks.")]
BotShare = Annotated[float, typer.Option(help="Share of a turn in which the caller hears speech.")]
ReplyTokens = Annotated[int, typer.Option(help="Length of a reply.")]
Sentences = Annotated[int, typer.Option(help="Sentences of a reply.")]
ContextTokens = Annotated[int, typer.Option(help="Length of a conversation that the language model remembers.")]
Deviations = Annotated[float, typer.Option(help="Standard deviations above the average that there is room for.")]

MemoryShare = Annotated[float, typer.Option(help="Share of the memory that may be used.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("memory")(memory)
    app.command("all")(everything)
    app.command("report")(report)
    app.command("compare")(compare)
    app.command("capacity")(capacity)


def memory(
    size: CheckpointSize = "trained",
    models: OwnModels = None,
    precision: Precision = "float32",
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """What each model's weights take, and each stream on top of them."""
    require_package()
    from triton_voice_bench import memory as bench

    with err.status("checkpoints ...") as status:
        if models is not None:
            parts = {"parakeet": "parakeet.nemo", "magpie": "magpie.nemo", "codec": "codec.nemo", "llm": "llm"}
            weights = Weights(**{part: str(models / file) for part, file in parts.items()}, label=f"in {models}")
        else:
            weights = weights_of(size, "parakeet", "magpie", "llm")
        found = bench.run(bench.MemoryBench(weights, precision, device), lambda what: status.update(f"{what} ..."))
    show(found, bench.COLUMNS, json_file)


def everything(
    only: Annotated[str | None, typer.Option(help="Only these, comma separated; the file keeps the others.")] = None,
    mode: Annotated[
        Literal["quick", "standard", "thorough"],
        typer.Option(help="standard: about ten minutes on two cores with the small checkpoints."),
    ] = "standard",
    quick: Annotated[
        bool, typer.Option("--quick", help="The same as --mode quick: that it works, not how well.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what this commit has measured by the same command.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What the machine is called. Default: its host name.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the results go. Default: perf/results of the project.")
    ] = None,
    size: Annotated[
        Size | None, typer.Option(help="Which checkpoints. Default: full with a GPU, else the small trained ones.")
    ] = None,
    models: OwnModels = None,
    server: Server = None,
    metrics: MetricsUrl = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands and the estimate.")] = False,
) -> None:
    """Every benchmark into one file for this machine, with a Markdown page and plots; the command for a DGX Spark too.

    Each runs by the command that is printed. One that fails is reported and harms no other; its log is kept.
    """
    require_package(ANY_PLOT)
    from triton_voice_bench import hardware, markdown, suite
    from triton_voice_bench.report import commit
    from triton_voice_bench.results import Results

    machine = hardware.machine()
    has_gpu = device == "cuda" or (device == "auto" and machine["gpu"] is not None)
    called = _name(name)
    folder = folder or project_root() / RESULTS
    path = folder / f"{called}.json"
    results = Results.read(path) if path.exists() else Results(called)
    source = suite.Source(size or ("full" if has_gpu else "trained"), models, server, metrics, device)
    chosen = tuple(part.strip() for part in only.split(",")) if only else ()
    jobs = suite.plan("quick" if quick else mode, source, has_gpu, chosen, results)
    if resume:
        jobs = suite.pending(jobs, results, commit())
    for job in jobs:
        err.print(f"{job.estimate_s:5.0f} s  {job.command}", style="dim", soft_wrap=True, highlight=False)
    total = sum(job.estimate_s for job in jobs)
    err.print(f"about {_minutes(total)} in all, into {path}", soft_wrap=True, highlight=False)
    if dry_run:
        return
    try:
        with stop_on_signals(), _Shown(jobs) as shown:
            failed = suite.run(jobs, path, folder / called / "logs", results, shown.watcher())
    except KeyboardInterrupt:
        err.print("stopped; what had ended is in the file, --resume goes on", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if results.newest() is not None:
        page = markdown.write(results, folder)
        out.print(f"written: {path} and {page}, plots in {folder / called}", soft_wrap=True, highlight=False)
    if failed:
        fail(f"failed: {', '.join(failed)}", *(f"{bench}: {results.benches[bench].failure}" for bench in failed))


class _Shown:
    """Shows a line for each benchmark: how long it has taken of what it was thought to take."""

    def __init__(self, jobs: list[Job]):
        columns = (
            TextColumn("{task.description:>11}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._progress = Progress(*columns, console=err, disable=not err.is_terminal, refresh_per_second=2)
        self._tasks: dict[str, TaskID] = {
            job.bench: self._progress.add_task(job.bench, total=job.estimate_s, start=False, said="") for job in jobs
        }

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def watcher(self) -> Watcher:
        """What the suite tells its progress."""
        from triton_voice_bench.suite import Watcher

        return Watcher(self._begins, self._runs, self._ended)

    def _begins(self, job: Job) -> None:
        self._progress.start_task(self._tasks[job.bench])

    def _runs(self, job: Job, seconds: float) -> None:
        # Beyond its estimate the bar waits just before its end.
        self._progress.update(self._tasks[job.bench], completed=min(seconds, 0.98 * job.estimate_s))

    def _ended(self, job: Job, entry: Entry) -> None:
        said = f"[red]{entry.failure}[/]" if entry.failure else "; ".join(entry.warnings) or "done"
        self._progress.update(self._tasks[job.bench], completed=job.estimate_s, said=said)
        self._progress.stop_task(self._tasks[job.bench])
        if not err.is_terminal:
            took = entry.circumstances.get("seconds") or 0.0
            err.print(
                f"{job.bench}: {entry.failure or said}, {took:.0f} s", soft_wrap=True, highlight=False, markup=False
            )


def report(results: Annotated[Path, typer.Argument(help="The file of a machine.")]) -> None:
    """The Markdown page and the plots of a machine once more, from its file."""
    require_package(ANY_PLOT)
    from triton_voice_bench import markdown
    from triton_voice_bench.results import Results

    page = markdown.write(Results.read(results), results.parent)
    out.print(f"written: {page}", soft_wrap=True, highlight=False)


def compare(
    first: Annotated[Path, typer.Argument(help="A machine's file, or one benchmark's: what is compared with.")],
    second: Annotated[Path, typer.Argument(help="The same: what is judged.")],
    threshold: Annotated[str, typer.Option(help="Differences up to this are noise.")] = "10%",
    fail_on_regression: Annotated[
        str | None, typer.Option(help="Exit with code 1 if a figure is worse by more than this, e.g. 10%.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show what is within noise too.")] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the whole table here.")] = None,
) -> None:
    """Two results side by side: every row that both have, with a ratio and a verdict."""
    require_package()
    from triton_voice_bench import compare as bench
    from triton_voice_bench.results import Results

    noise = share("--threshold", threshold)
    limit = None if fail_on_regression is None else share("--fail-on-regression", fail_on_regression)
    found = bench.compare(Results.read(first), Results.read(second), noise)
    print_table(bench.table(found, everything))
    for note in found.notes:
        out.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
    out.print(bench.verdict(found), soft_wrap=True, highlight=False)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(bench.markdown(found))
        out.print(f"written: {markdown}", soft_wrap=True, highlight=False)
    if not found.differences:
        fail("the two have no row in common")
    if limit is not None and (worse := found.regressions(limit)):
        told = [f"{d.bench}, {d.row}: {d.figure} {d.first:g} -> {d.second:g}" for d in worse]
        fail(f"{len(worse)} figures are worse by more than {fail_on_regression}", *told)


def capacity(
    results: Annotated[Path, typer.Argument(help="The file of a machine.")],
    latency: Latency = 100.0,
    token_time: TokenTime = 50.0,
    utilisation: Utilisation = 0.8,
    turn_seconds: TurnLength = 10.0,
    caller_share: CallerShare = 0.35,
    bot_share: BotShare = 0.5,
    reply_tokens: ReplyTokens = 40,
    sentences: Sentences = 2,
    context_tokens: ContextTokens = 4096,
    deviations: Deviations = 2.0,
    memory_share: MemoryShare = 0.9,
    spark: Annotated[
        bool,
        typer.Option(
            "--spark",
            help="Not this machine: an estimate for a DGX Spark by its memory's bandwidth, at best and at worst.",
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it here (png, svg, pdf).")] = None,
) -> None:
    """Streams that a machine serves, from its measured steps: each model by itself, and whole conversations.

    Prints its assumptions, and how its predictions compare with what the server kept up with.
    """
    require_package(plot)
    from pydantic import ValidationError

    from triton_voice_bench import capacity_estimate as bench
    from triton_voice_bench import capacity_view
    from triton_voice_bench.results import Results

    try:
        assumptions: Assumptions = bench.Assumptions(
            latency_ms=latency,
            token_ms=token_time,
            utilisation=utilisation,
            turn_s=turn_seconds,
            caller_share=caller_share,
            bot_share=bot_share,
            reply_tokens=reply_tokens,
            sentences=sentences,
            context_tokens=context_tokens,
            deviations=deviations,
            memory_share=memory_share,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"{first['loc'][0]} {first['input']}: {first['msg']}") from None
    measured = Results.read(results)
    if spark:
        found = [bench.estimate(measured, assumptions, bench.SPARK, bound) for bound in bench.BOUNDS]
    else:
        found = [bench.estimate(measured, assumptions)]
    for one in found:
        print_table(capacity_view.table(one))
        for sentence in capacity_view.summary(one):
            out.print(f"- {sentence}", soft_wrap=True, highlight=False, markup=False)
    if plot is not None:
        capacity_view.plot(found[-1], plot)
        out.print(f"drawn: {plot}", soft_wrap=True, highlight=False)


def _name(name: str | None) -> str:
    """What the machine is called, as a file may be."""
    called = re.sub(r"[^A-Za-z0-9._-]+", "-", name or platform.node()).strip("-.")
    if not called:
        raise InvalidInput("--name: give the machine a name of letters and digits")
    return called


def share(option: str, text: str) -> float:
    """Reads a share, `10%` or `0.1`.

    Raises:
        InvalidInput: It is something else, or below zero.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if value < 0:
        raise InvalidInput(f"{option} {text}: give a share, e.g. 10% or 0.1")
    return value


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
