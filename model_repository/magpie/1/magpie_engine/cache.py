"""Per-slot memory of the decoder: self-attention keys and values, and the projected text.

Rows come in pairs: slot `s` owns rows `2s` (conditioned) and `2s + 1` (unconditioned, for classifier-free guidance).
Live slots are always 0 to n-1, so that a step works on views of the first 2n rows without gathering.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Rows of each slot: conditioned and unconditioned.
GUIDANCE_ROWS = 2


class DecoderCache:
    """Fixed tensors for all slots.

    Args:
        decoder: NeMo's decoder `Transformer`.
        slots: Number of slots.
        max_positions: Speaker context, begin-of-speech and speech, in decoder positions.
        max_text: Longest text in tokens.
        device: Of all tensors.
        dtype: Of keys and values.
    """

    def __init__(
        self, decoder: Any, slots: int, max_positions: int, max_text: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        layers = len(decoder.layers)
        own, cross = decoder.layers[0].self_attention, decoder.layers[0].cross_attention
        shape = (layers, GUIDANCE_ROWS * slots, own.n_heads, max_positions, own.d_head)
        #: (layers, 2 x slots, heads, positions, head width). Zeros, because attention multiplies masked entries by 0.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        # The unconditioned row sees one all-zero text position, whose value is zero (no biases): it needs no text.
        text_shape = (layers, slots, cross.n_heads, max_text, cross.d_head)
        #: (layers, slots, heads, text, head width), of conditioned rows only.
        self.text_keys = torch.zeros(text_shape, device=device, dtype=dtype)
        self.text_values = torch.zeros_like(self.text_keys)
        #: Which text positions exist, (slots, text).
        self.text_mask = torch.zeros(slots, max_text, dtype=torch.bool, device=device)
        #: Decoder positions filled, (slots,).
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)

    def move(self, source: int, target: int) -> None:
        """Copies a slot's memory."""
        rows_to = slice(GUIDANCE_ROWS * target, GUIDANCE_ROWS * (target + 1))
        rows_from = slice(GUIDANCE_ROWS * source, GUIDANCE_ROWS * (source + 1))
        for tensor in (self.keys, self.values):
            tensor[:, rows_to] = tensor[:, rows_from]
        for tensor in (self.text_keys, self.text_values):
            tensor[:, target] = tensor[:, source]
        self.text_mask[target] = self.text_mask[source]
        self.lengths[target] = self.lengths[source]

    def write_text(self, layer: int, slots: slice, projected: Tensor) -> None:
        """Stores one layer's projected texts of consecutive slots.

        Args:
            layer: Decoder layer.
            slots: Slots.
            projected: (slots, text, 2, heads, head width), keys and values.
        """
        length = projected.shape[1]
        self.text_keys[layer, slots, :, :length] = projected[:, :, 0].transpose(1, 2)
        self.text_values[layer, slots, :, :length] = projected[:, :, 1].transpose(1, 2)
