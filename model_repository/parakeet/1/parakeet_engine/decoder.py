"""Greedy RNN-T decoding of a batch of streams with carried state, without a host round trip inside."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

_log = logging.getLogger(__name__)


@dataclass
class DecoderState:
    """Predictor state of the rows of one batch.

    Attributes:
        hidden: (predictor layers, batch, predictor width).
        cell: Same shape.
        prediction: (batch, joint width), projected predictor output after the last token.
    """

    hidden: torch.Tensor
    cell: torch.Tensor
    prediction: torch.Tensor


@dataclass
class Hypotheses:
    """Tokens that one step emitted.

    Attributes:
        tokens: int64 (batch, capacity).
        frames: int64 (batch, capacity), encoder frame within the chunk.
        probabilities: float32 (batch, capacity).
        count: int64 (batch,), how many of them are valid.
        unfinished: bool (batch,), rows that still have frames to decode.
    """

    tokens: torch.Tensor
    frames: torch.Tensor
    probabilities: torch.Tensor
    count: torch.Tensor
    unfinished: torch.Tensor


class GreedyDecoder:
    """Time-synchronous greedy search over NeMo's predictor and joint, all rows at once.

    One iteration evaluates the joint for every row at its own frame; a row whose best symbol is blank (or that has
    emitted `max_symbols` on its frame) moves on to its next frame, another takes the symbol into its predictor. So `n`
    frames with `k` tokens take n + k iterations for the slowest row, whatever the company. The symbols are those of
    upstream's `GreedyBatchedRNNTInfer`, which the tests compare with. Graves 2012, arXiv:1211.3711.

    Args:
        model: The NeMo model.
    """

    def __init__(self, model: Any):
        self._decoder = model.decoder
        self._joint = model.joint
        self._blank: int = model.joint.num_classes_with_blank - 1
        self.max_symbols: int = int(model.cfg.decoding.get("greedy", {}).get("max_symbols") or 10)
        with torch.no_grad():
            output, (hidden, cell) = self._decoder.predict(None, None, add_sos=False, batch_size=1)
            self.start = DecoderState(hidden, cell, self._joint.project_prednet(output)[:, 0])
        """State before the first token, after the start symbol."""

    def begin(self, batch: int, frames: int, device: torch.device) -> tuple[Hypotheses, torch.Tensor, torch.Tensor]:
        """Returns empty hypotheses and the counters of frame and of symbols on that frame."""
        capacity = frames * self.max_symbols
        count, frame, symbols = torch.zeros(3, batch, dtype=torch.int64, device=device).unbind(0)
        hypotheses = Hypotheses(  # what `count` does not cover is not read
            tokens=torch.empty(batch, capacity, dtype=torch.int64, device=device),
            frames=torch.empty(batch, capacity, dtype=torch.int64, device=device),
            probabilities=torch.empty(batch, capacity, dtype=torch.float32, device=device),
            count=count,
            unfinished=torch.empty(batch, dtype=torch.bool, device=device),
        )
        return hypotheses, frame, symbols

    def project(self, encoded: torch.Tensor) -> torch.Tensor:
        """Projects encoder output (batch, frames, width) for the joint."""
        return self._joint.project_encoder(encoded)

    def iterate(
        self,
        encoded: torch.Tensor,
        length: torch.Tensor,
        state: DecoderState,
        hypotheses: Hypotheses,
        frame: torch.Tensor,
        symbols: torch.Tensor,
        predict_always: bool,
    ) -> None:
        """Does one iteration, in place.

        Args:
            encoded: (batch, frames, joint width), projected.
            length: int64 (batch,), valid frames.
            state: Predictor state, updated.
            hypotheses: What was emitted, updated.
            frame: int64 (batch,), each row's frame, updated.
            symbols: int64 (batch,), symbols each row has emitted on its frame, updated.
            predict_always: Runs the predictor even when no row emitted. True where asking would cost a host
                synchronisation (CUDA).
        """
        rows = torch.arange(encoded.shape[0], device=encoded.device)
        active = frame < length
        at_frame = encoded[rows, frame.clamp(max=encoded.shape[1] - 1)]
        logits = self._joint.joint_after_projection(at_frame.unsqueeze(1), state.prediction.unsqueeze(1))[:, 0, 0]
        best, symbol = logits.float().log_softmax(-1).max(-1)
        emit = active & (symbol != self._blank)
        at = hypotheses.count.clamp(max=hypotheses.tokens.shape[1] - 1)
        hypotheses.tokens[rows, at] = torch.where(emit, symbol, hypotheses.tokens[rows, at])
        hypotheses.frames[rows, at] = torch.where(emit, frame, hypotheses.frames[rows, at])
        hypotheses.probabilities[rows, at] = torch.where(emit, best.exp(), hypotheses.probabilities[rows, at])
        hypotheses.count += emit
        if predict_always or bool(emit.any()):
            output, (hidden, cell) = self._decoder.predict(
                symbol.unsqueeze(1), [state.hidden, state.cell], add_sos=False
            )
            state.hidden.copy_(torch.where(emit[None, :, None], hidden, state.hidden))
            state.cell.copy_(torch.where(emit[None, :, None], cell, state.cell))
            projected = self._joint.project_prednet(output)[:, 0]
            state.prediction.copy_(torch.where(emit[:, None], projected, state.prediction))
        symbols.copy_(torch.where(emit, symbols + 1, 0))
        advance = active & (~emit | (symbols >= self.max_symbols))
        frame += advance
        symbols.masked_fill_(advance, 0)
        hypotheses.unfinished.copy_(frame < length)


def greedy_decoder(model: Any, device: torch.device) -> GreedyDecoder:
    """Returns the decoder in the fastest form that works on the device: with fused kernels on CUDA, else without."""
    plain = GreedyDecoder(model)
    if device.type == "cuda":
        try:
            from parakeet_engine.fused_decoder import FusedGreedyDecoder

            fused = FusedGreedyDecoder(model)
            fused.check(plain)
            return fused
        except Exception:  # no Triton language, or a predictor of another kind
            _log.exception("the fused kernels cannot be used; decoding runs with PyTorch's, at a higher latency")
    return plain
