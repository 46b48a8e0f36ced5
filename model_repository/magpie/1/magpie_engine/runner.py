"""Holds the slots and runs the network: one utterance's prefill, or one step of all live ones."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magpie_engine.alignment import AlignmentTracker, SegmentPlace
from magpie_engine.cache import DecoderCache
from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import BOS_POSITIONS
from magpie_engine.decoder import IncrementalDecoder
from magpie_engine.events import FinishReason
from magpie_engine.graphs import StepGraph, batch_sizes
from magpie_engine.history import TextHistory
from magpie_engine.request import MAX_TOP_K
from magpie_engine.sampler import CodebookSampler, SamplingState
from magpie_engine.settings import EngineSettings
from magpie_engine.text import Segment
from magpie_engine.utterance import Utterance

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

_log = logging.getLogger(__name__)

#: Text tokens that a CUDA graph looks at: more than a sentence below upstream's thresholds has, with its history.
GRAPH_TEXT = 384
#: Decoder positions by which the graphs of one batch size differ.
GRAPH_KEYS = 256


@dataclass(frozen=True)
class StepResult:
    """What a step did for one utterance.

    Attributes:
        utterance: The utterance.
        over: Why its segment is over; None if it goes on.
    """

    utterance: Utterance
    over: FinishReason | None


class ModelRunner:
    """Fixed slots and the network that fills them.

    Live utterances always hold slots 0 to n-1: when one leaves, the last takes its place. So a step reads views of the
    first n slots, and a graph per batch size is possible.

    Args:
        model: The restored model.
        catalog: What it offers.
        settings: Number of slots, and whether CUDA graphs are wanted.
    """

    def __init__(self, model: MagpieTTSModel, catalog: Catalog, settings: EngineSettings) -> None:
        slots = settings.max_streams
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
        dtype = next(model.decoder.parameters()).dtype
        self._cache = DecoderCache(model.decoder, slots, positions, catalog.max_text_tokens, device, dtype)
        self._decoder = IncrementalDecoder(
            model.decoder, self._cache, inference.estimate_alignment_from_layers, inference.apply_prior_to_layers
        )
        self._alignment = AlignmentTracker(
            slots, catalog.max_text_tokens, inference, model.chunked_inference_config, device
        )
        self._sampler = CodebookSampler(model)

        self._steps = torch.zeros(slots, dtype=torch.long, device=device)
        self._newest = torch.zeros(slots, model.num_audio_codebooks, self._stacking, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._top_k = torch.ones(slots, dtype=torch.long, device=device)
        self._cfg_scale = torch.ones(slots, device=device)
        self._noise = torch.zeros(slots, self._max_steps, self._sampler.draws, device=device)
        #: Whether there is a GPU and CUDA graphs are wanted.
        self.wants_graphs = bool(settings.cuda_graphs) and device.type == "cuda"
        #: The smallest first.
        self._graphs: list[StepGraph] = []
        self._per_slot = (self._steps, self._newest, self._temperature, self._top_k, self._cfg_scale, self._noise)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._slots - len(self.live)

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures the step in CUDA graphs. Nothing may be live.

        A step that no graph fits (a very long text) runs eagerly; if capturing fails, all do.
        """
        width = min(GRAPH_TEXT, self._cache.text_mask.shape[1])
        positions = self._cache.keys.shape[3]
        pool = torch.cuda.graph_pool_handle()
        try:
            for live in reversed(batch_sizes(self._slots)):  # the largest first: the others reuse its memory
                for longest in range(positions, 0, -GRAPH_KEYS):
                    step = functools.partial(self._network, live, longest - 1, width, MAX_TOP_K)
                    self._graphs.insert(0, StepGraph(step, live, longest - 1, width, pool))
        except RuntimeError:
            _log.exception("CUDA graphs could not be captured; steps run eagerly, at a higher latency")
            self._graphs.clear()
        self._graphs.sort(key=lambda graph: (graph.live, graph.longest))

    @torch.inference_mode()
    def admit(self, utterance: Utterance, segment: Segment) -> None:
        """Gives an utterance a slot, with its first segment."""
        request = utterance.request
        slot = len(self.live)
        self._fill(slot, utterance, segment)
        self._temperature[slot] = request.temperature
        self._top_k[slot] = request.top_k
        self._cfg_scale[slot] = request.cfg_scale
        utterance.slot = slot
        self.live.append(utterance)

    @torch.inference_mode()
    def proceed(self, utterance: Utterance, segment: Segment) -> None:
        """Goes on with an utterance's next segment, in its slot."""
        utterance.history = self.history(utterance)
        self._fill(utterance.slot, utterance, segment)

    def history(self, utterance: Utterance) -> TextHistory:
        """What the segment that an utterance has just spoken leaves to the next."""
        assert utterance.memory is not None
        return TextHistory(utterance.tokens, utterance.memory, utterance.attended)

    def _fill(self, slot: int, utterance: Utterance, segment: Segment) -> None:
        """Encodes a segment with its history, fills the decoder with the speaker, and books the segment's words."""
        history, device = utterance.history, self._model.device
        tokens, begin = history.extend(segment.tokens) if history is not None else (segment.tokens, 0)
        text = torch.tensor([tokens], device=device)
        context = self._model.prepare_context_tensors(
            {
                "text": text,
                "text_lens": torch.tensor([len(tokens)], device=device),
                "speaker_indices": utterance.request.speaker,
            }
        )
        memory = context.cond[0]
        if history is not None:
            memory[:begin] = history.memory[len(history.memory) - begin :]
            place = history.place(tokens, begin, segment.is_last)
        else:
            place = SegmentPlace(len(tokens), is_last=segment.is_last)
        length = int(context.additional_decoder_mask[0].sum())
        self._alignment.reset(slot, place)
        prior = self._alignment.prior[slot, : place.length] if bool(self._alignment.active[slot]) else None
        self._decoder.prefill(slot, memory, context.additional_decoder_input[0, :length], prior)
        self._steps[slot] = 0
        self._newest[slot] = self._model.audio_bos_id
        # Drawn at once and on the CPU: the same on every device and in any company.
        self._noise[slot] = torch.rand(self._max_steps, self._sampler.draws, generator=utterance.noise)
        utterance.tokens, utterance.memory, utterance.attended = tokens, memory, place.attended
        utterance.position, utterance.steps = length, 0
        utterance.expect_words(tuple((word, begin + token) for word, token in segment.words))

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
        codes, told = self._decode(live)
        self._newest[:live] = codes
        self._steps[:live] += 1
        # The one point at which the CPU waits for the device.
        return [
            self._collect(utterance, codes[utterance.slot], *numbers)
            for utterance, numbers in zip(self.live, told.tolist(), strict=True)
        ]

    def _decode(self, live: int) -> tuple[Tensor, Tensor]:
        """Runs the network.

        Returns:
            Codes (n, codebooks, stacking), and (n, 3): the frame of the stack at which each ends, the text position
            that it attends to, and whether its segment is cut here.
        """
        longest = max(utterance.position for utterance in self.live)
        width = max(len(utterance.tokens) for utterance in self.live)
        graph = next((own for own in self._graphs if own.fits(live, longest, width)), None)
        if graph is not None:
            codes, told = graph.run()
            return codes[:live].clone(), told[:live]
        max_top_k = max(utterance.request.top_k for utterance in self.live)
        return self._network(live, longest, width, max_top_k)

    def _network(self, live: int, longest: int, width: int, max_top_k: int) -> tuple[Tensor, Tensor]:
        steps = self._steps[:live]
        newest = self._newest[:live]
        hidden, attention = self._decoder.step(
            self._embed(newest), longest, width, self._alignment.prior[:live, :width], self._alignment.active[:live]
        )
        rules = self._alignment.update(attention, steps)
        may_not_end = rules.may_not | (steps * self._stacking < self._min_frames)
        state = SamplingState(
            temperature=self._temperature[:live],
            top_k=self._top_k[:live],
            max_top_k=max_top_k,
            cfg_scale=self._cfg_scale[:live],
            noise=self._noise[torch.arange(live, device=steps.device), steps],
        )
        codes, ends = self._sampler.sample(hidden, state, may_not_end, rules.must)
        return codes, torch.stack([ends, self._alignment.attended[:live], rules.cut.long()], dim=1)

    def _embed(self, codes: Tensor) -> Tensor:
        """Embeds a step's codes (n, codebooks, stacking) as `embed_audio_tokens` does, which waits for the device."""
        tables = self._model.audio_embeddings
        parts = codes.transpose(1, 2).flatten(1).unbind(dim=1)
        embedded = tables[0](parts[0])
        for table, part in zip(tables[1:], parts[1:], strict=True):
            embedded = embedded + table(part)
        return embedded / len(parts)

    def _collect(self, utterance: Utterance, codes: Tensor, end: int, attended: int, cut: int) -> StepResult:
        """Books a step's codes (codebooks, stacking), of which frames from `end` on are not speech."""
        utterance.steps += 1
        utterance.position += 1
        utterance.attended = attended
        limit = utterance.request.max_frames
        room = self._stacking if limit is None else limit - utterance.frames
        first = utterance.frames
        utterance.append(codes[:, : min(end, room)])
        if utterance.frames > first:
            utterance.begin_words(attended, first)
        if utterance.is_full:
            return StepResult(utterance, FinishReason.LENGTH)
        if end < self._stacking or cut:
            return StepResult(utterance, FinishReason.END)
        if utterance.steps >= self._max_steps:
            return StepResult(utterance, FinishReason.LENGTH)
        return StepResult(utterance, None)
