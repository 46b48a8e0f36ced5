"""`triton-voice eval`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, out
from triton_voice.cli.serving import running
from triton_voice.client import TritonVoice
from triton_voice.errors import InvalidInput
from triton_voice.evaluation import answering, hearing, speaking
from triton_voice.evaluation.report import Floors, Report
from triton_voice.evaluation.sets import Line, Question, Recording, read_lines, read_manifest, read_questions
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.settings import MODELS, Device, Weights

#: Sets of the small world, for the checkpoints that come with the project.
OWN_SETS = "checkpoints/evaluation"
MANIFEST, TEXTS, DIALOGUES = "speech.jsonl", "replies.jsonl", "dialogues.jsonl"
MAX_WIDTH = 200
UNKNOWN_WEIGHTS = "whatever the server at {url} has loaded"


def evaluate(
    manifest: Annotated[
        Path | None, typer.Option(help="Recordings: a NeMo manifest (audio_filepath, text on each line).")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to speak and read back: one a line, or .jsonl with text and spoken.")
    ] = None,
    dialogues: Annotated[
        Path | None, typer.Option(help="Dialogues: .jsonl with messages, tools, and accepted, contains or call.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", envvar="TRITON_VOICE_URL", help="Measure a running server.")
    ] = None,
    models: weight_options.ModelsDir = None,
    hub: weight_options.Hub = False,
    device: Device = "auto",
    latency: Annotated[
        str | None, typer.Option(help="Lookaheads in ms, e.g. 80,160. Default: all that the checkpoint offers.")
    ] = None,
    group_by: Annotated[str | None, typer.Option(help="Field of the manifest to tell apart, e.g. voice.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compare with NeMo's transcript of whole files, same checkpoint.")
    ] = False,
    parakeet: Annotated[
        str | None, typer.Option(help="The recogniser's checkpoint; with --offline and --server it must be named.")
    ] = None,
    voices: Annotated[str | None, typer.Option(help="The synthesiser's voices, e.g. aria,leo. Default: one.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Cut each speech here.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many of each set.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many are measured at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the speech.")] = 0,
    max_wer: Annotated[float | None, typer.Option(min=0, help="Floor: word error rate at every lookahead.")] = None,
    max_wrong_silences: Annotated[
        int | None, typer.Option(min=0, help="Floor: recordings without speech in which words are heard.")
    ] = None,
    max_offline_wer: Annotated[
        float | None, typer.Option(min=0, help="Floor: word errors of streaming against offline; 0 is equality.")
    ] = None,
    max_read_back_wer: Annotated[float | None, typer.Option(min=0, help="Floor: word errors of the speech.")] = None,
    max_runaways: Annotated[int | None, typer.Option(min=0, help="Floor: texts whose speech does not end.")] = None,
    max_truncations: Annotated[int | None, typer.Option(min=0, help="Floor: texts whose speech ends early.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Floor: part of the answers that are right.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here, mistakes included.")] = None,
) -> None:
    """Measure what a server hears, says and answers: word error rates, read-back of the speech, right answers.

    Give one set or several; with none, the small world's own sets are used, all three. Without --server one is
    started. Exit code 1 when a figure falls through a floor that is given.
    """
    floors = Floors(
        max_wer, max_wrong_silences, max_offline_wer, max_read_back_wer, max_runaways, max_truncations, min_accuracy
    )
    if not (manifest or texts or dialogues):
        manifest, texts, dialogues = (_own(name) for name in (MANIFEST, TEXTS, DIALOGUES))
    recordings = read_manifest(manifest, group_by)[:limit] if manifest else []
    lines = read_lines(texts)[:limit] if texts else []
    questions = read_questions(dialogues)[:limit] if dialogues else []
    lookaheads = _numbers(latency) if latency else None
    if offline and not recordings:
        raise InvalidInput("--offline needs a --manifest")
    if offline and server is not None and parakeet is None:
        raise InvalidInput("--offline needs --parakeet as well: the checkpoint that the server has loaded")
    wanted = {"parakeet": bool(recordings or lines), "magpie": bool(lines), "nemotron": bool(questions)}
    with _endpoint(server, models, hub, parakeet, device, tuple(m for m in MODELS if wanted[m])) as (url, weights):
        used = {"hearing": manifest, "speaking": texts, "answering": dialogues}
        report = Report(weights.label, {part: str(path) for part, path in used.items() if path})
        with _progress() as progress:

            async def measure() -> list[hearing.HearingResult]:
                async with TritonVoice(url) as voice:
                    heard = await _hear(voice, recordings, lookaheads, jobs, progress)
                    report.speaking = await _speak(voice, lines, lookaheads, voices, jobs, seed, max_seconds, progress)
                    report.answering = await _answer(voice, questions, jobs, progress)
                    return heard

            heard = asyncio.run(measure())
            if offline:
                heard = _offline(str(parakeet or weights.parakeet), recordings, heard, progress)
    report.hearing = [result.row() for result in heard]
    for table in report.tables():  # figures are not cut to the width of a terminal or of a pipe
        natural = Measurement.get(out, out.options.update(max_width=MAX_WIDTH), table).maximum
        Console(width=max(natural, out.width)).print(table)
    out.print(f"weights: {report.weights}", soft_wrap=True, highlight=False)
    fallen = report.fallen(floors)
    if json_file is not None:
        report.write(json_file, fallen)
        out.print(f"written: {json_file}", soft_wrap=True, highlight=False)
    for sentence in fallen:
        err.print(f"[bold red]fell through:[/] {sentence}", highlight=False, soft_wrap=True)
    if fallen:
        raise typer.Exit(1)


def _own(name: str) -> Path:
    path = project_root() / OWN_SETS / name
    if not path.exists():
        raise InvalidInput(f"there is no {path}; give --manifest, --texts or --dialogues")
    return path


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(f"--latency {text}: give lookaheads in ms, separated by commas, e.g. 80,160") from None


@contextlib.contextmanager
def _endpoint(
    url: str | None, models: Path | None, hub: bool, parakeet: str | None, device: Device, only: tuple[str, ...]
) -> Iterator[tuple[str, Weights]]:
    """The given server, or one of our own with the models that are needed; with what is known of its weights."""
    if url is not None:
        yield url, Weights(label=UNKNOWN_WEIGHTS.format(url=url))
        return
    weights = weight_options.resolve(models, hub, parakeet, None, None, None)
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device=device, only=only)
    with running(TritonServer(settings, weights)) as server:
        yield server.grpc_url, weights


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description:>28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=err)


def _task(progress: Progress, description: str, total: int) -> Callable[[], None]:
    return functools.partial(progress.advance, progress.add_task(description, total=total))


async def _hear(
    voice: TritonVoice, recordings: Sequence[Recording], lookaheads: list[int] | None, jobs: int, progress: Progress
) -> list[hearing.HearingResult]:
    if not recordings:
        return []
    results = []
    for latency_ms in lookaheads or await hearing.offered_lookaheads(voice):
        on_done = _task(progress, f"hearing at {latency_ms} ms", len(recordings))
        results.append(await hearing.hear(voice, recordings, latency_ms, jobs, on_done))
    return results


async def _speak(
    voice: TritonVoice,
    lines: Sequence[Line],
    lookaheads: list[int] | None,
    voices: str | None,
    jobs: int,
    seed: int,
    max_seconds: float | None,
    progress: Progress,
) -> list[dict[str, object]]:
    """Every voice, heard with the longest lookahead: the recogniser's own mistakes are not what is asked."""
    if not lines:
        return []
    latency_ms = max(lookaheads or await hearing.offered_lookaheads(voice))
    rows = []
    for name in voices.split(",") if voices else [None]:
        on_done = _task(progress, f"speaking ({name or 'default'})", len(lines))
        result = await speaking.read_back(voice, lines, name, latency_ms, jobs, seed, max_seconds, on_done)
        rows.append(result.row())
    return rows


async def _answer(
    voice: TritonVoice, questions: Sequence[Question], jobs: int, progress: Progress
) -> list[dict[str, object]]:
    if not questions:
        return []
    result = await answering.ask(voice, questions, jobs, on_done=_task(progress, "answering", len(questions)))
    return [result.row()]


def _offline(
    checkpoint: str, recordings: Sequence[Recording], heard: list[hearing.HearingResult], progress: Progress
) -> list[hearing.HearingResult]:
    from triton_voice.evaluation.offline import OfflineRecogniser

    recogniser = OfflineRecogniser(checkpoint)
    results = []
    for result in heard:
        on_done = _task(progress, f"offline at {result.latency_ms} ms", len(recordings))
        texts = recogniser.transcribe_all(recordings, result.latency_ms, on_done)
        results.append(replace(result, offline=texts))
    return results
