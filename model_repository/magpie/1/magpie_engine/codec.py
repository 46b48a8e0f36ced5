"""Codes to audio in pieces whose seams cannot be heard.

The codec's decoder is strictly causal and a sample depends on at most `LEFT_CONTEXT` frames before its own, so decoding
each piece with that many earlier frames gives the samples of decoding everything at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

#: Left receptive field of `CausalHiFiGANDecoder` with five stages, in codec frames (1.16 s).
LEFT_CONTEXT = 25
INT16_FULL_SCALE = 32767


class StreamingCodec:
    """Decodes windows of codes, many utterances at once.

    Args:
        model: The restored model, for its codec and its index converter.
    """

    def __init__(self, model: MagpieTTSModel) -> None:
        self._codec = model._codec_model
        self._converter = model._codec_converter
        self._samples_per_frame: int = model.codec_model_samples_per_frame
        self._last_code: int = model.codebook_size - 1

    def decode(self, windows: Sequence[Tensor], fresh: Sequence[int]) -> list[Tensor]:
        """Decodes the newest frames of several utterances.

        Args:
            windows: For each utterance codes (codebooks, frames): up to `LEFT_CONTEXT` frames that were decoded before,
                then the new ones.
            fresh: For each utterance the number of new frames.

        Returns:
            For each utterance float32 samples in [-1, 1] of its new frames, on the model's device.
        """
        lengths = torch.tensor([window.shape[1] for window in windows], device=windows[0].device)
        # Padding on the right changes nothing on the left: the decoder is causal.
        batch = torch.zeros(
            len(windows), windows[0].shape[0], int(lengths.max()), dtype=torch.long, device=windows[0].device
        )
        for row, window in zip(batch, windows, strict=True):
            row[:, : window.shape[1]] = window
        # Detection by argmax alone can leave a drawn end token in a frame that is kept; the codec has no such entry.
        batch.clamp_(max=self._last_code)
        if self._converter is not None:
            batch = self._converter.convert_new_to_original(audio_tokens=batch, audio_lens=lengths)
        audio, _ = self._codec.decode(tokens=batch, tokens_len=lengths)
        return [
            row[(window.shape[1] - count) * self._samples_per_frame : window.shape[1] * self._samples_per_frame]
            for row, window, count in zip(audio, windows, fresh, strict=True)
        ]


def to_int16(audio: Tensor) -> np.ndarray:
    """Converts samples in [-1, 1] to int16 at a fixed scale, so that consecutive chunks fit each other."""
    return (audio.clamp(-1, 1) * INT16_FULL_SCALE).round().to(torch.int16).cpu().numpy()
