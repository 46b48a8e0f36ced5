"""`triton-voice speak`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from triton_voice.audio import Samples
from triton_voice.cli.console import URL, Url, err, fail
from triton_voice.client import TritonVoice
from triton_voice.errors import InvalidInput
from triton_voice.types import TTS_SAMPLE_RATE

STANDARD = Path("-")
DEFAULT_FILE = Path("speech.wav")
Write = Callable[[Samples], object]


@contextlib.contextmanager
def _wav(file: Path) -> Iterator[Write]:
    with soundfile.SoundFile(file, "w", TTS_SAMPLE_RATE, 1, "PCM_16", format="WAV") as wav:
        yield wav.write


@contextlib.contextmanager
def _pcm(file: Path) -> Iterator[Write]:
    """Headerless little-endian int16."""
    with contextlib.ExitStack() as stack:
        target = sys.stdout.buffer if file == STANDARD else stack.enter_context(file.open("wb"))

        def write(audio: Samples) -> None:
            target.write(audio.astype("<i2").tobytes())
            target.flush()  # whoever reads the pipe plays it now

        yield write


@contextlib.contextmanager
def _speaker() -> Iterator[Write]:
    """The default output device."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InvalidInput(
            "the speaker needs `pip install -e '.[microphone]'` in the checkout and the system's libportaudio2 "
            f"(apt-get install libportaudio2): {error}"
        ) from error
    try:
        stream = sounddevice.OutputStream(TTS_SAMPLE_RATE, channels=1, dtype="int16")
    except sounddevice.PortAudioError as error:
        raise InvalidInput(f"no speaker can be used: {error}") from error
    with stream:
        yield stream.write
        stream.stop()  # after what it still holds has been heard


def speak(
    text: Annotated[str, typer.Argument(help="What to say; - reads it from stdin.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; - is stdout, raw.")] = None,
    server: Url = URL,
    raw: Annotated[
        bool, typer.Option("--raw", help=f"Headerless int16 at {TTS_SAMPLE_RATE} Hz; without -o to stdout.")
    ] = False,
    play: Annotated[bool, typer.Option("--play", help="Play it on the speaker.")] = False,
    voice: Annotated[str | None, typer.Option(help="Name of the voice.")] = None,
    language: Annotated[str | None, typer.Option(help="Language of the text.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same speech.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Tell each word's start on stderr.")] = False,
) -> None:
    """Speak a text into a WAV file, as raw samples to stdout, or on the speaker, while the audio comes in."""
    if play and (raw or output is not None):
        fail("--play goes without --raw and --output")
    file = output or (STANDARD if raw else DEFAULT_FILE)
    spoken = sys.stdin.read() if text == "-" else text

    async def run(write: Write) -> tuple[float, float]:
        began, first, seconds = time.monotonic(), 0.0, 0.0
        async with TritonVoice(server) as connection:
            speech = connection.speak(spoken, voice=voice, language=language, seed=seed)
            async with contextlib.aclosing(speech) as chunks:
                async for chunk in chunks:
                    first = first or time.monotonic() - began
                    for word in chunk.words if words else ():
                        err.print(f"{word.start:8.2f}  {word.word}", highlight=False, markup=False, soft_wrap=True)
                    await asyncio.to_thread(write, chunk.audio)
                    seconds += chunk.duration_s
        return first, seconds

    sink = _speaker() if play else _pcm(file) if raw or file == STANDARD else _wav(file)
    try:
        with sink as write:
            first, seconds = asyncio.run(run(write))
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None  # `| head`, or a player that was closed: leaving the iteration has cancelled it
    where = "speaker" if play else "stdout" if file == STANDARD else str(file)
    err.print(f"{where}: {seconds:.2f} s of speech, first audio after {first * 1000:.0f} ms", soft_wrap=True)
