"""`triton-voice transcribe`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from triton_voice.audio import in_chunks, read_audio
from triton_voice.cli.console import URL, Url, err, out
from triton_voice.client import TritonVoice
from triton_voice.types import Transcript


def transcribe(
    file: Annotated[Path, typer.Argument(help="A WAV, FLAC, Ogg or MP3 file of any rate.")],
    server: Url = URL,
    latency: Annotated[int | None, typer.Option(help="Lookahead in ms, as the checkpoint offers.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Send at the speed of speech.")] = False,
) -> None:
    """Write down what a file says, showing the transcript as it grows."""
    audio = read_audio(file)

    async def run() -> Transcript:
        async with TritonVoice(server) as voice:
            with err.status("listening ...") as status:
                async for transcript in voice.transcribe(in_chunks(audio, 0.16, realtime), latency_ms=latency):
                    status.update(transcript.text or "listening ...")
        return transcript

    out.print(asyncio.run(run()).text, highlight=False, markup=False, soft_wrap=True)
