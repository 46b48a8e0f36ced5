"""What happens to speech between a mouth and a recogniser, in batches on any device.

All functions take audio as (batch, samples) float32 of full scale 1 and draw from the generator that they are given,
so the same seed gives the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SAMPLE_RATE = 16_000
#: Rows are padded to a multiple of this, so that a GPU plans few sizes of Fourier transforms.
PADDING = 4000
#: Longest room response.
ROOM_S = 0.3
#: Reverberation times that are drawn: short, as of furnished rooms.
T60_S = (0.1, 0.6)
#: How much louder the direct sound is than its reverberation.
DIRECT_DB = (0.0, 18.0)
TELEPHONE_HZ = (300.0, 3400.0)
#: Edges of band limits fall off over so much.
BAND_EDGE_HZ = 150.0
#: Level of speech in the recording.
GAIN_DB = (-30.0, 4.0)
NOISE_SNR_DB = (3.0, 40.0)
BABBLE_SNR_DB = (10.0, 35.0)
#: Level of noise where nobody speaks.
NOISE_LEVEL_DB = (-75.0, -15.0)
#: Changes of loudness in a second of unsteady noise.
UNSTEADY_HZ = 6
HUM_HZ = (50.0, 1500.0)


@dataclass(frozen=True)
class Chances:
    """How often each thing happens to an utterance."""

    noise: float = 0.6
    babble: float = 0.1
    room: float = 0.35
    telephone: float = 0.08
    low_pass: float = 0.1
    tilt: float = 0.3
    clipping: float = 0.04
    gain: float = 0.9


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> torch.Tensor:
    """Draws (count, 1) numbers on the generator's device."""
    return torch.rand(count, 1, generator=generator, device=generator.device) * (high - low) + low


def happens(generator: torch.Generator, count: int, chance: float) -> torch.Tensor:
    """Draws (count, 1) booleans."""
    return torch.rand(count, 1, generator=generator, device=generator.device) < chance


def from_db(decibels: torch.Tensor) -> torch.Tensor:
    """Returns amplitudes."""
    return torch.pow(10.0, decibels / 20)


def coloured_noise(count: int, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Draws noise of unit power whose spectrum falls by 0 (white) to 6 dB (brown) an octave, half of it unsteady."""
    device = generator.device
    noise = torch.randn(count, samples, generator=generator, device=device)
    spectrum = torch.fft.rfft(noise)
    hertz = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, device=device).clamp(min=20)
    noise = torch.fft.irfft(spectrum * torch.pow(hertz, -uniform(generator, count, 0, 1)), samples)
    steps = max(2, round(samples / SAMPLE_RATE * UNSTEADY_HZ))
    loudness = torch.randn(count, 1, steps, generator=generator, device=device)
    swing = uniform(generator, count, 0.2, 1.5) * happens(generator, count, 0.5)
    noise = noise * torch.exp(swing * F.interpolate(loudness, samples, mode="linear", align_corners=True)[:, 0])
    return noise / noise.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)


def hum(count: int, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Draws tones with four harmonics, of unit power: mains, fans, beeps."""
    time = torch.arange(samples, device=generator.device) / SAMPLE_RATE
    low, high = HUM_HZ
    pitch = low * torch.pow(high / low, uniform(generator, count, 0, 1))
    tones = torch.zeros(count, samples, device=generator.device)
    for harmonic in range(1, 5):
        tones += uniform(generator, count, 0, 1) / harmonic * torch.sin(2 * torch.pi * harmonic * pitch * time)
    return tones / tones.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)


def room_response(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws impulse responses: the direct sound and an exponentially fading, noisy tail."""
    taps = round(ROOM_S * SAMPLE_RATE)
    time = torch.arange(taps, device=generator.device) / SAMPLE_RATE
    fading = torch.exp(-6.9 * time / uniform(generator, count, *T60_S))  # 60 dB in T60
    tail = torch.randn(count, taps, generator=generator, device=generator.device) * fading
    tail = tail / tail.square().sum(1, keepdim=True).sqrt() * from_db(-uniform(generator, count, *DIRECT_DB))
    tail[:, 0] = 1
    return tail


def band_response(count: int, bins: torch.Tensor, generator: torch.Generator, chances: Chances) -> torch.Tensor:
    """Draws frequency responses of telephones, dull microphones and tilted ones: (count, bins), amplitudes."""

    def above(edge: torch.Tensor | float) -> torch.Tensor:
        return torch.sigmoid((bins - edge) / BAND_EDGE_HZ * 4)

    whole = torch.ones(count, len(bins), device=bins.device)
    telephone = above(TELEPHONE_HZ[0]) * (1 - above(TELEPHONE_HZ[1]))
    response = torch.where(happens(generator, count, chances.telephone), telephone, whole)
    dull = 1 - above(uniform(generator, count, 3000, 7000))
    response = response * torch.where(happens(generator, count, chances.low_pass), dull, whole)
    octaves = torch.log2(bins.clamp(min=50) / 1000)
    tilted = from_db(octaves * uniform(generator, count, -4, 4))
    return response * torch.where(happens(generator, count, chances.tilt), tilted, whole)


def augment(
    speech: torch.Tensor, is_speech: torch.Tensor, generator: torch.Generator, chances: Chances | None = None
) -> torch.Tensor:
    """Puts speech into rooms, noise and bad microphones.

    Args:
        speech: (batch, samples). Rows without speech are zeros and become silence or noise.
        is_speech: (batch,), bool.
        generator: On the device of `speech`.
        chances: How often each thing happens.

    Returns:
        (batch, samples), rounded to the steps of 16-bit audio, within full scale.
    """
    chances = chances or Chances()
    count, samples = speech.shape
    spoken = is_speech[:, None]
    size = samples + round(ROOM_S * SAMPLE_RATE)
    room = torch.fft.rfft(room_response(count, generator), size)
    room = torch.where(happens(generator, count, chances.room), room, torch.ones_like(room))
    bins = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=speech.device)
    band = band_response(count, bins, generator, chances)
    heard = torch.fft.irfft(torch.fft.rfft(speech, size) * room * band, size)[:, :samples]
    # The level where someone speaks: the mean over the whole would depend on the silence around it.
    active = heard.abs() > 0.05 * heard.abs().amax(1, keepdim=True).clamp(min=1e-6)
    level = (heard.square() * active).sum(1, keepdim=True).div(active.sum(1, keepdim=True).clamp(min=1)).sqrt()
    noise = coloured_noise(count, samples, generator)
    noise = torch.where(happens(generator, count, 0.15), hum(count, samples, generator), noise)
    noise = noise * level * from_db(-uniform(generator, count, *NOISE_SNR_DB))
    others = babble(speech, generator) * level * from_db(-uniform(generator, count, *BABBLE_SNR_DB))
    heard = (
        heard + noise * happens(generator, count, chances.noise) + others * happens(generator, count, chances.babble)
    )
    gain = from_db(uniform(generator, count, *GAIN_DB))
    heard = torch.where(happens(generator, count, chances.gain), heard * gain, heard)
    overdriven = (heard * 6).clamp(-1, 1) / 3
    heard = torch.where(happens(generator, count, chances.clipping), overdriven, heard)
    empty = coloured_noise(count, samples, generator)
    empty = torch.where(happens(generator, count, 0.2), hum(count, samples, generator), empty)
    empty = empty * from_db(uniform(generator, count, *NOISE_LEVEL_DB)) * happens(generator, count, 0.75)
    heard = torch.where(spoken, heard, empty)
    return (heard.clamp(-1, 1) * 32767).round() / 32768


def babble(speech: torch.Tensor, generator: torch.Generator, talkers: int = 3) -> torch.Tensor:
    """Mixes other rows of the batch, shifted in time, to unit power."""
    count, samples = speech.shape
    mixed = torch.zeros_like(speech)
    for _ in range(talkers):
        row, shift = torch.randint(0, max(count * samples, 1), (2,), generator=generator, device=generator.device)
        order = (torch.arange(count, device=speech.device) + 1 + row % max(count - 1, 1)) % count
        time = (torch.arange(samples, device=speech.device) + shift) % samples
        mixed += speech[order][:, time]
    return mixed / mixed.square().mean(1, keepdim=True).sqrt().clamp(min=1e-4)


@dataclass(frozen=True)
class Scene:
    """One row of a batch: utterances of the corpus one after the other.

    Attributes:
        utterances: Indices into the corpus; none for a row without speech.
        starts: Sample at which each begins.
        samples: Length of the row.
        rate: Playback speed; pitch and formants move with it.
    """

    utterances: tuple[int, ...]
    starts: tuple[int, ...]
    samples: int
    rate: float = 1.0


def compose(scenes: Sequence[Scene], audio: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Lays utterances of a corpus out as the scenes say.

    Args:
        scenes: The rows.
        audio: int16, every utterance after the other, on any device.
        offsets: int64, where each begins, and the end; on the same device.

    Returns:
        (batch, samples of the longest scene and padding), float32, zeros where nobody speaks; on the device of `audio`.
    """
    device, longest = audio.device, max(scene.samples for scene in scenes)
    samples = -(-longest // PADDING) * PADDING
    rate = torch.tensor([scene.rate for scene in scenes]).to(device)[:, None]
    result = torch.zeros(len(scenes), samples, device=device)
    time = torch.arange(samples, device=device)
    for turn in range(max(len(scene.utterances) for scene in scenes)):
        has = [len(scene.utterances) > turn for scene in scenes]
        index = torch.tensor([s.utterances[turn] if h else 0 for s, h in zip(scenes, has, strict=True)]).to(device)
        start = torch.tensor([s.starts[turn] if h else samples for s, h in zip(scenes, has, strict=True)]).to(device)
        position = (time - start[:, None]) * rate  # between two samples: linear interpolation
        whole = position.floor()
        part = position - whole
        first, last = offsets[index][:, None], offsets[index + 1][:, None] - 1
        at = whole.long() + first
        inside = (position >= 0) & (at < last)
        at = torch.minimum(at.clamp(min=0), last - 1).clamp(min=0)
        value = audio[at].float() * (1 - part) + audio[at + 1].float() * part
        result += torch.where(inside, value, 0.0)
    return result / 32768
