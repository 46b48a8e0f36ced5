"""`triton-voice speak`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from triton_voice.cli.console import URL, Url, err
from triton_voice.client import TritonVoice
from triton_voice.types import TTS_SAMPLE_RATE


def speak(
    text: Annotated[str, typer.Argument(help="What to say.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV file to write.")] = Path("speech.wav"),
    server: Url = URL,
    voice: Annotated[str | None, typer.Option(help="Name of the voice.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of the text.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same speech.")] = None,
) -> None:
    """Speak a text into a WAV file, written as the audio comes in."""

    async def run() -> tuple[float, float]:
        began, first, seconds = time.monotonic(), 0.0, 0.0
        async with TritonVoice(server) as connection:
            with soundfile.SoundFile(output, "w", TTS_SAMPLE_RATE, 1, "PCM_16", format="WAV") as wav:
                async for chunk in connection.speak(text, voice=voice, language=language, seed=seed):
                    first = first or time.monotonic() - began
                    wav.write(chunk.audio)
                    seconds += chunk.duration_s
        return first, seconds

    first, seconds = asyncio.run(run())
    err.print(f"{output}: {seconds:.2f} s of speech, first audio after {first * 1000:.0f} ms", soft_wrap=True)
