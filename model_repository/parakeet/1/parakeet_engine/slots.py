"""The streams' states on the device: a fixed pool, gathered and scattered once per step."""

from __future__ import annotations

from typing import Any

import torch

from parakeet_engine.subsampling import HISTORY_FRAMES


class Slots:
    """State tensors of `count` streams and one scratch slot that padding rows of a batch point to.

    Args:
        model: The NeMo model, for its shapes.
        count: Streams that can be live at once.
        left: Encoder frames of left context.
        mels: Mel bands.
        dtype: Of the encoder's caches and the predictor's state.
        device: Where they live.

    Attributes:
        scratch: Index of the scratch slot.
        mel: float32 (slots, HISTORY_FRAMES, mels), the window's overlap with the next one.
        channel: (layers, slots, left, width), what attention looks back at.
        time: (layers, slots, width, kernel - 1), what the convolutions look back at.
        channel_length: int64 (slots,), valid frames at the end of `channel`.
        hidden: (predictor layers, slots, predictor width), LSTM hidden state after the last token.
        cell: The LSTM's cell state, same shape.
        prediction: (slots, joint width), the predictor's output after the last token, projected for the joint.
    """

    def __init__(self, model: Any, count: int, left: int, mels: int, dtype: torch.dtype, device: torch.device):
        encoder, decoder = model.encoder, model.decoder
        slots = count + 1
        layers, width = len(encoder.layers), encoder.d_model
        kernel_left = encoder.conv_context_size[0]
        predictor_layers, predictor_width = decoder.pred_rnn_layers, decoder.pred_hidden

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.scratch = count
        self.mel = zeros(slots, HISTORY_FRAMES, mels, dtype=torch.float32)
        self.channel = zeros(layers, slots, left, width)
        self.time = zeros(layers, slots, width, kernel_left)
        self.channel_length = zeros(slots, dtype=torch.int64)
        self.hidden = zeros(predictor_layers, slots, predictor_width)
        self.cell = zeros(predictor_layers, slots, predictor_width)
        self.prediction = zeros(slots, model.joint.joint_hidden)

    @property
    def bytes_per_stream(self) -> int:
        """Device memory of one stream's state."""
        tensors = (self.mel, self.channel, self.time, self.channel_length, self.hidden, self.cell, self.prediction)
        return sum(t.numel() * t.element_size() for t in tensors) // (self.scratch + 1)
