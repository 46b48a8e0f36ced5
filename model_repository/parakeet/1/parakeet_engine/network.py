"""The network over a batch of chunks: audio windows and slots in, hypotheses out. No decision of the host inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from parakeet_engine.checkpoint import SUBSAMPLING, Checkpoint, Lookahead
from parakeet_engine.conformer import conformer_layers, ring_sizes
from parakeet_engine.decoder import DecoderState, Hypotheses, greedy_decoder
from parakeet_engine.features import log_mel
from parakeet_engine.slots import Slots
from parakeet_engine.subsampling import HISTORY_FRAMES, WindowedSubsampling


@dataclass
class Inputs:
    """A batch on the device.

    Attributes:
        audio: int16 (batch, window samples).
        slot: int64 (batch,), as all that follow.
        first_output: Encoder frame, counted in the utterance, of the chunk's first output.
        outputs: Valid outputs.
        num_samples: Samples of the utterance, or a large number while it is open.
        num_frames: Mel frames of the utterance, likewise.
        prompt: Index of the language prompt.
    """

    audio: torch.Tensor
    slot: torch.Tensor
    first_output: torch.Tensor
    outputs: torch.Tensor
    num_samples: torch.Tensor
    num_frames: torch.Tensor
    prompt: torch.Tensor


@dataclass
class Work:
    """Decoding in progress.

    Attributes:
        encoded: (batch, frames, joint width).
        state: Predictor state.
        hypotheses: Tokens so far.
        frame: int64 (batch,), each row's frame.
        symbols: int64 (batch,), symbols emitted on it.
    """

    encoded: torch.Tensor
    state: DecoderState
    hypotheses: Hypotheses
    frame: torch.Tensor
    symbols: torch.Tensor

    def packed(self) -> torch.Tensor:
        """Returns count, unfinished, tokens, frames and probabilities (as bits) as one int32 tensor: one transfer."""
        h = self.hypotheses
        head = torch.stack([h.count, h.unfinished.long()], dim=1)
        integers = torch.cat([head, h.tokens, h.frames], dim=1).to(torch.int32)
        return torch.cat([integers, h.probabilities.view(torch.int32)], dim=1)

    @staticmethod
    def unfinished(packed: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Returns, for each row of a packed result, whether it has frames left."""
        return packed[:, 1]

    @staticmethod
    def unpack(
        row: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Returns the valid tokens, frames and probabilities of one row of a packed result."""
        count, (tokens, frames, bits) = int(row[0]), np.split(row[2:], 3)
        return tokens[:count], frames[:count], bits[:count].view(np.float32)


class Network:
    """Features, subsampling, conformer layers and greedy decoding over slots.

    Args:
        checkpoint: The model.
        slots: Streams that can be live at once.
        dtype: Of encoder, predictor and joint.
        device: Where it runs.
    """

    def __init__(self, checkpoint: Checkpoint, slots: int, dtype: torch.dtype, device: torch.device):
        model = checkpoint.model
        self._model = model
        self._dtype = dtype
        self._device = device
        for part in (model.encoder, model.decoder, model.joint):
            part.to(dtype)
        self._prompt_kernel: Any = model.prompt_kernel.to(dtype) if checkpoint.prompts else None
        modes = checkpoint.lookaheads.values()
        self.features = log_mel(model.preprocessor.featurizer, device)
        self._subsampling = WindowedSubsampling(model.encoder.pre_encode)
        self._layers = conformer_layers(model.encoder, modes, device)
        self._decoder = greedy_decoder(model, device)
        rings = ring_sizes(modes, model.encoder.conv_context_size[0] + 1)
        self.slots = Slots(model, slots, rings, self.features.mels, dtype, device)

    def begin(self, lookahead: Lookahead, inputs: Inputs) -> Work:
        """Encodes a batch and does the usual number of decoding iterations.

        Args:
            lookahead: The mode of all rows.
            inputs: The batch; rows of a fresh utterance have `first_output` 0 and ignore what their slot holds.

        Returns:
            The decoding; rows that are not finished need `proceed`.
        """
        encoded = self._encode(lookahead, inputs)
        slots, slot, start = self.slots, inputs.slot, self._decoder.start
        fresh = inputs.first_output == 0
        state = DecoderState(
            hidden=torch.where(fresh[None, :, None], start.hidden, slots.hidden[:, slot]),
            cell=torch.where(fresh[None, :, None], start.cell, slots.cell[:, slot]),
            prediction=torch.where(fresh[:, None], start.prediction, slots.prediction[slot]),
        )
        work = Work(encoded, state, *self._decoder.begin(len(slot), lookahead.frames, self._device))
        self.proceed(lookahead, inputs, work)
        return work

    def proceed(self, lookahead: Lookahead, inputs: Inputs, work: Work) -> None:
        """Decodes on, in place, and puts the predictor's state into the slots.

        On a GPU a fixed number of iterations: one per frame and two for tokens, since asking whether more are needed
        waits for the device. On the CPU, where asking is free, until every row is done.
        """
        on_host = self._device.type == "cpu"
        iterations = 0
        while iterations < lookahead.frames + 2 or on_host:
            self._decoder.iterate(
                work.encoded,
                inputs.outputs,
                work.state,
                work.hypotheses,
                work.frame,
                work.symbols,
                predict_always=not on_host,
            )
            iterations += 1
            if on_host and not work.hypotheses.unfinished.any():
                break
        slots, slot = self.slots, inputs.slot
        slots.hidden[:, slot] = work.state.hidden
        slots.cell[:, slot] = work.state.cell
        slots.prediction[slot] = work.state.prediction

    def _encode(self, lookahead: Lookahead, inputs: Inputs) -> torch.Tensor:
        """Features, subsampling and conformer layers; returns (batch, frames, joint width) for the joint."""
        slots, slot = self.slots, inputs.slot
        first_new = SUBSAMPLING * (inputs.first_output - 1) + 1
        new = self.features(inputs.audio, first_new, inputs.num_samples, inputs.num_frames)
        window = torch.cat([slots.mel[slot], new], dim=1)
        slots.mel[slot] = window[:, -HISTORY_FRAMES:]
        x = self._subsampling(window.to(self._dtype), inputs.first_output, inputs.num_frames)

        places = self._layers.places(lookahead, slot, inputs.first_output, inputs.outputs)
        encoded = self._layers(lookahead, x, places, slots.rings)
        if self._prompt_kernel is not None:
            prompt = torch.nn.functional.one_hot(inputs.prompt, self._model.num_prompts).to(encoded.dtype)
            prompt = prompt[:, None].expand(-1, encoded.shape[1], -1)
            encoded = self._prompt_kernel(torch.cat([encoded, prompt], dim=-1))
        return self._decoder.project(encoded)
