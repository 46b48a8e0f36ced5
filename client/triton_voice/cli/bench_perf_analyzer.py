"""`triton-voice bench perf-analyzer` and `perf-export`: NVIDIA's load generator, and its exports read properly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from triton_voice.cli.bench_common import (
    CheckpointSize,
    Json,
    Label,
    OwnCheckpoint,
    OwnCodec,
    Server,
    Size,
    numbers,
    print_table,
    require_package,
    served,
    show,
)
from triton_voice.cli.console import err, out
from triton_voice.errors import InvalidInput
from triton_voice.server.settings import Device, Weights


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("perf-analyzer")(perf_analyzer)
    app.command("perf-export")(perf_export)


def perf_analyzer(
    model: Annotated[
        Literal["parakeet", "magpie", "nemotron", "nemotron-stock"],
        typer.Option(help="nemotron sends chats, nemotron-stock the prompts of Triton's stock vLLM backend."),
    ] = "parakeet",
    streams: Annotated[str, typer.Option(help="Requests (parakeet: callers) at once, a run each.")] = "1,4",
    rates: Annotated[
        str | None, typer.Option(help="Requests a second, a run each, instead of --streams; magpie and nemotron.")
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option("--realtime/--closed", help="parakeet: at the speed of speech, or as fast as it is answered."),
    ] = True,
    seconds: Annotated[
        float, typer.Option(help="parakeet: length of a measurement window; runs take three or more.")
    ] = 5.0,
    requests: Annotated[int, typer.Option(min=1, help="Others: requests of each stream, or of a rate in all.")] = 10,
    tokens: Annotated[int, typer.Option(min=2, help="nemotron: length of each reply.")] = 48,
    max_seconds: Annotated[int | None, typer.Option(min=1, help="magpie: cut each answer here.")] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where input, exports and logs go.")] = Path(
        "perf-analyzer"
    ),
    wav: Annotated[
        Path | None, typer.Option(help="parakeet: what the callers say. Default: a recorded question.")
    ] = None,
    binary: Annotated[Path | None, typer.Option(help="perf_analyzer. Default: PATH, then what --get fetched.")] = None,
    get: Annotated[bool, typer.Option("--get", help="Only fetch perf_analyzer into the cache folder.")] = False,
    server: Server = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    checkpoint: OwnCheckpoint = None,
    codec: OwnCodec = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """NVIDIA's perf_analyzer on one of the models: a second opinion that shares no load generator with this project."""
    require_package()
    from triton_voice_bench import perf_analyzer as bench
    from triton_voice_bench import perf_analyzer_binary, perf_analyzer_export

    if get:
        tool = perf_analyzer_binary.get(lambda step: err.print(step, style="dim", soft_wrap=True, highlight=False))
        out.print(f"{tool.path} starts", soft_wrap=True, highlight=False)
        return
    tool = perf_analyzer_binary.find(binary)
    asked = bench.PerfAnalyzerBench(
        model=model,
        streams=numbers("--streams", streams),
        folder=folder,
        rates=_rates(rates),
        realtime=realtime,
        seconds=seconds,
        requests=requests,
        tokens=tokens,
        max_seconds=max_seconds,
        wav=wav,
    )
    served_model = bench.SPEAKS[model]
    weights: Weights | Size = size
    if checkpoint is not None:
        part = {"parakeet": "parakeet", "magpie": "magpie", "nemotron": "llm"}[served_model]
        weights = Weights(**{part: checkpoint}, codec=codec, label=checkpoint)
    with served(server, None, label, (served_model,), weights, device) as serving:
        report = bench.run(
            asked,
            tool,
            serving.url,
            serving.about,
            lambda command: err.print(command, style="dim", soft_wrap=True, highlight=False),
        )
    show(report, perf_analyzer_export.COLUMNS, json_file)
    out.print(f"input, exports and logs: {folder}", soft_wrap=True, highlight=False)


def perf_export(
    exports: Annotated[list[Path], typer.Argument(help="Files that perf_analyzer's --profile-export-file wrote.")],
    label: Label = None,
    json_file: Json = None,
) -> None:
    """What an export of perf_analyzer says: time to first audio or token, gaps, underruns, tokens a second."""
    require_package()
    from triton_voice_bench import perf_analyzer_export
    from triton_voice_bench.report import Report

    whole = Report("perf-analyzer", label or "not told by the export", {"reading": perf_analyzer_export.READING})
    for export in exports:
        whole.rows += perf_analyzer_export.read(export)
    for model in perf_analyzer_export.MODELS:
        if rows := [row for row in whole.rows if row["model"] == model]:
            print_table(replace(whole, rows=rows).table(perf_analyzer_export.COLUMNS))
    if json_file is not None:
        whole.write(json_file)
        out.print(f"written: {json_file}", soft_wrap=True, highlight=False)


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        rates = (-1.0,)
    if any(rate <= 0 for rate in rates):
        raise InvalidInput(f"--rates {text}: give positive numbers separated by commas, e.g. 0.5,1,2")
    return rates
