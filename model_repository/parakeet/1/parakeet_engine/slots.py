"""The streams' states on the device: a fixed pool, gathered and scattered once per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from parakeet_engine.subsampling import HISTORY_FRAMES


@dataclass
class Rings:
    """What the encoder's layers look back at. Frame t of an utterance is at place t modulo the mode's ring.

    Attributes:
        keys: (layers, slots, ring, width), or without layers where it is one layer's, as all.
        values: Same shape.
        time: (layers, slots, time ring, width), inputs of the convolutions.
    """

    keys: torch.Tensor
    values: torch.Tensor
    time: torch.Tensor

    @classmethod
    def zeros(
        cls, layers: int, slots: int, sizes: tuple[int, int], width: int, dtype: torch.dtype, device: torch.device
    ) -> Rings:
        """Returns empty ones; `sizes` are the frames that `keys` and `time` hold."""
        shapes = [(layers, slots, size, width) for size in (sizes[0], sizes[0], sizes[1])]
        return cls(*(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes))

    def by_layer(self) -> Iterator[Rings]:
        """Yields views of each layer's."""
        for keys, values, time in zip(self.keys, self.values, self.time, strict=True):
            yield Rings(keys, values, time)


class Slots:
    """State tensors of `count` streams and one scratch slot that padding rows of a batch point to.

    Args:
        model: The NeMo model, for its shapes.
        count: Streams that can be live at once.
        ring_sizes: Frames that the rings of attention and of convolutions hold.
        mels: Mel bands.
        dtype: Of the encoder's caches and the predictor's state.
        device: Where they live.

    Attributes:
        scratch: Index of the scratch slot.
        mel: float32 (slots, HISTORY_FRAMES, mels), the window's overlap with the next one.
        rings: What the encoder's layers look back at.
        hidden: (predictor layers, slots, predictor width), LSTM hidden state after the last token.
        cell: The LSTM's cell state, same shape.
        prediction: (slots, joint width), the predictor's output after the last token, projected for the joint.
    """

    def __init__(
        self,
        model: Any,
        count: int,
        ring_sizes: tuple[int, int],
        mels: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        encoder, decoder = model.encoder, model.decoder
        slots = count + 1
        predictor_layers, predictor_width = decoder.pred_rnn_layers, decoder.pred_hidden

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.scratch = count
        self.mel = zeros(slots, HISTORY_FRAMES, mels, dtype=torch.float32)
        self.rings = Rings.zeros(len(encoder.layers), slots, ring_sizes, encoder.d_model, dtype, device)
        self.hidden = zeros(predictor_layers, slots, predictor_width)
        self.cell = zeros(predictor_layers, slots, predictor_width)
        self.prediction = zeros(slots, model.joint.joint_hidden)

    @property
    def bytes_per_stream(self) -> int:
        """Device memory of one stream's state."""
        tensors = (self.mel, *vars(self.rings).values(), self.hidden, self.cell, self.prediction)
        return sum(t.numel() * t.element_size() for t in tensors) // (self.scratch + 1)
