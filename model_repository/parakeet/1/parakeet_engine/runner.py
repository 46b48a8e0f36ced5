"""One step of the model: a batch of chunks, each of another stream, becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from parakeet_engine.checkpoint import SUBSAMPLING, Checkpoint, Lookahead
from parakeet_engine.decoder import DecoderState, GreedyDecoder
from parakeet_engine.features import LogMel
from parakeet_engine.slots import Slots
from parakeet_engine.subsampling import HISTORY_FRAMES, WindowedSubsampling

OPEN = 1 << 40
"""Stands for the length of a stream that is still open, in samples or frames."""


@dataclass(slots=True)
class Chunk:
    """One stream's part of a step, as numbers and samples.

    Attributes:
        slot: The stream's slot.
        audio: int16 (window samples,), zero outside the utterance.
        first_output: Encoder frame, counted in the utterance, of the chunk's first output.
        outputs: Valid outputs, at most the lookahead's frames.
        num_samples: Samples of the utterance, or `OPEN`.
        num_frames: Mel frames of the utterance, or `OPEN`.
        prompt: Index of the language prompt; 0 for models without.
    """

    slot: int
    audio: npt.NDArray[np.int16]
    first_output: int
    outputs: int
    num_samples: int = OPEN
    num_frames: int = OPEN
    prompt: int = 0


@dataclass(slots=True)
class ChunkTokens:
    """What one chunk emitted.

    Attributes:
        tokens: Token ids.
        frames: Encoder frame of each, counted in the utterance.
        probabilities: Probability of each.
    """

    tokens: list[int]
    frames: list[int]
    probabilities: list[float]


@dataclass
class _Inputs:
    """A batch on the device. Every field has the batch as its first dimension."""

    audio: torch.Tensor
    slot: torch.Tensor
    first_output: torch.Tensor
    outputs: torch.Tensor
    num_samples: torch.Tensor
    num_frames: torch.Tensor
    prompt: torch.Tensor


class StepRunner:
    """Runs steps of one checkpoint over a pool of slots. Not thread safe: one thread owns it.

    Args:
        checkpoint: The model.
        slots: Streams that can be live at once.
        dtype: Of encoder, predictor and joint (features stay float32).
        device: Where it runs.
    """

    def __init__(self, checkpoint: Checkpoint, slots: int, dtype: torch.dtype, device: torch.device):
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        model = checkpoint.model
        self._model = model
        for part in (model.encoder, model.decoder, model.joint):
            part.to(dtype)
        self._prompt_kernel: Any = model.prompt_kernel.to(dtype) if checkpoint.prompts else None
        left = next(iter(checkpoint.lookaheads.values())).left
        self.features = LogMel(model.preprocessor.featurizer)
        self._subsampling = WindowedSubsampling(model.encoder.pre_encode)
        self._decoder = GreedyDecoder(model)
        self.slots = Slots(model, slots, left, self.features.mels, dtype, device)
        streaming = model.encoder.streaming_cfg
        streaming.last_channel_cache_size = left
        streaming.cache_drop_size = 0

    def new_frames(self, lookahead: Lookahead) -> int:
        """Returns how many mel frames a chunk adds."""
        return SUBSAMPLING * lookahead.frames

    def first_new_frame(self, first_output: int) -> int:
        """Returns the index of the first mel frame that the chunk adds.

        Output t looks at mel frames up to 8 t, so chunks end at frame 8 t, not at a multiple of the chunk: the first
        one begins seven frames before the stream does.
        """
        return SUBSAMPLING * (first_output - 1) + 1

    @torch.inference_mode()
    def step(self, lookahead: Lookahead, chunks: Sequence[Chunk]) -> list[ChunkTokens]:
        """Recognises one chunk of each of several streams and keeps their states.

        Args:
            lookahead: The mode that all of them have.
            chunks: At most one per slot.

        Returns:
            The tokens of each chunk, in order.
        """
        inputs = self._prepare(chunks)
        encoded = self._encode(lookahead, inputs)
        tokens, frames, probabilities, count = self._decode(lookahead, inputs, encoded)
        results = []
        for row, chunk in enumerate(chunks):
            n = int(count[row])
            results.append(
                ChunkTokens(
                    tokens=tokens[row, :n].tolist(),
                    frames=(frames[row, :n] + chunk.first_output).tolist(),
                    probabilities=probabilities[row, :n].tolist(),
                )
            )
        return results

    def _prepare(self, chunks: Sequence[Chunk]) -> _Inputs:
        """Puts a batch on the device."""
        numbers = np.array(
            [(c.slot, c.first_output, c.outputs, c.num_samples, c.num_frames, c.prompt) for c in chunks], dtype=np.int64
        )
        columns = torch.from_numpy(np.ascontiguousarray(numbers.T)).to(self.device, non_blocking=True)
        audio = torch.from_numpy(np.stack([c.audio for c in chunks])).to(self.device, non_blocking=True)
        return _Inputs(audio, *columns.unbind(0))

    def _encode(self, lookahead: Lookahead, inputs: _Inputs) -> torch.Tensor:
        """Features, subsampling and conformer layers; returns (batch, frames, joint width) for the joint."""
        slots, slot = self.slots, inputs.slot
        fresh = inputs.first_output == 0
        first_new = SUBSAMPLING * (inputs.first_output - 1) + 1
        new = self.features(inputs.audio, first_new, inputs.num_samples, inputs.num_frames)
        window = torch.cat([slots.mel[slot], new], dim=1)
        slots.mel[slot] = window[:, -HISTORY_FRAMES:]
        x = self._subsampling(window.to(self.dtype), inputs.first_output, inputs.num_frames)

        encoder = self._model.encoder
        encoder.att_context_size = [lookahead.left, lookahead.right]
        channel_length = torch.where(fresh, 0, slots.channel_length[slot])
        keep = (~fresh).to(self.dtype)
        encoded, _, channel, time, channel_length = encoder.forward_internal(
            x,
            inputs.outputs,
            cache_last_channel=slots.channel[:, slot],
            cache_last_time=slots.time[:, slot] * keep[None, :, None, None],
            cache_last_channel_len=channel_length,
            bypass_pre_encode=True,
        )
        slots.channel[:, slot] = channel[:, :, -lookahead.left :]
        slots.time[:, slot] = time
        slots.channel_length[slot] = channel_length
        encoded = encoded.transpose(1, 2)  # (batch, frames, width)
        if self._prompt_kernel is not None:
            prompt = torch.nn.functional.one_hot(inputs.prompt, self._model.num_prompts).to(encoded.dtype)
            prompt = prompt[:, None].expand(-1, encoded.shape[1], -1)
            encoded = self._prompt_kernel(torch.cat([encoded, prompt], dim=-1))
        return self._decoder.project(encoded)

    def _decode(
        self, lookahead: Lookahead, inputs: _Inputs, encoded: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Greedy search; returns tokens, frames, probabilities and their count, on the CPU."""
        slots, slot, start = self.slots, inputs.slot, self._decoder.start
        fresh = inputs.first_output == 0
        state = DecoderState(
            hidden=torch.where(fresh[None, :, None], start.hidden, slots.hidden[:, slot]),
            cell=torch.where(fresh[None, :, None], start.cell, slots.cell[:, slot]),
            prediction=torch.where(fresh[:, None], start.prediction, slots.prediction[slot]),
        )
        hypotheses, frame, symbols = self._decoder.begin(len(slot), lookahead.frames, self.device)
        on_host = self.device.type == "cpu"
        unfinished = True
        while unfinished:
            # On a GPU reading `unfinished` waits for the device: do a step's usual number of iterations before asking.
            for _ in range(1 if on_host else lookahead.frames + 2):
                self._decoder.iterate(
                    encoded, inputs.outputs, state, hypotheses, frame, symbols, predict_always=not on_host
                )
            unfinished = bool(hypotheses.unfinished.any())
        slots.hidden[:, slot] = state.hidden
        slots.cell[:, slot] = state.cell
        slots.prediction[slot] = state.prediction
        return (
            hypotheses.tokens.cpu(),
            hypotheses.frames.cpu(),
            hypotheses.probabilities.cpu(),
            hypotheses.count.cpu(),
        )
