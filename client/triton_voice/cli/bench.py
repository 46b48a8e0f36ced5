"""`triton-voice bench`: the benchmarks of `perf/triton_voice_bench`, which is part of a checkout and of the image."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from triton_voice import checkpoints
from triton_voice.checkpoints import Size
from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, fail, out
from triton_voice.cli.serving import running
from triton_voice.errors import InvalidInput
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.settings import Device, Weights

if TYPE_CHECKING:
    from triton_voice_bench.report import Report

DEFAULT_METRICS_PORT = 8002
MAX_WIDTH = 200
UNKNOWN_WEIGHTS = "whatever the server at {url} has loaded"

app = typer.Typer(
    help="Measure this machine. Each benchmark prints a table, and writes and draws it where asked to.",
    no_args_is_help=True,
)

Server = Annotated[
    str | None,
    typer.Option("--server", envvar="TRITON_VOICE_URL", help="Measure a running server; default: one of its own."),
]
MetricsUrl = Annotated[
    str | None, typer.Option("--metrics", help="A running server's metrics. Default: port 8002 of its host, /metrics.")
]
Label = Annotated[str | None, typer.Option("--label", help="What is known of a running server's weights.")]
CheckpointSize = Annotated[Size, typer.Option(help="Random weights: tiny, or full with the published shapes.")]
OwnCheckpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="A .nemo file or hub name instead of random weights.")
]
Precision = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of encoder, predictor and joint.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw it here (png, svg, pdf), with the result as JSON beside it.")
]


@app.command("asr")
def asr(
    streams: Annotated[str, typer.Option(help="Callers at once, a row each.")] = "1,4,16,64",
    latency: Annotated[int, typer.Option(help="Lookahead, and length of a chunk, ms.")] = 160,
    paced: Annotated[
        bool, typer.Option("--paced/--unpaced", help="At the speed of speech, or as fast as it is answered.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="Audio of each stream.")] = 20.0,
    wav: Annotated[Path | None, typer.Option(help="What the callers say. Default: a recorded question.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Client processes. Default: one for 16 streams, two at least.")
    ] = None,
    server: Server = None,
    metrics: MetricsUrl = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    checkpoint: OwnCheckpoint = None,
    precision: Precision = "float32",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """A server's recogniser under a growing number of callers: latency from the last sample, who kept up, at what cost.

    --size, --checkpoint, --precision and --device are those of a server of its own.
    """
    _require_package(plot)
    from triton_voice_bench import asr as bench

    asked = bench.AsrBench(_numbers("--streams", streams), latency, seconds, paced, wav, processes)
    environment = {"PARAKEET_PRECISION": precision, "PARAKEET_MAX_STREAMS": str(max(128, *asked.streams))}
    with (
        _server(server, metrics, label, size, checkpoint, device, environment) as (url, metrics_url, weights),
        Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        ) as progress,
    ):
        tasks: dict[int, TaskID] = {}

        def on_progress(streams: int, settled: int, of: int) -> None:
            if streams not in tasks:
                tasks[streams] = progress.add_task(f"{streams} streams", total=of)
            progress.update(tasks[streams], completed=settled)

        report = bench.run(asked, url, metrics_url, weights, on_progress)
    _show(report, bench.COLUMNS, json_file, plot)
    for row in report.rows:
        for message in row["error_messages"]:
            err.print(f"[red]{row['streams']} streams:[/] {message}", highlight=False, soft_wrap=True)


@app.command("asr-engine")
def asr_engine(
    batch: Annotated[str, typer.Option(help="Streams per step, a row each.")] = "1,8,32,64,128,256",
    latency: Annotated[int, typer.Option(help="Lookahead, and length of a chunk, ms.")] = 160,
    size: CheckpointSize = "full",
    checkpoint: OwnCheckpoint = None,
    precision: Precision = "float32",
    device: Device = "auto",
    steps: Annotated[int, typer.Option(min=5, help="Steps measured for a row.")] = 100,
    row_seconds: Annotated[float, typer.Option(help="A row gets fewer steps, or is skipped, beyond this.")] = 60.0,
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The recogniser's engine without a server: step time by batch, its floor, and upstream NeMo in the same run."""
    _require_package(plot)
    from triton_voice_bench import asr_engine as bench

    numbers = _numbers("--batch", batch)
    with err.status("checkpoint ...") as status:
        weights = _parakeet(size, checkpoint, lambda part: status.update(f"making the {size} {part} checkpoint ..."))
        assert weights.parakeet is not None
        asked = bench.EngineBench(weights.parakeet, numbers, latency, precision, device, steps, row_seconds)
        report = bench.run(asked, weights.label, lambda what: status.update(f"{what} ..."))
    _show(report, bench.COLUMNS, json_file, plot)


@app.command("perf-analyzer")
def perf_analyzer(
    streams: Annotated[str, typer.Option(help="Callers at once, a run each.")] = "1,4",
    realtime: Annotated[
        bool, typer.Option("--realtime/--closed", help="At the speed of speech, or as fast as it is answered.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="Length of a measurement window; runs take three or more.")] = 5.0,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where input, exports and logs go.")] = Path(
        "perf-analyzer"
    ),
    wav: Annotated[Path | None, typer.Option(help="What the callers say. Default: a recorded question.")] = None,
    binary: Annotated[Path | None, typer.Option(help="perf_analyzer. Default: the one on PATH.")] = None,
    server: Server = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    checkpoint: OwnCheckpoint = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """NVIDIA's perf_analyzer on the recogniser: a second opinion that shares no code with this project."""
    _require_package(None)
    from triton_voice_bench import perf_analyzer as bench

    tool = bench.find(binary)
    asked = bench.PerfAnalyzerBench(_numbers("--streams", streams), realtime, seconds, folder, wav)
    with _server(server, None, label, size, checkpoint, device, {}) as (url, _, weights):
        report = bench.run(
            asked, tool, url, weights, lambda command: err.print(command, style="dim", soft_wrap=True, highlight=False)
        )
    _show(report, bench.COLUMNS, json_file, None)
    out.print(f"input, exports and logs: {folder}", soft_wrap=True, highlight=False)


@app.command("llm")
def llm(
    streams: Annotated[str, typer.Option(help="Chats at once, a row each.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=1, help="How often each row is repeated, alternating with bare vLLM.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Length of each reply.")] = 128,
    reference: Annotated[bool, typer.Option(help="Bare AsyncLLM beside it, which loads the model once more.")] = True,
    server: Server = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    checkpoint: Annotated[
        str | None, typer.Option(help="A model's folder or hub name instead of random weights.")
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The language model through gRPC beside vLLM's bare engine: time to first token, tokens per second.

    With --server, give --checkpoint as well: the reference must load what the server has.
    """
    _require_package(plot)
    from triton_voice_bench import llm as bench

    numbers = _numbers("--streams", streams)
    with contextlib.ExitStack() as stack:
        if server is not None:
            url, about = server, label or UNKNOWN_WEIGHTS.format(url=server)
        else:
            with err.status("checkpoint ..."):
                made = checkpoints.make(size, parts=("llm",)).weights() if checkpoint is None else None
            weights = (
                Weights(llm=made.llm, label=made.label) if made else Weights(llm=checkpoint, label=str(checkpoint))
            )
            settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device, only=("nemotron",))
            url = stack.enter_context(running(TritonServer(settings, weights))).grpc_url
            checkpoint, about = weights.llm, weights.label
        asked = bench.LlmBench(numbers, rounds, tokens, checkpoint if reference else None)
        status = stack.enter_context(err.status("llm ..."))
        report = bench.run(asked, url, about, lambda what: status.update(f"{what} ..."))
    _show(report, bench.COLUMNS, json_file, plot)


@app.command("tts")
def tts(
    streams: Annotated[str, typer.Option(help="Listeners at once, a row each.")] = "1,2,4,8,16,32",
    sentences: Annotated[int, typer.Option(min=1, help="Requests of each listener, one after the other.")] = 20,
    max_seconds: Annotated[
        float | None, typer.Option(help="Cut each answer here. Random weights run to the checkpoint's limit otherwise.")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of the voice.")] = None,
    server: Server = None,
    metrics: MetricsUrl = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """A server's synthesiser under a growing number of listeners: time to first audio, underruns of their players."""
    _require_package(plot)
    from triton_voice_bench import tts as bench

    asked = bench.TtsBench(_numbers("--streams", streams), sentences, max_seconds, voice)
    with contextlib.ExitStack() as stack:
        if server is not None:
            url, about = server, label or UNKNOWN_WEIGHTS.format(url=server)
            pages = metrics or f"http://{server.rpartition(':')[0]}:{DEFAULT_METRICS_PORT}/metrics"
        else:
            with err.status("checkpoint ..."):
                weights = checkpoints.make(size, parts=("magpie",)).weights()
            settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device, only=("magpie",))
            environment = {"MAGPIE_MAX_STREAMS": str(max(8, *asked.streams))}
            own = stack.enter_context(running(TritonServer(settings, weights, environment)))
            url, about, pages = own.grpc_url, weights.label, own.metrics_url
        status = stack.enter_context(err.status("tts ..."))
        report = bench.run(
            asked, url, pages, about, lambda now, done, of: status.update(f"{now} streams: {done} of {of} sentences")
        )
    _show(report, bench.COLUMNS, json_file, plot)
    for row in report.rows:
        for message in row["error_messages"]:
            err.print(f"[red]{row['streams']} streams:[/] {message}", highlight=False, soft_wrap=True)


@app.command("tts-engine")
def tts_engine(
    batch: Annotated[str, typer.Option(help="Utterances at once, a row each.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(help="Length of each utterance.")] = 20.0,
    size: CheckpointSize = "full",
    checkpoint: OwnCheckpoint = None,
    codec: Annotated[str | None, typer.Option(help="The codec of --checkpoint.")] = None,
    precision: Precision = "float32",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The synthesiser's engine without a server: a frame's time by batch, its floor, and do_tts in the same run."""
    _require_package(plot)
    from triton_voice_bench import tts_engine as bench

    asked = bench.TtsEngineBench(_numbers("--batch", batch), seconds, size, checkpoint, codec, precision, device)
    about = checkpoint or f"{size} checkpoints, {checkpoints.RANDOM_WEIGHTS_NOTE}"
    with err.status("tts-engine ...") as status:
        report = bench.run(asked, about, lambda what: status.update(f"{what} ..."))
    _show(report, bench.COLUMNS, json_file, plot)


@app.command("turn")
def turn(
    turns: Annotated[int, typer.Option(min=2, help="Of each conversation; every second one is a barge-in.")] = 20,
    streams: Annotated[str, typer.Option(help="Conversations at once, a row each.")] = "1",
    reply_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 60,
    wav: Annotated[Path | None, typer.Option(help="What the user says. Default: a recorded question.")] = None,
    server: Server = None,
    label: Label = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder with parakeet.nemo, magpie.nemo, codec.nemo and llm/.")
    ] = None,
    size: CheckpointSize = "tiny",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The whole bot in real time: from the user's last sound to its first, split by stage, and barge-in to silence."""
    _require_package(plot)
    for package in ("pipecat", "triton_voice_bench"):
        if importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed: pip install triton-voice[bot], in a checkout")
    from loguru import logger

    from triton_voice_bench import turn as bench

    logger.remove()  # Pipecat's log would tear the table apart; errors are in the result
    asked = bench.TurnBench(_numbers("--streams", streams), turns, reply_tokens, wav)
    with contextlib.ExitStack() as stack:
        if server is not None:
            url, about = server, label or UNKNOWN_WEIGHTS.format(url=server)
        else:
            with err.status("checkpoints ..."):
                weights = (
                    weight_options.resolve(models, False, None, None, None, None)
                    if models is not None
                    else checkpoints.make(size).weights()
                )
            settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device)
            url = stack.enter_context(running(TritonServer(settings, weights))).grpc_url
            about = weights.label
        status = stack.enter_context(err.status("turn ..."))
        report = bench.run(
            asked, url, about, lambda now, done, of: status.update(f"{now} at once: {done} of {of} turns")
        )
    _show(report, bench.COLUMNS, json_file, plot)
    for row in report.rows:
        for message in row["error_messages"]:
            err.print(f"[red]{row['streams']} at once:[/] {message}", highlight=False, soft_wrap=True)


def _require_package(plot: Path | None) -> None:
    """Says what is missing before anything is measured."""
    if importlib.util.find_spec("triton_voice_bench") is None:
        fail("the benchmarks are not installed: they are in perf/triton_voice_bench of a checkout; run `make setup`")
    for package in ("psutil", "matplotlib"):
        if (package == "psutil" or plot is not None) and importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed: pip install {package}, or the extra `bench` of triton-voice")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise InvalidInput(f"{option} {text}: give positive numbers separated by commas, e.g. 1,4,16")
    return numbers


def _parakeet(size: Size, checkpoint: str | None, on_part: Callable[[str], None]) -> Weights:
    """The recogniser's checkpoint: the one named, or random weights of a size."""
    if checkpoint is not None:
        return Weights(parakeet=checkpoint, label=checkpoint)
    made = checkpoints.make(size, parts=("parakeet",), on_part=on_part).weights()
    return Weights(parakeet=made.parakeet, label=made.label)


@contextlib.contextmanager
def _server(
    url: str | None,
    metrics_url: str | None,
    label: str | None,
    size: Size,
    checkpoint: str | None,
    device: Device,
    environment: dict[str, str],
) -> Iterator[tuple[str, str | None, str]]:
    """The given server, or one of its own with the recogniser alone: gRPC endpoint, metrics, what is known of it."""
    if url is not None:
        host = url.rpartition(":")[0]
        metrics_url = metrics_url or f"http://{host}:{DEFAULT_METRICS_PORT}/metrics"
        yield url, metrics_url, label or UNKNOWN_WEIGHTS.format(url=url)
        return
    with err.status("checkpoint ..."):
        weights = _parakeet(size, checkpoint, lambda part: None)
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device, only=("parakeet",))
    with running(TritonServer(settings, weights, environment)) as server:
        yield server.grpc_url, server.metrics_url, weights.label


def _show(report: Report, columns: Sequence[tuple[str, str]], json_file: Path | None, plot: Path | None) -> None:
    """Prints the table, then writes the file, then draws the plot from the file."""
    table = report.table(columns)
    natural = Measurement.get(out, out.options.update(max_width=MAX_WIDTH), table).maximum
    Console(width=max(natural, out.width)).print(table)  # figures are not cut to the width of a terminal or of a pipe
    out.print(report.caption(), soft_wrap=True, highlight=False)
    if plot is not None:
        json_file = json_file or plot.with_suffix(".json")
    if json_file is not None:
        report.write(json_file)
        out.print(f"written: {json_file}", soft_wrap=True, highlight=False)
    if plot is not None and json_file is not None:
        from triton_voice_bench.plot import plot as draw

        draw(json_file, plot)
        out.print(f"drawn: {plot}", soft_wrap=True, highlight=False)
