"""What the codec is trained on besides its discriminators: spectra of several resolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Window length in samples, and mel bands; windows overlap by three quarters.
RESOLUTIONS = ((128, 12), (256, 24), (512, 48), (1024, 80), (2048, 96))
#: Added to magnitudes before their logarithm: about 90 dB under full scale, so that silence need not be digital.
LOG_FLOOR = 1e-2


class SpectralDistance(nn.Module):
    """Multi-resolution mel distance and spectral convergence (NeMo's `MultiResolutionMelLoss` with an STFT term).

    Args:
        sample_rate: Of the audio, in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        from librosa.filters import mel

        for window, bands in RESOLUTIONS:
            filters = torch.from_numpy(mel(sr=sample_rate, n_fft=window, n_mels=bands, norm=None))
            self.register_buffer(f"filters_{window}", filters, persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Compares audio (batch, samples).

        Returns:
            Mean absolute difference of log mel spectra over all resolutions, and spectral convergence.
        """
        mel = torch.zeros((), device=made.device)
        convergence = torch.zeros((), device=made.device)
        both = torch.cat([made, real])
        for window, _ in RESOLUTIONS:
            hann, filters = getattr(self, f"window_{window}"), getattr(self, f"filters_{window}")
            spectrum = torch.view_as_real(torch.stft(both, window, window // 4, window, hann, return_complex=True))
            magnitude = (spectrum.square().sum(-1) + 1e-9).sqrt()
            bands = torch.log(filters @ magnitude + LOG_FLOOR)
            (own, target), (a, b) = bands.chunk(2), magnitude.chunk(2)
            mel = mel + (own - target).abs().mean()
            convergence = convergence + (a - b).square().sum().sqrt() / (b.square().sum().sqrt() + 1)
        return mel / len(RESOLUTIONS), convergence / len(RESOLUTIONS)
