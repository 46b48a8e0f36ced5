"""Small discriminators: NeMo's multi-period and multi-resolution STFT ones with a tenth of the channels.

Two or three speakers without noise need no more, and a step takes a fraction of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (16, 32, 64, 128)
#: FFT length, hop.
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
SPECTRUM_CHANNELS = 24
SLOPE = 0.1

Judgement = tuple[Tensor, list[Tensor]]


class Period(nn.Module):
    """Judges samples that are a period apart (HiFi-GAN), audio (batch, samples)."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, *PERIOD_CHANNELS)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in itertools.pairwise(widths)
        )
        self.judge = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, audio: Tensor) -> Judgement:
        """Returns scores and the layers' features."""
        audio = F.pad(audio, (0, -audio.shape[1] % self.period))
        return _judge(audio.unflatten(1, (-1, self.period))[:, None], self.layers, self.judge)


class Spectrum(nn.Module):
    """Judges the complex spectrum (EnCodec), audio (batch, samples)."""

    window: Tensor

    def __init__(self, length: int, hop: int) -> None:
        super().__init__()
        self.length, self.hop = length, hop
        self.register_buffer("window", torch.hann_window(length), persistent=False)
        width = SPECTRUM_CHANNELS
        shapes = ((2, (3, 9), (1, 2)), (width, (3, 9), (1, 2)), (width, (3, 9), (1, 2)), (width, (3, 3), (1, 1)))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(inputs, width, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
            for inputs, kernel, stride in shapes
        )
        self.judge = weight_norm(nn.Conv2d(width, 1, (3, 3), 1, (1, 1)))

    def forward(self, audio: Tensor) -> Judgement:
        """Returns scores and the layers' features."""
        spectrum = torch.stft(audio, self.length, self.hop, self.length, self.window, normalized=True,
                              return_complex=True)  # fmt: skip
        return _judge(torch.view_as_real(spectrum).permute(0, 3, 2, 1).contiguous(), self.layers, self.judge)


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList([*(Period(period) for period in PERIODS), *(Spectrum(*own) for own in RESOLUTIONS)])

    def forward(self, audio: Tensor) -> list[Judgement]:
        """Judges audio (batch, samples)."""
        return [own(audio) for own in self.each]

    def loss(self, real: Tensor, made: Tensor) -> Tensor:
        """What they learn from: least squares, real to 1 and made to 0."""
        total = torch.zeros((), device=real.device)
        for score, _ in self(torch.cat([real, made.detach()])):
            yes, no = score.chunk(2)
            total = total + (yes - 1).square().mean() + no.square().mean()
        return total / len(self.each)

    def teach(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """What the codec learns from: least squares, and the distance of features (relative to their size)."""
        with torch.no_grad():
            targets = self(real)
        fooled, features = torch.zeros((), device=real.device), torch.zeros((), device=real.device)
        for (score, own), (_, target) in zip(self(made), targets, strict=True):
            fooled = fooled + (score - 1).square().mean()
            for a, b in zip(own, target, strict=True):
                features = features + (a - b).abs().mean() / (b.abs().mean() + 1e-3) / len(own)
        return fooled / len(self.each), features / len(self.each)


def _judge(x: Tensor, layers: Sequence[nn.Module] | nn.ModuleList, judge: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    return judge(x), features
