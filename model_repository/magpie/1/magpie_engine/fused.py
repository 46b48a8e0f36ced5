"""The decoding step with fused kernels: what runs on CUDA devices that the Triton language can compile for."""

from __future__ import annotations

import functools
from dataclasses import replace
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
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

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
#: Relative difference from PyTorch's step that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Any = None, gelu: bool = False,
    added: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[added +] [gelu] ([norm](x) @ weight.T + bias).

    Args:
        x: (rows, inputs); rows may be apart.
        weight: (outputs, inputs), or a convolution's of kernel size 1.
        bias: (outputs,).
        norm: Layer norm without bias, or None.
        gelu: Whether it is rectified.
        added: (rows, outputs); may be `out`.
        out: Where the result goes; None makes it.

    Returns:
        (rows, outputs).
    """
    rows, inputs = x.shape
    outputs = weight.shape[0]
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
        out = x.new_empty(rows, outputs)
    (block, warps), early = _tiling(inputs), _starts_early(x.device)
    kernels.few_rows[(triton.cdiv(outputs, block),)](
        x, weight, bias, added, out, None if norm is None else norm.weight, 0.0 if norm is None else norm.eps,
        outputs, inputs, x.stride(0), 0 if added is None else added.stride(0), out.stride(0),
        NORM=norm is not None, HAS_BIAS=bias is not None, GELU=gelu, ADD=added is not None,
        ROWS=rows, ROWS_PADDED=triton.next_power_of_2(rows), OUTPUTS=block,
        INPUTS=triton.next_power_of_2(inputs), EARLY=early, num_warps=warps, launch_pdl=early,
    )  # fmt: skip
    return out


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
    early = rows <= FEW_ROWS and _starts_early(qkv.device)
    kernels.attend[(rows, heads)](
        qkv, keys, values, lengths, out, attention.scale, keys.stride(0), keys.stride(1), head_width, heads,
        keys.shape[2],
        LENGTH_STRIDE=1 if positions is None else 0,
        KEYS=KEY_BLOCK if positions is None else triton.next_power_of_2(positions),
        WIDTH=triton.next_power_of_2(head_width), EARLY=early, AHEAD=positions is None,
        num_warps=2 * WARPS if positions is None else WARPS, launch_pdl=early,
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
        alignment = torch.zeros(live, text_width, device=x.device)
        early = len(x) <= FEW_ROWS and _starts_early(x.device)
        for index, layer in enumerate(self._decoder.layers):
            attention, cross = layer.self_attention, layer.cross_attention
            qkv = product(x, attention.qkv_net.weight, norm=layer.norm_self)
            mixed = _attend(qkv, cache.keys[index], cache.values[index], cache.lengths, attention)
            x = product(mixed, attention.o_net.weight, added=x)
            told = x[::GUIDANCE_ROWS]
            query = product(told, cross.q_net.weight, norm=layer.norm_xattn_query)
            read = torch.empty_like(query)
            kernels.read_text[(live,)](
                query, cache.text_keys[index], cache.text_values[index], cache.text_mask, prior, prior_active,
                alignment, read, cross.scale, 1 / (cross.n_heads * len(self._alignment_layers)),
                torch.finfo(prior.dtype).tiny, cross.d_head, text_width, cache.text_mask.shape[1], prior.stride(0),
                HEADS=cross.n_heads, PRIOR=index in self._prior_layers, ALIGN=index in self._alignment_layers,
                SHORT=min(SHORT_TEXT_TOKENS, triton.next_power_of_2(text_width)),
                TEXT=triton.next_power_of_2(text_width), PART=min(TEXT_PART, triton.next_power_of_2(cross.d_head)),
                WIDTH=triton.next_power_of_2(cross.d_head), EARLY=early, num_warps=2 * WARPS, launch_pdl=early,
            )  # fmt: skip
            product(read, cross.o_net.weight, added=told, out=told)
            x = _feed_forward(layer, x)
        cache.lengths[:live] += 1
        hidden = self._decoder.norm_out(x).view(live, GUIDANCE_ROWS, -1)
        return hidden, alignment

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
        rules = EndRules(*(torch.zeros(live, dtype=torch.bool, device=scores.device) for _ in range(3)))
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
            self._cache.keys.shape[3], TABLES=number, WIDTH=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
        return out


class FusedSampler(CodebookSampler):
    """`CodebookSampler` whose draw is a few kernels."""

    def __init__(self, model: MagpieTTSModel) -> None:
        super().__init__(model)
        _check_layers(self._transformer.layers)
        attention = self._transformer.layers[0].self_attention
        #: Rows of the local transformer's memory, which grows on demand before graphs are captured.
        self._memory: list[tuple[Tensor, Tensor]] = []
        self._shape = attention.n_heads, self.draws, attention.d_head
        self._number = torch.arange(self.draws, device=model.device)

    def _room(self, rows: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        if not self._memory or len(self._memory[0][0]) < rows:
            shape = rows, *self._shape
            self._memory = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self._transformer.layers]
        return self._memory

    def sample(
        self, hidden: Tensor, state: SamplingState, may_not_end: Tensor, must_end: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `CodebookSampler`."""
        live, transformer = hidden.shape[0], self._transformer
        x = self._first_input(hidden).contiguous()
        memory = self._room(GUIDANCE_ROWS * live, x)
        early = len(x) <= FEW_ROWS and _starts_early(x.device)
        codes = torch.empty(live, self.draws, dtype=torch.long, device=x.device)
        for number in range(self.draws):
            for layer, (keys, values) in zip(transformer.layers, memory, strict=True):
                attention = layer.self_attention
                qkv = product(x, attention.qkv_net.weight, norm=layer.norm_self)
                mixed = _attend(qkv, keys, values, self._number[number:], attention, positions=self.draws)
                x = _feed_forward(layer, product(mixed, attention.o_net.weight, added=x))
            head = self._heads[number]
            if isinstance(self._project_out, nn.Identity):
                logits = product(x, head.weight, head.bias, norm=transformer.norm_out)
            else:
                logits = head(self._project_out(transformer.norm_out(x)))
            follows = number + 1 < self.draws
            width = x.shape[1]
            x = torch.empty_like(x)
            kernels.draw[(live,)](
                logits, self._forbidden, may_not_end, must_end, state.cfg_scale, state.temperature, state.top_k,
                state.noise[:, number:], self._next_inputs[number] if follows else None, codes[:, number:], x,
                self._end_token, logits.shape[1], state.noise.stride(0), codes.stride(0), width,
                FOLLOWS=follows, TOKENS=triton.next_power_of_2(logits.shape[1]), WIDTH=triton.next_power_of_2(width),
                EARLY=early, num_warps=2 * WARPS, launch_pdl=early,
            )  # fmt: skip
        codes = codes.view(live, self._stacking, self._codebooks).transpose(1, 2)
        return codes, self._find_end(hidden, codes, state.cfg_scale, may_not_end, must_end)

    @torch.inference_mode()
    def check(self, plain: CodebookSampler) -> None:
        """Compares draws with PyTorch's on noise, greedy and sampled; compiles the kernels.

        Raises:
            RuntimeError: Codes differ more often than by rounding.
        """
        weight = self._parallel_heads.weight
        generator = torch.Generator(weight.device).manual_seed(0)
        for live in (1, 2 * FEW_ROWS):
            hidden = torch.randn(live, GUIDANCE_ROWS, weight.shape[1], generator=generator, device=weight.device)
            greedy = SamplingState(
                temperature=torch.zeros(live, device=weight.device),
                top_k=torch.full((live,), 20, device=weight.device),
                max_top_k=20,
                cfg_scale=torch.full((live,), 2.0, device=weight.device),
                noise=torch.rand(live, self.draws, generator=generator, device=weight.device),
            )
            nobody = torch.zeros(live, dtype=torch.bool, device=weight.device)
            for state in (greedy, replace(greedy, temperature=greedy.temperature + 0.7)):
                args = hidden.to(weight.dtype), state, nobody, nobody
                ours, theirs = (sampler.sample(*args)[0][:, 0, 0] for sampler in (self, plain))
                if 2 * int((ours == theirs).sum()) < live:
                    raise RuntimeError("the fused kernels draw other codes than PyTorch's")


def _compare(what: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not difference < TOLERANCE[dtype]:
        raise RuntimeError(f"the fused kernels of the {what} differ from PyTorch's by {difference:.1e}")
