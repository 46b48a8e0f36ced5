"""The encoder's 8x subsampling over a window of a stream, exact at both ends of the stream."""

from __future__ import annotations

from typing import Any

import torch

from parakeet_engine.checkpoint import SUBSAMPLING

HISTORY_FRAMES = SUBSAMPLING + 1
"""Mel frames carried from one chunk to the next."""
WARM_UP_OUTPUTS = 2
"""First outputs of a window that saw the window's edge and are dropped: output t needs mel frames 8t-14 to 8t."""


def output_length(frames: int) -> int:
    """Returns how many encoder frames `frames` mel frames give (three convolutions of kernel 3, stride 2, causal)."""
    for _ in range(3):
        frames = frames // 2 + 1
    return frames


class WindowedSubsampling:
    """NeMo's causal `ConvSubsampling` over windows.

    For `n` outputs beginning with encoder frame `t` the window has the 8 n + 9 mel frames from 8 (t - 2) on. Zeros are
    put where the stream has no frames (before its first, after its last) at the input of every strided convolution, not
    only in the mel domain: that is what the whole file's own padding does, and why the first chunks are exact too
    (zero mel frames would not be: each convolution has a bias). Upstream: `ConvSubsampling` and `MaskedConvSequential`
    in `nemo/collections/asr/parts/submodules/subsampling.py`.

    Args:
        pre_encode: The checkpoint's `encoder.pre_encode`.
    """

    def __init__(self, pre_encode: Any):
        self._layers = list(pre_encode.conv)
        self._out = pre_encode.out

    def __call__(self, window: torch.Tensor, first_output: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Subsamples one window per row.

        Args:
            window: (batch, 8 n + 9, mels).
            first_output: int64 (batch,), encoder frame that the window is for.
            num_frames: int64 (batch,), mel frames of the whole stream, or a large number while it is open.

        Returns:
            (batch, n, width).
        """
        x = window.unsqueeze(1)  # (batch, 1, time, mels)
        first = (first_output - WARM_UP_OUTPUTS) * SUBSAMPLING
        length = num_frames
        for layer in self._layers:
            stride = getattr(layer, "stride", (1, 1))
            if stride == (1, 1):
                x = layer(x)
                continue
            position = first[:, None] + torch.arange(x.shape[2], device=x.device)
            inside = (position >= 0) & (position < length[:, None])
            x = layer(x * inside[:, None, :, None].to(x.dtype))
            first, length = first // 2, length // 2 + 1
        batch, _, time, _ = x.shape
        return self._out(x.transpose(1, 2).reshape(batch, time, -1))[:, WARM_UP_OUTPUTS:]
