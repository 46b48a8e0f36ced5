"""`triton-voice transcribe`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from triton_voice.audio import Samples, in_chunks, microphone, read_audio, read_raw
from triton_voice.cli.console import URL, Url, err, fail, out
from triton_voice.client import TritonVoice
from triton_voice.errors import InvalidInput
from triton_voice.types import ASR_SAMPLE_RATE, Transcript

CHUNK_S = 0.16
STDIN = Path("-")


def _raw_format(text: str | None) -> tuple[int, int] | None:
    """Reads `RATE` or `RATE:CHANNELS`."""
    if text is None:
        return None
    rate, _, channels = text.partition(":")
    try:
        form = int(rate), int(channels or 1)
    except ValueError:
        form = 0, 0
    if min(form) < 1:
        fail(f"--raw takes RATE or RATE:CHANNELS, e.g. 48000:2; not {text!r}")
    return form


def _load(file: Path, raw: tuple[int, int] | None) -> Samples:
    if raw is None:
        return read_audio(file)
    data = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    return read_raw(data, *raw)


@contextlib.contextmanager
def _noting(file: Path, failures: list[Path]) -> Iterator[None]:
    """Says what is wrong with a file, and goes on."""
    try:
        yield
    except (InvalidInput, OSError) as error:
        failures.append(file)
        err.print(f"[bold red]{escape(str(file))}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def _print(name: str, transcript: Transcript, named: bool, as_json: bool) -> None:
    if as_json:
        record = {
            "file": name,
            "text": transcript.text,
            "words": [dataclasses.asdict(word) for word in transcript.words],
            "audio_s": round(transcript.audio_s, 3),
            "final_latency_ms": round(transcript.latency_s * 1000, 1),
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
    else:
        out.print(
            f"{name}: {transcript.text}" if named else transcript.text, highlight=False, markup=False, soft_wrap=True
        )


def transcribe(
    files: Annotated[
        list[Path] | None, typer.Argument(help="WAV, FLAC, Ogg or MP3 files of any rate; - with --raw is stdin.")
    ] = None,
    server: Url = URL,
    mic: Annotated[bool, typer.Option("--mic", help="Listen to the microphone until Ctrl-C.")] = False,
    raw: Annotated[str | None, typer.Option(help="The files are headerless int16: RATE or RATE:CHANNELS.")] = None,
    latency: Annotated[int | None, typer.Option(help="Lookahead in ms, as the checkpoint offers.")] = None,
    language: Annotated[str | None, typer.Option(help="Language, for checkpoints that know several.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Send at the speed of speech.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Files at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per file, with words and times.")] = False,
) -> None:
    """Write down what files or the microphone say, showing the transcripts as they grow."""
    if mic == bool(files):
        fail("give files or --mic")
    chunk_s = (latency or CHUNK_S * 1000) / 1000
    raw_format = _raw_format(raw)
    failures: list[Path] = []

    async def one(
        voice: TritonVoice, name: str, audio: AsyncIterable[Samples], progress: Progress, task: TaskID
    ) -> None:
        transcript = None
        speech = voice.transcribe(audio, latency_ms=latency, language=language)
        try:
            async with contextlib.aclosing(speech) as transcripts:
                async for transcript in transcripts:
                    progress.update(task, completed=transcript.audio_s, heard=transcript.text[-60:])
        finally:  # Ctrl-C is how the microphone ends: what was heard until then is the result
            progress.remove_task(task)
            if transcript is not None and (transcript.is_final or mic):
                _print(name, transcript, len(files or []) > 1, as_json)

    async def run(progress: Progress) -> None:
        async with TritonVoice(server) as voice:
            if mic:
                task = progress.add_task("microphone", total=None, heard="")
                await one(voice, "microphone", microphone(chunk_s), progress, task)
                return
            room = asyncio.Semaphore(jobs)

            async def of_file(file: Path) -> None:
                async with room:
                    with _noting(file, failures):  # it costs the others nothing
                        audio = await asyncio.to_thread(_load, file, raw_format)
                        task = progress.add_task(file.name, total=len(audio) / ASR_SAMPLE_RATE, heard="")
                        await one(voice, str(file), in_chunks(audio, chunk_s, realtime), progress, task)

            await asyncio.gather(*(of_file(file) for file in files or []))

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[heard]}"))
    try:
        with Progress(*columns, console=err, transient=True) as progress:
            asyncio.run(run(progress))
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(0 if mic else 130) from None
    if failures:
        fail(f"{len(failures)} of {len(files or [])} files could not be transcribed")
