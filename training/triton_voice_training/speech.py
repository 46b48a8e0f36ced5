"""Speech to train on, made by two small synthesisers that every Linux distribution has: espeak-ng and flite.

espeak-ng is a formant synthesiser with dozens of voices, flite's voices are recordings of people turned into models.
Both run as programs, once for each utterance. `corpus.render` speaks many.

    python -m triton_voice_training.speech "What time is it in Tokyo?" --voice slt --out question.wav
"""

from __future__ import annotations

import argparse
import io
import math
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

SAMPLE_RATE = 16_000
#: espeak-ng's pace at speed 1, in words a minute, and its range.
ESPEAK_WORDS_PER_MINUTE = 175
ESPEAK_PITCH_DEFAULT = 50
#: Steps of espeak-ng's pitch scale (0 to 99) in an octave, about.
ESPEAK_PITCH_STEPS_PER_OCTAVE = 75
#: Every utterance is scaled to this peak, of full scale.
PEAK = 0.7
#: What is under this part of the peak at either end is silence and cut away, but for a margin.
SILENCE_LEVEL = 0.01
SILENCE_MARGIN_S = 0.02
#: One utterance takes milliseconds; a program that takes so long hangs.
SYNTHESIS_TIMEOUT_S = 60


class SpeechError(Exception):
    """Speech cannot be made; the message says what to do about it."""


@dataclass(frozen=True)
class Voice:
    """One voice of one synthesiser.

    Attributes:
        name: What the synthesiser calls it.
        engine: Which program speaks.
        weight: How often it is drawn when voices are mixed.
        held_out: Whether no model is trained on it, so that it can show what a stranger's voice does.
    """

    name: str
    engine: Literal["espeak-ng", "flite"]
    weight: float = 1.0
    held_out: bool = False


_ESPEAK = """
    en-us en-us+m1 en-us+m2 en-us+m3 en-us+m4 en-us+m6 en-us+m7 en-us+m8 en-us+f1 en-us+f2 en-us+f3 en-us+f5
    en-us+Alex en-us+Andy en-us+Annie en-us+linda en-us+adam en-us+belinda en-us+benjamin en-us-nyc en-us-nyc+f2
    en-gb en+m2 en+m3 en+m4 en+m7 en+f1 en+f2 en+f3 en+f5 en-gb-x-rp en-gb-x-rp+f3 en-gb-x-rp+m1
    en-gb-scotland en-gb-scotland+f2 en-gb-x-gbclan+m3 en-gb-x-gbcwmd+f1 en-029+m7
"""
#: Voices by name. flite's three recorded speakers are drawn more often: they are the most like people.
VOICES: dict[str, Voice] = {
    voice.name: voice
    for voice in (
        *(Voice(name, "espeak-ng") for name in _ESPEAK.split()),
        *(Voice(name, "flite", weight=5.0) for name in ("slt", "rms", "awb")),
        Voice("en-us+f4", "espeak-ng", held_out=True),
        Voice("en+m5", "espeak-ng", held_out=True),
        Voice("kal16", "flite", held_out=True),
    )
}


def spoken(text: str) -> str:
    """Returns a text as the served synthesiser says it: "It is 7:05 PM." becomes "It is seven oh five P M."."""
    from magpie_engine.normalization import LightNormalizer

    return LightNormalizer().normalize(text, "en")


def synthesize(
    text: str, voice: Voice | str, speed: float = 1.0, pitch: float = 1.0, sample_rate: int = SAMPLE_RATE
) -> Samples:
    """Says a text.

    Silence before and after is cut, and the level is the same for every voice.

    Args:
        text: What to say, numbers in words.
        voice: A voice or its name in `VOICES`.
        speed: Pace, 1 being the voice's own; 2 is twice as fast.
        pitch: Pitch, 1 being the voice's own; 2 is an octave higher.
        sample_rate: Of the result.

    Returns:
        Mono audio, int16.

    Raises:
        SpeechError: The synthesiser is not installed, does not know the voice, or made no sound.
    """
    if isinstance(voice, str):
        if voice not in VOICES:
            raise SpeechError(f"no voice is called {voice!r}; there are {', '.join(VOICES)}")
        voice = VOICES[voice]
    command = _espeak(voice, text, speed, pitch) if voice.engine == "espeak-ng" else _flite(voice, text, speed, pitch)
    try:
        done = subprocess.run(command, capture_output=True, timeout=SYNTHESIS_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise SpeechError(
            f"{voice.engine} is not installed; on Debian and Ubuntu: apt install espeak-ng flite"
        ) from None
    except subprocess.TimeoutExpired:
        raise SpeechError(f"{voice.engine} took over {SYNTHESIS_TIMEOUT_S} s to say {text!r} as {voice.name}") from None
    if done.returncode or not done.stdout.startswith(b"RIFF"):
        why = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise SpeechError(f"{voice.engine} could not say {text!r} as {voice.name}: {why}")
    audio, rate = _read_wave(done.stdout)
    if rate != sample_rate:
        from scipy.signal import resample_poly

        common = math.gcd(sample_rate, rate)
        audio = resample_poly(audio, sample_rate // common, rate // common).astype(np.float32)
    audio = _trim(audio, sample_rate)
    peak = float(np.abs(audio).max(initial=0.0))
    if peak == 0:
        raise SpeechError(f"{voice.engine} made no sound for {text!r}")
    result: Samples = np.round(audio * (PEAK * 32767 / peak)).astype(np.int16)
    return result


def _espeak(voice: Voice, text: str, speed: float, pitch: float) -> list[str]:
    scale = round(ESPEAK_PITCH_DEFAULT + ESPEAK_PITCH_STEPS_PER_OCTAVE * math.log2(pitch))
    words_per_minute = round(ESPEAK_WORDS_PER_MINUTE * speed)
    return ["espeak-ng", "-v", voice.name, "-s", str(words_per_minute), "-p", str(min(max(scale, 0), 99)),
            "--stdout", "--", text]  # fmt: skip


def _flite(voice: Voice, text: str, speed: float, pitch: float) -> list[str]:
    # A leading blank keeps the text from being taken for a file's name or an option.
    return ["flite", "-voice", voice.name, "--setf", f"duration_stretch={1 / speed:.4f}",
            "--setf", f"f0_shift={pitch:.4f}", "-t", f" {text}", "-o", "/dev/stdout"]  # fmt: skip


def _read_wave(data: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """Reads 16-bit mono; the length in espeak-ng's header is that of an endless stream, so the data's own counts."""
    with wave.open(io.BytesIO(data)) as file:
        rate = file.getframerate()
    body = data[data.index(b"data", 12) + 8 :]
    return np.frombuffer(body[: len(body) // 2 * 2], "<i2").astype(np.float32), rate


def _trim(audio: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.float32]:
    loud = np.flatnonzero(np.abs(audio) > SILENCE_LEVEL * np.abs(audio).max(initial=0.0))
    if not len(loud):
        return audio
    margin = round(SILENCE_MARGIN_S * sample_rate)
    return audio[max(0, loud[0] - margin) : loud[-1] + 1 + margin]


def main() -> None:
    """Says one text into a file."""
    parser = argparse.ArgumentParser(description="Speak a text with espeak-ng or flite.")
    parser.add_argument("text", nargs="?", default="Hello! How can I help you?")
    parser.add_argument("--voice", default="slt", help=", ".join(VOICES))
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--pitch", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("speech.wav"))
    options = parser.parse_args()
    try:
        audio = synthesize(options.text, options.voice, options.speed, options.pitch)
    except SpeechError as error:
        sys.exit(str(error))
    with wave.open(str(options.out), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(audio.tobytes())


if __name__ == "__main__":
    main()
