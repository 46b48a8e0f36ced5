"""The decoding step with fused kernels: what runs on CUDA devices that the Triton language can compile for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor, nn

from magpie_engine import kernels
from magpie_engine.alignment import (
    CLOSED_VISITS,
    MAY_END_STEPS,
    MUST_END_STEPS,
    NEAR_END,
    SHORT_TEXT,
    SINK_VISITS,
    TAIL,
    AlignmentTracker,
    EndRules,
)
from magpie_engine.cache import GUIDANCE_ROWS, DecoderCache
from magpie_engine.decoder import IncrementalDecoder
from magpie_engine.sampler import CodebookSampler, SamplingState

if TYPE_CHECKING:
    from collections.abc import Callable

    from nemo.collections.tts.models.magpietts import MagpieTTSModel

    from magpie_engine.runner import Sampling

#: Rows up to which a matrix product is a sum of products, one pass over the matrix; beyond, tensor cores are faster.
FEW_ROWS = 4
#: Weights that a program of such a product holds, and multiplies with every row.
TILE = 8192
#: Inputs for which a program has a warp, up to `WARPS`.
WARP_INPUTS = 256
#: Keys that self-attention looks at together, texts that cross-attention takes whole, and columns of longer ones.
KEY_BLOCK, SHORT_TEXT_TOKENS, TEXT_PART = 128, 128, 32
#: Compute capability from which on a kernel can start before the one ahead of it is over.
EARLY_CAPABILITY = 9, 0
WARPS = 4
#: Warps of a draw, whose many sums over the tokens wait for all of them.
DRAW_WARPS = 8
#: Relative difference from PyTorch's step that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Any = None, gelu: bool = False,
    added: Tensor | None = None, out: Tensor | None = None, source: Attention | None = None,
) -> Tensor:  # fmt: skip
    """[added +] [gelu] ([norm](x) @ weight.T + bias).

    Args:
        x: (rows, inputs); rows may be apart. With a `source` what that reads, (positions, rows, 3 x inputs).
        weight: (outputs, inputs), or a convolution's of kernel size 1.
        bias: (outputs,).
        norm: Layer norm without bias, or None.
        gelu: Whether it is rectified.
        added: (rows, outputs); may be `out`.
        out: Where the result goes; None makes it.
        source: Attention that is not finished; for few rows only.

    Returns:
        (rows, outputs).
    """
    outputs, inputs = weight.shape[:2]
    rows = x.shape[-2]
    norm = None if isinstance(norm, nn.Identity) else norm
    if rows > FEW_ROWS:
        if norm is not None:
            x = F.layer_norm(x, (inputs,), norm.weight, None, norm.eps)
        result = F.linear(x, weight.view(outputs, inputs), bias)
        result = F.gelu(result, approximate="tanh") if gelu else result
        if added is not None:
            return torch.add(added, result, out=out)
        return result if out is None else out.copy_(result)
    if out is None:
        out = weight.new_empty(rows, outputs)
    (block, warps), early = _tiling(inputs), _starts_early(x.device)
    told = source or Attention()
    gain, epsilon = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    kernels.few_rows[(triton.cdiv(outputs, block),)](
        x, weight, bias, added, out, gain, epsilon,
        outputs, inputs, x.stride(0), 0 if added is None else added.stride(0), out.stride(0), told.number, told.scale,
        NORM=norm is not None, HAS_BIAS=bias is not None, GELU=gelu, ADD=added is not None, HEADS=told.heads,
        POSITIONS=told.positions, ROWS=rows, ROWS_PADDED=triton.next_power_of_2(rows), OUTPUTS=block,
        INPUTS=triton.next_power_of_2(inputs), EARLY=early, num_warps=warps, launch_pdl=early,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Attention:
    """Self-attention to a step's own positions, which the product after it does.

    Attributes:
        heads: Heads; a power of two, as is their width.
        positions: Most positions, a power of two; 0 for no attention.
        number: Which of those is the newest.
        scale: Of the scores.
    """

    heads: int = 1
    positions: int = 0
    number: int = 0
    scale: float = 1.0


def _tiling(inputs: int) -> tuple[int, int]:
    """Returns how many outputs of a product of few rows a program computes, and with how many warps."""
    padded = triton.next_power_of_2(inputs)
    return max(1, min(8, TILE // padded)), max(1, min(WARPS, padded // WARP_INPUTS))


@functools.cache
def _starts_early(device: torch.device) -> bool:
    """Whether a kernel can start before the one ahead of it is over."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= EARLY_CAPABILITY


def _attend(
    qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, attention: Any, *, positions: int | None = None
) -> Tensor:
    """Self-attention of the newest position of each row, (rows, 3 x width).

    Args:
        qkv: Projections of the newest position.
        keys: (rows, heads, positions, head width), to which the newest is added.
        values: Likewise.
        lengths: Positions filled, by pairs of rows; of all rows, (1,), where `positions` is given.
        attention: NeMo's self-attention.
        positions: Most positions of a memory that this step fills; None where earlier steps did.
    """
    rows, heads, head_width = len(qkv), attention.n_heads, attention.d_head
    out = qkv.new_empty(rows, heads * head_width)
    kernels.attend[(rows, heads)](
        qkv, keys, values, lengths, out, attention.scale, keys.stride(0), keys.stride(1), head_width, heads,
        keys.shape[2],
        LENGTH_STRIDE=1 if positions is None else 0,
        KEYS=KEY_BLOCK if positions is None else triton.next_power_of_2(positions),
        WIDTH=triton.next_power_of_2(head_width), num_warps=2 * WARPS if positions is None else WARPS,
    )  # fmt: skip
    return out


def _attend_by_parts(qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, attention: Any) -> Tensor:
    """`_attend` of few rows to memories that earlier steps filled."""
    rows, heads, head_width = len(qkv), attention.n_heads, attention.d_head
    number, width = triton.cdiv(keys.shape[2], KEY_BLOCK), triton.next_power_of_2(head_width)
    parts = torch.empty(rows, number, heads * head_width, device=qkv.device)
    sums = torch.empty(rows, number, heads, 2, device=qkv.device)
    out = qkv.new_empty(rows, heads * head_width)
    early = _starts_early(qkv.device)
    kernels.attend_part[(rows, heads, number)](
        qkv, keys, values, lengths, parts, sums, attention.scale, keys.stride(0), keys.stride(1), head_width, heads,
        keys.shape[2],
        PARTS=number, KEYS=KEY_BLOCK, WIDTH=width, EARLY=early, num_warps=2 * WARPS, launch_pdl=early,
    )  # fmt: skip
    kernels.merge_parts[(rows, heads)](
        parts, sums, out, head_width, heads,
        PARTS=number, PARTS_PADDED=triton.next_power_of_2(number), WIDTH=width, EARLY=early, num_warps=1,
        launch_pdl=early,
    )  # fmt: skip
    return out


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    first, second = layer.pos_ff.proj.conv, layer.pos_ff.o_net.conv
    hidden = product(x, first.weight, first.bias, norm=layer.norm_pos_ff, gelu=True)
    return product(hidden, second.weight, second.bias, added=x)


def _check_layers(layers: Any) -> None:
    for layer in layers:
        act = layer.pos_ff.non_linearity
        if (
            not isinstance(act, nn.GELU)
            or act.approximate != "tanh"
            or getattr(layer.norm_self, "bias", None) is not None
        ):
            raise TypeError(f"there are no fused kernels for layers with {act} and {layer.norm_self}")


class FusedDecoder(IncrementalDecoder):
    """`IncrementalDecoder` whose step is a few kernels a layer."""

    reads_own_length = True

    def step(
        self, x: Tensor, longest: int, text_width: int, prior: Tensor, prior_active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `IncrementalDecoder`; `x` may be of both rows of each slot already, positions included."""
        cache, live = self._cache, len(prior)
        if len(x) == live:
            position = cache.lengths[:live].clamp(max=len(self._positions) - 1)
            x = (x.to(cache.keys.dtype) + self._decoder.position_embeddings(position)).repeat_interleave(
                GUIDANCE_ROWS, dim=0
            )
        alignment = torch.empty(live, text_width, device=x.device)
        is_few = len(x) <= FEW_ROWS
        early = is_few and _starts_early(x.device)
        first_aligned = min(self._alignment_layers)
        for index, layer in enumerate(self._decoder.layers):
            attention, cross = layer.self_attention, layer.cross_attention
            qkv = product(x, attention.qkv_net.weight, norm=layer.norm_self)
            attend = _attend_by_parts if is_few else _attend
            mixed = attend(qkv, cache.keys[index], cache.values[index], cache.lengths, attention)
            x = product(mixed, attention.o_net.weight, added=x)
            told = x[::GUIDANCE_ROWS]
            query = product(told, cross.q_net.weight, norm=layer.norm_xattn_query)
            read = torch.empty_like(query)
            kernels.read_text[(live,)](
                query, cache.text_keys[index], cache.text_values[index], cache.text_mask, prior, prior_active,
                alignment, read, cross.scale, 1 / (cross.n_heads * len(self._alignment_layers)),
                torch.finfo(prior.dtype).tiny, cross.d_head, text_width, cache.text_mask.shape[1], prior.stride(0),
                HEADS=cross.n_heads, PRIOR=index in self._prior_layers,
                ALIGN=(index in self._alignment_layers) + (index in self._alignment_layers and index != first_aligned),
                SHORT=min(SHORT_TEXT_TOKENS, triton.next_power_of_2(text_width)),
                TEXT=triton.next_power_of_2(text_width), PART=min(TEXT_PART, triton.next_power_of_2(cross.d_head)),
                WIDTH=triton.next_power_of_2(cross.d_head), EARLY=early, num_warps=2 * WARPS, launch_pdl=early,
            )  # fmt: skip
            product(read, cross.o_net.weight, added=told, out=told)
            x = _feed_forward(layer, x)
        return x.view(live, GUIDANCE_ROWS, -1), alignment

    @torch.inference_mode()
    def check(self) -> None:
        """Compares a step with PyTorch's on noise, for few rows and for many; compiles the kernels.

        Raises:
            TypeError: The layers are of a kind that the kernels do not know.
            RuntimeError: They differ by more than rounding.
        """
        _check_layers(self._decoder.layers)
        width = self._decoder.layers[0].self_attention.qkv_net.weight.shape[1]
        device, dtype = self._cache.keys.device, self._cache.keys.dtype
        generator = torch.Generator(device).manual_seed(0)
        positions, text = min(300, self._cache.keys.shape[3]), min(40, self._cache.text_mask.shape[1])
        for live in (1, FEW_ROWS):
            caches = [DecoderCache(self._decoder, live, positions, text, device, dtype) for _ in range(2)]
            first, second = caches
            for name in ("keys", "values", "text_keys", "text_values"):
                getattr(first, name).normal_(generator=generator)
                getattr(second, name).copy_(getattr(first, name))
            for cache in caches:
                cache.text_mask[:, : text - 1] = True
                cache.lengths[:] = torch.arange(1, live + 1, device=device) * (positions // live) - 1
            x = torch.randn(live, width, generator=generator, device=device).to(dtype)
            prior = torch.rand(live, text, generator=generator, device=device)
            active = torch.arange(live, device=device) % 2 == 0
            own = self._alignment_layers, self._prior_layers
            results = [
                kind(self._decoder, cache, sorted(own[0]), sorted(own[1])).step(x, positions - 1, text, prior, active)
                for kind, cache in zip((FusedDecoder, IncrementalDecoder), caches, strict=True)
            ]
            for ours, theirs in (*zip(*results, strict=True), (first.keys, second.keys), (first.values, second.values)):
                _compare("decoder", ours, theirs, dtype)


class FusedAlignment(AlignmentTracker):
    """`AlignmentTracker` whose update is one kernel."""

    def update(self, scores: Tensor, steps: Tensor) -> EndRules:
        """See `AlignmentTracker`."""
        live, width = scores.shape
        chunked = self._chunked
        rules = EndRules(*(torch.empty(live, dtype=torch.bool, device=scores.device) for _ in range(3)))
        kernels.follow[(live,)](
            scores, steps, self.text_length, self.attended, self.visits, self.steps_near_end, self.prior, self.active,
            self.is_first, self.is_last, self._weights, rules.may_not, rules.must, rules.cut, width,
            self.visits.shape[1], self._window, self._epsilon, self._epsilon**2, self._start_step, SINK_VISITS,
            CLOSED_VISITS, SHORT_TEXT, TAIL, MAY_END_STEPS, MUST_END_STEPS, NEAR_END, chunked.near_end_threshold,
            chunked.forceful_chunk_end_threshold, chunked.finished_limit_with_eot, chunked.finished_limit_without_eot,
            chunked.short_sentence_threshold,
            ENABLED=self._enabled, ENFORCE=self._enforce_ends, DISTANCES=len(self._weights),
            TEXT=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
        return rules

    @torch.inference_mode()
    def check(self, plain: AlignmentTracker) -> None:
        """Compares updates from random states with PyTorch's; compiles the kernel. Nothing may be live.

        Raises:
            RuntimeError: They differ.
        """
        slots, most_text = self.visits.shape
        device, width = self.visits.device, min(40, most_text)
        generator = torch.Generator(device).manual_seed(0)
        before = [tensor.clone() for tensor in self._state()]

        def dice(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, device=device)

        for tracker in (self, plain):
            generator.manual_seed(0)
            tracker.text_length[:] = dice(2, width + 1, slots)
            tracker.attended[:] = dice(0, width, slots) % tracker.text_length
            tracker.visits[:, :width] = dice(0, CLOSED_VISITS + 2, slots, width)
            tracker.steps_near_end[:] = dice(0, MUST_END_STEPS, slots)
            tracker.is_first[:], tracker.is_last[:] = dice(0, 2, slots) == 0, dice(0, 2, slots) == 0
        for _ in range(3):
            scores = torch.rand(slots, width, generator=generator, device=device)
            steps = dice(0, 2 * self._start_step + 2, slots)
            ours, theirs = self.update(scores, steps), plain.update(scores, steps)
            told = zip((ours.may_not, ours.must, ours.cut), (theirs.may_not, theirs.must, theirs.cut), strict=True)
            for own, other in (*told, *zip(self._state(), plain._state(), strict=True)):
                if not torch.equal(own, other):
                    raise RuntimeError("the fused kernel of the alignment differs from PyTorch's")
        for tracker in (self, plain):
            for tensor, value in zip(tracker._state(), before, strict=True):
                tensor.copy_(value)


class FusedEmbedding:
    """A step's codes to the decoder's input, in one kernel.

    Args:
        model: The restored model; its tables become views of one tensor.
        cache: The decoder's memory, which knows the positions.
    """

    def __init__(self, model: MagpieTTSModel, cache: DecoderCache) -> None:
        tables = list(model.audio_embeddings)
        self._tables = torch.stack([table.weight.data for table in tables])
        for table, own in zip(tables, self._tables, strict=True):
            table.weight.data = own
        self._positions = model.decoder.position_embeddings.weight
        self._cache = cache

    def __call__(self, codes: Tensor) -> Tensor:
        """Embeds codes (n, codebooks, stacking); returns (2n, width), positions included."""
        number, size, width = self._tables.shape
        out = self._tables.new_empty(GUIDANCE_ROWS * len(codes), width)
        kernels.embed[(len(codes),)](
            codes.transpose(1, 2).contiguous(), self._tables, self._positions, self._cache.lengths, out, size, width,
            self._cache.keys.shape[3], TABLES=number, WIDTH=triton.next_power_of_2(width),
            LEADS=_starts_early(out.device), num_warps=WARPS,
        )  # fmt: skip
        return out


class FusedSampler(CodebookSampler):
    """`CodebookSampler` whose draw is a few kernels."""

    def __init__(self, model: MagpieTTSModel) -> None:
        super().__init__(model)
        _check_layers(self._transformer.layers)
        first = self._transformer.layers[0]
        attention = first.self_attention
        #: Rows of the local transformer's memory, which grows on demand before graphs are captured.
        self._memory: list[tuple[Tensor, Tensor]] = []
        self._shape = attention.n_heads, self.draws, attention.d_head
        self._number = torch.arange(self.draws, device=model.device)
        width = attention.n_heads * attention.d_head
        #: Whether a product can do a few rows' attention to the step's own positions: it reshapes what it reads.
        self._finishes_attention = attention.qkv_net.weight.shape[1] == width and all(
            _is_power_of_two(number) for number in (attention.n_heads, attention.d_head)
        )
        with torch.inference_mode():
            #: First layer's queries, keys and values of `_next_inputs`, (tokens, 3 x width).
            self._next_qkv = [attention.qkv_net(first.norm_self(inputs)) for inputs in self._next_inputs]
        self._qkv_width = triton.next_power_of_2(3 * width)

    def _room(self, rows: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        if not self._memory or len(self._memory[0][0]) < rows:
            shape = rows, *self._shape
            self._memory = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self._transformer.layers]
        return self._memory

    def _enter(self, hidden: Tensor) -> Tensor:
        """`_first_input`, contiguous."""
        project, positions = self._project_in, self._transformer.position_embeddings
        if not isinstance(project, nn.Linear) or positions is None:
            return self._first_input(hidden).contiguous()
        x = hidden.flatten(0, 1)
        added = positions.weight[0].expand(len(x), -1)
        return product(x, project.weight, project.bias, norm=self._norm, added=added)

    def draw(self, hidden: Tensor, state: Callable[[], SamplingState]) -> Tensor:
        """See `CodebookSampler`."""
        live = hidden.shape[0]
        x = self._enter(hidden)
        early = len(x) <= FEW_ROWS and _starts_early(x.device)
        step = self._few if len(x) <= FEW_ROWS and self._finishes_attention else self._many
        qkvs = [x.new_empty(self.draws, len(x), 3 * x.shape[1]) for _ in self._transformer.layers]
        codes = torch.empty(live, self.draws, dtype=torch.long, device=x.device)
        how = None
        for number in range(self.draws):
            logits = self._logits(number, step(number, x, qkvs))
            is_first, follows, width = how is None, number + 1 < self.draws, x.shape[1]
            how = how or state()
            x = torch.empty_like(x)
            kernels.draw[(live,)](
                logits, self._forbidden, how.may_not_end, how.must_end, how.cfg_scale, how.temperature, how.top_k,
                how.noise[:, number:], self._next_inputs[number] if follows else None,
                self._next_qkv[number] if follows else None, codes[:, number:], x,
                qkvs[0][number + 1] if follows else None,
                self._end_token, logits.shape[1], how.noise.stride(0), codes.stride(0), width,
                FOLLOWS=follows, TOKENS=triton.next_power_of_2(logits.shape[1]), WIDTH=triton.next_power_of_2(width),
                QKV=self._qkv_width if step == self._few else 0, EARLY=early and not is_first, num_warps=DRAW_WARPS,
                launch_pdl=early and not is_first,  # the first waits for another stream too
            )  # fmt: skip
        return self._stacked(codes)

    def _few(self, number: int, x: Tensor, qkvs: list[Tensor]) -> Tensor:
        """The local transformer's layers for few rows, which need no memory but this step's `qkvs`."""
        for index, (layer, qkv) in enumerate(zip(self._transformer.layers, qkvs, strict=True)):
            attention = layer.self_attention
            if number == 0 or index > 0:  # otherwise it came with the code
                product(x, attention.qkv_net.weight, norm=layer.norm_self, out=qkv[number])
            source = Attention(attention.n_heads, triton.next_power_of_2(self.draws), number, attention.scale)
            x = _feed_forward(layer, product(qkv, attention.o_net.weight, added=x, source=source))
        return x

    def _many(self, number: int, x: Tensor, qkvs: list[Tensor]) -> Tensor:
        """The same for many rows."""
        for layer, (keys, values) in zip(self._transformer.layers, self._room(len(x), x), strict=True):
            attention = layer.self_attention
            qkv = product(x, attention.qkv_net.weight, norm=layer.norm_self)
            mixed = _attend(qkv, keys, values, self._number[number:], attention, positions=self.draws)
            x = _feed_forward(layer, product(mixed, attention.o_net.weight, added=x))
        return x

    def _logits(self, number: int, x: Tensor) -> Tensor:
        head, transformer = self._heads[number], self._transformer
        if isinstance(self._project_out, nn.Identity):
            return product(x, head.weight, head.bias, norm=transformer.norm_out)
        logits: Tensor = head(self._project_out(transformer.norm_out(x)))
        return logits

    @torch.inference_mode()
    def check(self, plain: CodebookSampler) -> None:
        """Compares draws with PyTorch's on noise, greedy and sampled; compiles the kernels.

        Raises:
            RuntimeError: Codes differ more often than by rounding.
        """
        weight = self._parallel_heads.weight
        device, generator = weight.device, torch.Generator(weight.device).manual_seed(0)
        for live, times in ((1, 2 * FEW_ROWS), (2 * FEW_ROWS, 1)):
            # Of the first two draws: a difference by rounding leads all that follow it astray.
            equal = torch.zeros(2, dtype=torch.long, device=device)
            for number in range(times):
                hidden = torch.randn(live, GUIDANCE_ROWS, weight.shape[1], generator=generator, device=device)
                nobody = torch.zeros(live, dtype=torch.bool, device=device)
                state = SamplingState(
                    temperature=torch.full((live,), 0.7 * (number % 2), device=device),
                    top_k=torch.full((live,), 20, device=device),
                    max_top_k=20,
                    cfg_scale=torch.full((live,), 2.0, device=device),
                    noise=torch.rand(live, self.draws, generator=generator, device=device),
                    may_not_end=nobody,
                    must_end=nobody,
                )
                args = hidden.to(weight.dtype), functools.partial(_same, state)
                ours, theirs = (sampler.draw(*args).transpose(1, 2).flatten(1)[:, :2] for sampler in (self, plain))
                equal[: ours.shape[1]] += (ours == theirs).sum(dim=0)
            if bool((2 * equal[: min(2, self.draws)] < live * times).any()):
                raise RuntimeError("the fused kernels draw other codes than PyTorch's")


class FusedConclusion:
    """A step's end in one kernel: `ModelRunner._conclude_step`.

    Args:
        sampler: The codes' sampler, which knows what counts as an end.
        newest: The slots' newest codes, (slots, codebooks, stacking).
        steps: Steps taken of their segments, (slots,).
        lengths: Decoder positions filled, (slots,).
    """

    def __init__(self, sampler: CodebookSampler, newest: Tensor, steps: Tensor, lengths: Tensor) -> None:
        self._sampler, self._newest, self._steps, self._lengths = sampler, newest, steps, lengths

    def __call__(self, codes: Tensor, likely: Tensor, sampling: Sampling) -> Tensor:
        """See `ModelRunner`."""
        sampler, state = self._sampler, sampling.state
        _, books, stacking = codes.shape
        told = torch.empty(len(codes), 3, dtype=torch.long, device=codes.device)
        kernels.conclude[(len(codes),)](
            codes, likely, state.may_not_end, state.must_end, sampling.attended, sampling.cut, self._newest,
            self._steps, self._lengths, told, sampler._end_token, codes.stride(0),
            BOOKS=books, BOOKS_PADDED=triton.next_power_of_2(books), STACKING=stacking,
            VOTE={"any": 0, "all": 1}.get(sampler._detection, 2), SAMPLED=sampler._sampled_ends_count, num_warps=1,
        )  # fmt: skip
        return told


def _same(state: SamplingState) -> SamplingState:
    return state


def _is_power_of_two(number: int) -> bool:
    return number == int(triton.next_power_of_2(number))


def _compare(what: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not difference < TOLERANCE[dtype]:
        raise RuntimeError(f"the fused kernels of the {what} differ from PyTorch's by {difference:.1e}")
