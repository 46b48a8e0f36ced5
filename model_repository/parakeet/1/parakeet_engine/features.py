"""Log-mel features of a stream, each sample turned into features once, equal to those of the whole file."""

from __future__ import annotations

import logging
from typing import Any

import torch

_log = logging.getLogger(__name__)

FULL_SCALE = 32768.0


class LogMel:
    """NeMo's `FilterbankFeatures` over windows of a stream instead of whole files.

    Frame t is centred on sample 160 t and needs the 200 samples on either side of it (a window of 25 ms). A window that
    begins 256 samples (half an FFT) before its first frame's centre therefore gives exactly the frames of the whole
    file, if pre-emphasis sees one sample more on the left, and if what lies before the first and after the last sample
    is zero after pre-emphasis. Upstream: `nemo/collections/asr/parts/preprocessing/features.py`.

    Args:
        featurizer: The checkpoint's `FilterbankFeatures`.
    """

    def __init__(self, featurizer: Any):
        self.hop: int = featurizer.hop_length
        self.fft: int = featurizer.n_fft
        self.half_window: int = featurizer.win_length // 2
        self.mels: int = featurizer.fb.shape[1]
        self._preemphasis: float = float(featurizer.preemph or 0.0)
        self._power: float = featurizer.mag_power
        self._log: bool = featurizer.log
        self._guard_type: str = featurizer.log_zero_guard_type
        self._guard: float = float(featurizer.log_zero_guard_value_fn(featurizer.fb))
        self._pad_value: float = float(featurizer.pad_value)
        filters = featurizer.fb[0].t()  # (fft / 2 + 1, mels)
        # The last frequency is in no mel band, as a rule; without it a GPU's matrix product has aligned rows.
        self._bins = len(filters) - int(not filters[-1].any())
        self._filters = filters[: self._bins].contiguous()
        side = (self.fft - featurizer.win_length) // 2
        window = featurizer.window.to(torch.float32)
        self._window = torch.nn.functional.pad(window, (side, self.fft - featurizer.win_length - side))

    def window_samples(self, frames: int) -> int:
        """Returns how many samples `frames` frames take, the one for pre-emphasis included."""
        return self.hop * (frames - 1) + self.fft + 1

    def window_start(self, first_frame: int) -> int:
        """Returns the index of the first sample of the window whose first frame is `first_frame`."""
        return self.hop * first_frame - self.fft // 2 - 1

    def samples_needed(self, last_frame: int) -> int:
        """Returns how many samples of a stream must have come before `last_frame` is what it is in the whole file."""
        return self.hop * last_frame + self.half_window

    def frames_of(self, samples: int) -> int:
        """Returns how many frames a whole file of `samples` samples has."""
        return samples // self.hop

    def __call__(
        self, audio: torch.Tensor, first_frame: torch.Tensor, num_samples: torch.Tensor, num_frames: torch.Tensor
    ) -> torch.Tensor:
        """Computes the features of one window per row.

        Args:
            audio: int16 (batch, window_samples(frames)), zero outside the stream.
            first_frame: int64 (batch,), index of the window's first frame in its stream; may be negative.
            num_samples: int64 (batch,), samples of the whole stream, or a large number while it is open.
            num_frames: int64 (batch,), frames of the whole stream, or a large number while it is open.

        Returns:
            float32 (batch, frames, mels); frames outside the stream are the checkpoint's padding value.
        """
        signal = audio.to(torch.float32) / FULL_SCALE
        signal = signal[:, 1:] - self._preemphasis * signal[:, :-1]
        start = first_frame * self.hop - self.fft // 2
        sample = start[:, None] + torch.arange(signal.shape[1], device=signal.device)
        signal = torch.where(sample < num_samples[:, None], signal, 0.0)
        spectrum = torch.fft.rfft(signal.unfold(1, self.fft, self.hop) * self._window)
        features = self._bands(spectrum)
        frame = first_frame[:, None] + torch.arange(features.shape[1], device=features.device)
        inside = (frame >= 0) & (frame < num_frames[:, None])
        return torch.where(inside[..., None], features, self._pad_value)

    def _bands(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Spectra, complex64 (batch, frames, fft / 2 + 1), to mel bands, (batch, frames, mels)."""
        magnitude = torch.view_as_real(spectrum[..., : self._bins]).pow(2).sum(-1).sqrt()
        if self._power != 1.0:
            magnitude = magnitude.pow(self._power)
        features = magnitude @ self._filters
        if not self._log:
            return features
        if self._guard_type == "add":
            return torch.log(features + self._guard)
        return torch.log(features.clamp(min=self._guard))


def log_mel(featurizer: Any, device: torch.device) -> LogMel:
    """Returns the features in the fastest form that works on the device: with a fused kernel on CUDA, else without."""
    plain = LogMel(featurizer)
    if device.type == "cuda":
        try:
            from parakeet_engine.fused import FusedLogMel

            fused = FusedLogMel(featurizer)
            fused.check(plain)
            return fused
        except Exception:  # no Triton language, or features of another kind
            _log.exception("the fused kernel cannot be used; features are computed with PyTorch's, at a higher latency")
    return plain
