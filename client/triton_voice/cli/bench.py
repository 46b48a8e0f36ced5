"""`triton-voice bench`: the benchmarks of `perf/triton_voice_bench`, which is part of a checkout and of the image."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from triton_voice import checkpoints
from triton_voice.cli import bench_perf_analyzer, bench_results
from triton_voice.cli import weights as weight_options
from triton_voice.cli.bench_common import (
    CheckpointSize,
    Json,
    Label,
    MetricsUrl,
    OwnCheckpoint,
    OwnCodec,
    Plot,
    Precision,
    Server,
    Size,
    numbers,
    require_package,
    served,
    show,
    weights_of,
)
from triton_voice.cli.console import err, fail
from triton_voice.server.settings import MODELS, Device, Weights

app = typer.Typer(
    help="Measure this machine. Each benchmark prints a table, and writes and draws it where asked to.",
    no_args_is_help=True,
)


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
    require_package(plot)
    from triton_voice_bench import asr as bench

    asked = bench.AsrBench(numbers("--streams", streams), latency, seconds, paced, wav, processes)
    environment = {"PARAKEET_PRECISION": precision, "PARAKEET_MAX_STREAMS": str(max(128, *asked.streams))}
    weights = _parakeet(size, checkpoint)
    with (
        served(server, metrics, label, ("parakeet",), weights, device, environment) as serving,
        Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        ) as progress,
    ):
        tasks: dict[int, TaskID] = {}

        def on_progress(streams: int, settled: int, of: int) -> None:
            if streams not in tasks:
                tasks[streams] = progress.add_task(f"{streams} streams", total=of)
            progress.update(tasks[streams], completed=settled)

        report = bench.run(asked, serving.url, serving.metrics_url, serving.about, on_progress)
    show(report, bench.COLUMNS, json_file, plot)


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
    require_package(plot)
    from triton_voice_bench import asr_engine as bench

    wanted = numbers("--batch", batch)
    with err.status("checkpoint ...") as status:
        weights = _parakeet(size, checkpoint)
        if not isinstance(weights, Weights):
            weights = weights_of(
                weights,
                "parakeet",
                on_part=lambda part: status.update(f"making the {size} {part} checkpoint ..."),
            )
        assert weights.parakeet is not None
        asked = bench.EngineBench(weights.parakeet, wanted, latency, precision, device, steps, row_seconds)
        report = bench.run(asked, weights.label, lambda what: status.update(f"{what} ..."))
    show(report, bench.COLUMNS, json_file, plot)


@app.command("llm")
def llm(
    streams: Annotated[str, typer.Option(help="Chats at once, a row each.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=1, help="How often each row is repeated, alternating with bare vLLM.")] = 5,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions that each chat asks in a round, one after the other.")
    ] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Length of each reply.")] = 128,
    reference: Annotated[bool, typer.Option(help="Bare AsyncLLM beside it, which loads the model once more.")] = True,
    server: Server = None,
    label: Label = None,
    size: CheckpointSize = "tiny",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A model's folder or hub name instead of those of --size. random:0.2B makes one with random weights, "
            "whose steps on a CPU take about as long as a big model's on a GPU."
        ),
    ] = None,
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The language model through gRPC beside vLLM's bare engine: time to first token, tokens per second.

    With --server, give --checkpoint as well: the reference must load what the server has.
    """
    require_package(plot)
    from triton_voice_bench import llm as bench

    wanted = numbers("--streams", streams)
    weights: Weights | Size = size
    if checkpoint:
        with err.status("checkpoint ..."):
            try:
                checkpoint, about = bench.checkpoint(checkpoint)
            except ValueError as error:
                fail(f"--checkpoint: {error}")
        weights = Weights(llm=checkpoint, label=about)
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(served(server, None, label, ("nemotron",), weights, device))
        loaded = serving.weights.llm if serving.weights else checkpoint
        asked = bench.LlmBench(wanted, rounds, questions, tokens, loaded if reference else None)
        status = stack.enter_context(err.status("llm ..."))
        report = bench.run(asked, serving.url, serving.about, lambda what: status.update(f"{what} ..."))
    show(report, bench.COLUMNS, json_file, plot)


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
    checkpoint: OwnCheckpoint = None,
    codec: OwnCodec = None,
    precision: Precision = "float32",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """A server's synthesiser under a growing number of listeners: time to first audio, underruns of their players."""
    require_package(plot)
    from triton_voice_bench import tts as bench

    asked = bench.TtsBench(numbers("--streams", streams), sentences, max_seconds, voice)
    weights: Weights | Size = Weights(magpie=checkpoint, codec=codec, label=checkpoint) if checkpoint else size
    environment = {"MAGPIE_PRECISION": precision, "MAGPIE_MAX_STREAMS": str(max(8, *asked.streams))}
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(served(server, metrics, label, ("magpie",), weights, device, environment))
        status = stack.enter_context(err.status("tts ..."))
        report = bench.run(
            asked,
            serving.url,
            serving.metrics_url,
            serving.about,
            lambda now, done, of: status.update(f"{now} streams: {done} of {of} sentences"),
        )
    show(report, bench.COLUMNS, json_file, plot)


@app.command("tts-engine")
def tts_engine(
    batch: Annotated[str, typer.Option(help="Utterances at once, a row each.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(help="Length of each utterance.")] = 20.0,
    size: CheckpointSize = "full",
    checkpoint: OwnCheckpoint = None,
    codec: OwnCodec = None,
    precision: Precision = "float32",
    device: Device = "auto",
    json_file: Json = None,
    plot: Plot = None,
) -> None:
    """The synthesiser's engine without a server: a frame's time by batch, its floor, and do_tts in the same run."""
    require_package(plot)
    from triton_voice_bench import tts_engine as bench

    wanted = numbers("--batch", batch)
    random: checkpoints.Size = "tiny"
    if size != "trained":
        random, about = size, checkpoint or f"{size} checkpoints, {checkpoints.RANDOM_WEIGHTS_NOTE}"
    elif checkpoint is None:
        trained = weights_of(size, "magpie")
        checkpoint, codec, about = trained.magpie, trained.codec, trained.label
    else:
        about = checkpoint
    asked = bench.TtsEngineBench(wanted, seconds, random, checkpoint, codec, precision, device)
    with err.status("tts-engine ...") as status:
        report = bench.run(asked, about, lambda what: status.update(f"{what} ..."))
    show(report, bench.COLUMNS, json_file, plot)


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
    require_package(plot)
    if importlib.util.find_spec("pipecat") is None:
        fail("pipecat is not installed: pip install -e '.[bot]' in the checkout")
    from loguru import logger

    from triton_voice_bench import turn as bench

    logger.remove()  # Pipecat's log would tear the table apart; errors are in the result
    asked = bench.TurnBench(numbers("--streams", streams), turns, reply_tokens, wav)
    weights: Weights | Size = size
    if models is not None and server is None:
        weights = weight_options.resolve(models, False, None, None, None, None)
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(served(server, None, label, MODELS, weights, device))
        status = stack.enter_context(err.status("turn ..."))
        report = bench.run(
            asked,
            serving.url,
            serving.about,
            lambda now, done, of: status.update(f"{now} at once: {done} of {of} turns"),
        )
    show(report, bench.COLUMNS, json_file, plot)


def _parakeet(size: Size, checkpoint: str | None) -> Weights | Size:
    return Weights(parakeet=checkpoint, label=checkpoint) if checkpoint else size


bench_perf_analyzer.register(app)
bench_results.register(app)
