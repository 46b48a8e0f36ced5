"""Holds the slots and runs the network: the prefill of those that begin, or one step of all live ones."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magpie_engine.alignment import AlignmentTracker, SegmentPlace
from magpie_engine.beside import Beside
from magpie_engine.cache import DecoderCache
from magpie_engine.catalog import Catalog
from magpie_engine.checkpoint import BOS_POSITIONS
from magpie_engine.decoder import IncrementalDecoder, Prefill
from magpie_engine.events import FinishReason
from magpie_engine.graphs import StepGraph, batch_sizes
from magpie_engine.history import TextHistory
from magpie_engine.precision import convolutions
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
#: Decoder positions by which the graphs of one batch size differ, where a step's cost depends on them.
GRAPH_KEYS = 256


@dataclass(frozen=True)
class Sampling:
    """What the alignment says of a step's codes.

    Attributes:
        state: How to draw them.
        attended: Text positions that they attend to, (n,).
        cut: Whether the segments end here, (n,).
    """

    state: SamplingState
    attended: Tensor
    cut: Tensor


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
        self._context_lengths: list[int] = model.baked_context_embedding_len.tolist()
        self._model = model
        self._tf32 = bool(settings.tf32)
        self._fixed_batch = bool(settings.fixed_batch)
        self._stacking: int = model.frame_stacking_factor
        self._min_frames: int = inference.min_generated_frames
        self._max_steps = -(-catalog.max_frames // self._stacking)
        self._slots = slots
        #: Utterances by slot.
        self.live: list[Utterance] = []

        positions = max(self._context_lengths) + BOS_POSITIONS + self._max_steps
        dtype = next(model.decoder.parameters()).dtype
        self._cache = DecoderCache(model.decoder, slots, positions, catalog.max_text_tokens, device, dtype)
        self._decoder = IncrementalDecoder(
            model.decoder, self._cache, inference.estimate_alignment_from_layers, inference.apply_prior_to_layers
        )
        self._alignment = AlignmentTracker(
            slots, catalog.max_text_tokens, inference, model.chunked_inference_config, device
        )
        self._sampler = CodebookSampler(model)
        self._embed: Callable[[Tensor], Tensor] = self._embed_codes
        self._conclude: Callable[[Tensor, Tensor, Sampling], Tensor] = self._conclude_step
        self._beside = Beside(device)
        self._steps = torch.zeros(slots, dtype=torch.long, device=device)
        self._newest = torch.zeros(slots, model.num_audio_codebooks, self._stacking, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._top_k = torch.ones(slots, dtype=torch.long, device=device)
        self._cfg_scale = torch.ones(slots, device=device)
        self._noise = torch.zeros(slots, self._max_steps, self._sampler.draws, device=device)
        self._slot = torch.arange(slots, device=device)
        #: Whether there is a GPU and CUDA graphs are wanted.
        self.wants_graphs = bool(settings.cuda_graphs) and device.type == "cuda"
        #: The smallest first.
        self._graphs: list[StepGraph] = []
        self._per_slot = (self._steps, self._newest, self._temperature, self._top_k, self._cfg_scale, self._noise)
        if device.type == "cuda":
            self._use_fused_kernels()

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._slots - len(self.live)

    def _use_fused_kernels(self) -> None:
        """Takes the fastest form of the step, if it works on this device."""
        inference = self._model.inference_parameters
        try:
            from magpie_engine.fused import (
                FusedAlignment,
                FusedConclusion,
                FusedDecoder,
                FusedEmbedding,
                FusedSampler,
            )

            decoder = FusedDecoder(
                self._model.decoder,
                self._cache,
                inference.estimate_alignment_from_layers,
                inference.apply_prior_to_layers,
            )
            decoder.check()
            sampler = FusedSampler(self._model)
            sampler.check(self._sampler)
            alignment = FusedAlignment(
                self._slots,
                self._cache.text_mask.shape[1],
                inference,
                self._model.chunked_inference_config,
                self._model.device,
            )
            alignment.check(self._alignment)
            embed = FusedEmbedding(self._model, self._cache)
            conclude = FusedConclusion(sampler, self._newest, self._steps, self._cache.lengths)
        except Exception:  # no Triton language, no C compiler for it, or a device or model that it does not suit
            _log.exception("the fused kernels cannot be used; the step runs with PyTorch's, at a higher latency")
            return
        self._decoder, self._sampler, self._alignment = decoder, sampler, alignment
        self._embed, self._conclude = embed, conclude

    @torch.inference_mode()
    def capture(self) -> None:
        """Captures the step in CUDA graphs. Nothing may be live.

        A step that no graph fits (a very long text) runs eagerly; if capturing fails, all do.
        """
        width, positions = self._cache.text_mask.shape[1], self._cache.keys.shape[3]
        sizes, spacing = batch_sizes(self._slots), GRAPH_KEYS
        if self._fixed_batch:
            sizes = [self._slots]
        else:
            width = min(GRAPH_TEXT, width)
        if self._fixed_batch or self._decoder.reads_own_length:
            spacing = positions
        pool = torch.cuda.graph_pool_handle()
        try:
            for live in reversed(sizes):  # the largest first: the others reuse its memory
                for longest in range(positions, 0, -spacing):
                    step = functools.partial(self._network, live, longest - 1, width, MAX_TOP_K)
                    self._graphs.insert(0, StepGraph(step, live, longest - 1, width, pool))
        except RuntimeError:
            _log.exception("CUDA graphs could not be captured; steps run eagerly, at a higher latency")
            self._graphs.clear()
        self._graphs.sort(key=lambda graph: (graph.live, graph.longest))

    @torch.inference_mode()
    def admit(self, beginning: Sequence[tuple[Utterance, Segment]]) -> None:
        """Gives utterances slots, each with its first segment: one prefill for all."""
        first = len(self.live)
        for slot, (utterance, _) in enumerate(beginning, first):
            request = utterance.request
            self._temperature[slot] = request.temperature
            self._top_k[slot] = request.top_k
            self._cfg_scale[slot] = request.cfg_scale
        together = 1 if self._fixed_batch else len(beginning)
        for begin in range(0, len(beginning), together):
            self._fill(first + begin, beginning[begin : begin + together])
        for slot, (utterance, _) in enumerate(beginning, first):
            utterance.slot = slot
            self.live.append(utterance)

    @torch.inference_mode()
    def proceed(self, utterance: Utterance, segment: Segment) -> None:
        """Goes on with an utterance's next segment, in its slot."""
        utterance.history = self.history(utterance)
        self._fill(utterance.slot, [(utterance, segment)])

    def history(self, utterance: Utterance) -> TextHistory:
        """What the segment that an utterance has just spoken leaves to the next."""
        assert utterance.memory is not None
        return TextHistory(utterance.tokens, utterance.memory, utterance.attended)

    def _fill(self, first: int, entries: Sequence[tuple[Utterance, Segment]]) -> None:
        """Encodes segments with their histories, fills the decoder with the speakers, and books the segments' words.

        Args:
            first: The first of the consecutive slots that it is for.
            entries: Utterance and segment for each.
        """
        device = self._model.device
        extended = [
            (segment.tokens, 0) if utterance.history is None else utterance.history.extend(segment.tokens)
            for utterance, segment in entries
        ]
        longest = max(len(tokens) for tokens, _ in extended)
        # What pads is never looked at; it only has to be a token.
        padded = [[*tokens, *tokens[-1:] * (longest - len(tokens))] for tokens, _ in extended]
        text_lengths = torch.tensor([len(tokens) for tokens, _ in extended], device=device)
        with convolutions(tf32=self._tf32):
            encoded = self._model.prepare_context_tensors(
                {
                    "text": torch.tensor(padded, device=device),
                    "text_lens": text_lengths,
                    "speaker_indices": [utterance.request.speaker for utterance, _ in entries],
                }
            )
        memory = encoded.cond
        for row, ((utterance, segment), (tokens, begin)) in enumerate(zip(entries, extended, strict=True)):
            history = utterance.history
            if history is None:
                place = SegmentPlace(len(tokens), is_last=segment.is_last)
            else:
                memory[row, :begin] = history.memory[len(history.memory) - begin :]
                place = history.place(tokens, begin, segment.is_last)
            self._alignment.reset(first + row, place)
            utterance.tokens, utterance.memory, utterance.attended = tokens, memory[row, : len(tokens)], place.attended
            utterance.position, utterance.steps = self._context_lengths[utterance.request.speaker], 0
            utterance.expect_words(tuple((word, begin + token) for word, token in segment.words))
        slots = slice(first, first + len(entries))
        positions = max(utterance.position for utterance, _ in entries)
        self._decoder.prefill(
            first,
            Prefill(
                text=memory,
                text_lengths=text_lengths,
                context=encoded.additional_decoder_input[:, :positions],
                context_lengths=torch.tensor([utterance.position for utterance, _ in entries], device=device),
                prior=self._alignment.prior[slots, :longest],
                prior_active=self._alignment.active[slots],
            ),
        )
        self._steps[slots] = 0
        self._newest[slots] = self._model.audio_bos_id
        # Drawn at once and on the CPU: the same on every device and in any company.
        shape = self._max_steps, self._sampler.draws
        self._noise[slots] = torch.stack([torch.rand(shape, generator=own.noise) for own, _ in entries]).to(device)

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
    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[StepResult]:
        """Decodes one step of all live utterances and appends its codes to them.

        Args:
            meanwhile: What the CPU can do while a GPU decodes.
        """
        live = len(self.live)
        codes, told = self._decode(live)
        meanwhile()
        # The one point at which the CPU waits for the step.
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
        if self._fixed_batch:
            codes, told = self._network(
                self._slots, self._cache.keys.shape[3] - 1, self._cache.text_mask.shape[1], MAX_TOP_K
            )
            return codes[:live], told[:live]
        max_top_k = max(utterance.request.top_k for utterance in self.live)
        return self._network(live, longest, width, max_top_k)

    def _network(self, live: int, longest: int, width: int, max_top_k: int) -> tuple[Tensor, Tensor]:
        hidden, attention = self._decoder.step(
            self._embed(self._newest[:live]),
            longest,
            width,
            self._alignment.prior[:live, :width],
            self._alignment.active[:live],
        )
        # Neither is needed at once, and each is many small operations or one large one.
        sampling = self._beside.begin(lambda: self._prepare(attention, max_top_k))
        likely = self._beside.begin(lambda: self._sampler.likely_ends(hidden, self._cfg_scale[:live]))
        codes = self._sampler.draw(hidden, lambda: sampling().state)
        return codes, self._conclude(codes, likely(), sampling())

    def _prepare(self, attention: Tensor, max_top_k: int) -> Sampling:
        """Follows the alignment by the newest frame's attention (n, text); says how to draw its codes."""
        live = len(attention)
        # Slots that only pad a CUDA graph's batch run on beyond the end.
        steps = self._steps[:live].clamp(max=self._max_steps - 1)
        rules = self._alignment.update(attention, steps)
        state = SamplingState(
            temperature=self._temperature[:live],
            top_k=self._top_k[:live],
            max_top_k=max_top_k,
            cfg_scale=self._cfg_scale[:live],
            noise=self._noise[self._slot[:live], steps],
            may_not_end=rules.may_not | (steps * self._stacking < self._min_frames),
            must_end=rules.must,
        )
        return Sampling(state, self._alignment.attended[:live], rules.cut)

    def _conclude_step(self, codes: Tensor, likely: Tensor, sampling: Sampling) -> Tensor:
        """Ends a step: what the next one begins with is written to the slots.

        Args:
            codes: Result of `CodebookSampler.draw`.
            likely: Result of `CodebookSampler.likely_ends`.
            sampling: How they were drawn.

        Returns:
            (n, 3): the frame of the stack at which each ends, the text position that it attends to, and whether its
            segment is cut here.
        """
        live = len(codes)
        self._newest[:live] = codes
        self._steps[:live] += 1
        self._cache.lengths[:live] += 1
        ends = self._sampler.find_end(codes, likely, sampling.state)
        return torch.stack([ends, sampling.attended, sampling.cut.long()], dim=1)

    def _embed_codes(self, codes: Tensor) -> Tensor:
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
