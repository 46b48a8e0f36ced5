"""Holds the slots and runs the network: one utterance's prefill, or one step of all live utterances."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magpie_engine.alignment import AlignmentTracker
from magpie_engine.cache import DecoderCache
from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import BOS_POSITIONS
from magpie_engine.decoder import IncrementalDecoder
from magpie_engine.events import FinishReason
from magpie_engine.request import MAX_SEED, SpeechRequest
from magpie_engine.sampler import CodebookSampler, SamplingState
from magpie_engine.utterance import Utterance

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel


@dataclass(frozen=True)
class StepResult:
    """What a step did for one utterance: it goes on if `reason` is None."""

    utterance: Utterance
    reason: FinishReason | None


class ModelRunner:
    """Fixed slots and the network that fills them.

    Live utterances always hold slots 0 to n-1: when one leaves, the last takes its place. So a step reads views of the
    first n slots, and a graph per batch size is possible.

    Args:
        model: The restored model.
        catalog: What it offers.
        slots: Number of slots.
    """

    def __init__(self, model: MagpieTTSModel, catalog: Catalog, slots: int) -> None:
        inference = model.inference_parameters
        device = model.device
        context = int(model.baked_context_embedding_len.max())
        self._model = model
        self._stacking: int = model.frame_stacking_factor
        self._min_frames: int = inference.min_generated_frames
        self._max_steps = -(-catalog.max_frames // self._stacking)
        self._slots = slots
        #: Utterances by slot.
        self.live: list[Utterance] = []

        positions = context + BOS_POSITIONS + self._max_steps
        self._cache = DecoderCache(model.decoder, slots, positions, catalog.max_text_tokens, device, model.dtype)
        self._decoder = IncrementalDecoder(
            model.decoder, self._cache, inference.estimate_alignment_from_layers, inference.apply_prior_to_layers
        )
        self._alignment = AlignmentTracker(slots, catalog.max_text_tokens, inference, device)
        self._sampler = CodebookSampler(model)

        self._steps = torch.zeros(slots, dtype=torch.long, device=device)
        self._newest = torch.zeros(slots, model.num_audio_codebooks, self._stacking, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._top_k = torch.ones(slots, dtype=torch.long, device=device)
        self._cfg_scale = torch.ones(slots, device=device)
        self._noise = torch.zeros(slots, self._max_steps, self._sampler.draws, device=device)
        self._per_slot = (self._steps, self._newest, self._temperature, self._top_k, self._cfg_scale, self._noise)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._slots - len(self.live)

    @torch.inference_mode()
    def admit(self, utterance: Utterance, tokens: list[int]) -> None:
        """Gives an utterance a slot: encodes its text, fills the decoder with its speaker.

        Args:
            utterance: A new one.
            tokens: Its text, at most as long as the catalog allows.
        """
        request, slot = utterance.request, len(self.live)
        text = torch.tensor([tokens], device=self._model.device)
        context = self._model.prepare_context_tensors(
            {
                "text": text,
                "text_lens": torch.tensor([len(tokens)], device=text.device),
                "speaker_indices": request.speaker,
            }
        )
        length = int(context.additional_decoder_mask[0].sum())
        self._decoder.prefill(slot, context.cond[0], context.additional_decoder_input[0, :length])
        self._alignment.reset(slot, len(tokens))
        self._steps[slot] = 0
        self._newest[slot] = self._model.audio_bos_id
        self._temperature[slot] = request.temperature
        self._top_k[slot] = request.top_k
        self._cfg_scale[slot] = request.cfg_scale
        self._noise[slot] = self._draw_noise(request)
        utterance.slot, utterance.text_length, utterance.position = slot, len(tokens), length
        self.live.append(utterance)

    def release(self, utterance: Utterance) -> None:
        """Takes an utterance's slot away; the last live utterance moves into it."""
        last = self.live.pop()
        if last is not utterance:
            self._cache.move(last.slot, utterance.slot)
            self._alignment.move(last.slot, utterance.slot)
            for tensor in self._per_slot:
                tensor[utterance.slot] = tensor[last.slot]
            self.live[utterance.slot] = last
            last.slot = utterance.slot
        utterance.slot = -1

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """Decodes one step of all live utterances and appends its codes to them."""
        live = len(self.live)
        codes, ends = self._decode(live)
        self._newest[:live] = codes
        self._steps[:live] += 1
        # The one point at which the CPU waits for the device.
        return [
            self._collect(utterance, codes[utterance.slot], end)
            for utterance, end in zip(self.live, ends.tolist(), strict=True)
        ]

    def _decode(self, live: int) -> tuple[Tensor, Tensor]:
        """Runs the network: codes (n, codebooks, stacking), and the frame of the stack at which each ends, (n,)."""
        longest = max(utterance.position for utterance in self.live)
        width = max(utterance.text_length for utterance in self.live)
        steps = self._steps[:live]
        newest = self._newest[:live]
        embedded, _ = self._model.embed_audio_tokens(newest, torch.full_like(steps, self._stacking))
        hidden, attention = self._decoder.step(
            embedded[:, 0], longest, width, self._alignment.prior[:live, :width], self._alignment.active[:live]
        )
        unfinished, must_end = self._alignment.update(attention, steps)
        may_not_end = unfinished | (steps * self._stacking < self._min_frames)
        state = SamplingState(
            temperature=self._temperature[:live],
            top_k=self._top_k[:live],
            max_top_k=max(utterance.request.top_k for utterance in self.live),
            cfg_scale=self._cfg_scale[:live],
            noise=self._noise[torch.arange(live, device=steps.device), steps],
        )
        return self._sampler.sample(hidden, state, may_not_end, must_end)

    def _collect(self, utterance: Utterance, codes: Tensor, end: int) -> StepResult:
        """Books a step's codes (codebooks, stacking), of which frames from `end` on are not speech."""
        utterance.steps += 1
        utterance.position += 1
        room = utterance.request.max_frames - utterance.frames
        utterance.append(codes[:, : min(end, room)])
        if end < self._stacking:
            return StepResult(utterance, FinishReason.END)
        if utterance.frames >= utterance.request.max_frames:
            return StepResult(utterance, FinishReason.LENGTH)
        return StepResult(utterance, None)

    def _draw_noise(self, request: SpeechRequest) -> Tensor:
        """Draws all of an utterance's noise at once, on the CPU: the same on every device and in any company."""
        seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED)
        return torch.rand(self._max_steps, self._sampler.draws, generator=torch.Generator().manual_seed(seed))
