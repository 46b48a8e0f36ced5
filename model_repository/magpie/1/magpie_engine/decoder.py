"""Magpie's decoder, one step at a time for all live slots.

Computes what `transformer_2501.Transformer.forward` computes with NeMo's own cache, but with a cache per slot, and
without recomputing norms and feed-forward blocks of past positions, so the cost of a step does not grow with position
except for attention itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from magpie_engine.cache import GUIDANCE_ROWS, DecoderCache
from magpie_engine.layers import attend, feed_forward, project_qkv

#: Keys are attended in blocks of this many positions, so that shapes repeat from step to step.
KEY_BLOCK = 64


@dataclass(frozen=True)
class Prefill:
    """Texts and speakers of n utterances, padded to the longest.

    Attributes:
        text: Encoded texts, (n, tokens, width).
        text_lengths: Tokens of each, (n,).
        context: Speaker contexts, (n, positions, width).
        context_lengths: Positions of each, (n,).
        prior: Attention prior that applies to the context, (n, tokens).
        prior_active: Whether it does, (n,).
    """

    text: Tensor
    text_lengths: Tensor
    context: Tensor
    context_lengths: Tensor
    prior: Tensor
    prior_active: Tensor


class IncrementalDecoder:
    """Runs NeMo's decoder on a `DecoderCache`.

    Args:
        decoder: NeMo's decoder `Transformer`.
        cache: Its memory.
        alignment_layers: Layers whose cross-attention tells where in the text the speech is; None for all.
        prior_layers: Layers to which the attention prior applies; None for all.
    """

    #: Whether a step looks at the positions that each slot has filled, whatever the longest has; else at that many.
    reads_own_length: ClassVar[bool] = False

    def __init__(
        self,
        decoder: Any,
        cache: DecoderCache,
        alignment_layers: Sequence[int] | None,
        prior_layers: Sequence[int] | None,
    ) -> None:
        everything = range(len(decoder.layers))
        self._decoder = decoder
        self._cache = cache
        self._alignment_layers = set(everything if alignment_layers is None else alignment_layers)
        self._prior_layers = set(everything if prior_layers is None else prior_layers)
        self._positions = torch.arange(cache.keys.shape[3], device=cache.keys.device)
        self._text_positions = torch.arange(cache.text_mask.shape[1], device=cache.keys.device)
        self._unconditioned: tuple[Tensor, Tensor] | None = None

    def prefill(self, first: int, batch: Prefill) -> None:
        """Fills the memory of consecutive slots, each with a text and a speaker.

        The unconditioned rows see neither: theirs is the same every time, and is computed once.

        Args:
            first: The first of the slots.
            batch: What to fill them with.
        """
        cache = self._cache
        count, tokens, _ = batch.text.shape
        positions = batch.context.shape[1]
        if self._unconditioned is None or self._unconditioned[0].shape[2] < positions:
            self._unconditioned = self._run_unconditioned(positions)
        slots = slice(first, first + count)
        rows = slice(GUIDANCE_ROWS * first, GUIDANCE_ROWS * (first + count), GUIDANCE_ROWS)
        guidance = slice(GUIDANCE_ROWS * first + 1, GUIDANCE_ROWS * (first + count), GUIDANCE_ROWS)
        cache.keys[:, guidance, :, :positions] = self._unconditioned[0][:, None, :, :positions]
        cache.values[:, guidance, :, :positions] = self._unconditioned[1][:, None, :, :positions]
        cache.text_mask[slots] = self._text_positions < batch.text_lengths[:, None]
        cache.lengths[slots] = batch.context_lengths
        factor = _prior_factor(batch.prior, batch.prior_active)
        x = batch.context + self._decoder.position_embeddings(self._positions[:positions])
        for index, layer in enumerate(self._decoder.layers):
            cross = layer.cross_attention
            projected = cross.kv_net(layer.norm_xattn_memory(batch.text))
            cache.write_text(index, slots, projected.view(count, tokens, 2, cross.n_heads, cross.d_head))

            query, key, value = project_qkv(layer, x)
            cache.keys[index, rows, :, :positions] = key
            cache.values[index, rows, :, :positions] = value
            x = x + attend(layer, query, key, value, is_causal=True)
            x = x + self._read_text(index, slots, tokens, x, factor if index in self._prior_layers else None)[0]
            x = x + feed_forward(layer, x)

    def _run_unconditioned(self, positions: int) -> tuple[Tensor, Tensor]:
        """Runs the decoder on an empty context; returns keys and values, (layers, heads, positions, head width)."""
        x = self._decoder.position_embeddings(self._positions[:positions])[None]
        keys, values = [], []
        for layer in self._decoder.layers:
            query, key, value = project_qkv(layer, x)
            keys.append(key[0])
            values.append(value[0])
            x = x + attend(layer, query, key, value, is_causal=True)
            x = x + feed_forward(layer, x)
        return torch.stack(keys), torch.stack(values)

    def step(
        self, x: Tensor, longest: int, text_width: int, prior: Tensor, prior_active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decodes one position for slots 0 to n-1; to count it is the caller's.

        Args:
            x: Embedded newest frames, (n, width).
            longest: Largest number of positions filled in any live slot.
            text_width: Length of the longest live text, in tokens.
            prior: Attention prior, (n, text_width).
            prior_active: Whether it applies, (n,).

        Returns:
            Hidden states (n, 2, width), conditioned and unconditioned, before the decoder's last norm, and the newest
            frame's attention over the text, (n, text_width), averaged over heads and alignment layers.
        """
        cache = self._cache
        live = x.shape[0]
        slots, rows = slice(0, live), slice(0, GUIDANCE_ROWS * live)
        row_index = torch.arange(GUIDANCE_ROWS * live, device=x.device)
        # Slots that only pad a CUDA graph's batch run on beyond the end.
        position = cache.lengths[:live].clamp(max=len(self._positions) - 1).repeat_interleave(GUIDANCE_ROWS)
        keys = min(-(-(longest + 1) // KEY_BLOCK) * KEY_BLOCK, cache.keys.shape[3])
        mask = (self._positions[:keys] <= position[:, None])[:, None, None]
        factor = _prior_factor(prior, prior_active)

        x = x.to(cache.keys.dtype).repeat_interleave(GUIDANCE_ROWS, dim=0)
        x = (x + self._decoder.position_embeddings(position))[:, None]
        alignment = torch.zeros(live, text_width, device=x.device, dtype=torch.float32)
        for index, layer in enumerate(self._decoder.layers):
            query, key, value = project_qkv(layer, x)
            cache.keys[index, row_index, :, position] = key[:, :, 0]
            cache.values[index, row_index, :, position] = value[:, :, 0]
            past = cache.keys[index, rows, :, :keys], cache.values[index, rows, :, :keys]
            x = x + attend(layer, query, *past, attn_mask=mask)
            read, weights = self._read_text(
                index, slots, text_width, x[::GUIDANCE_ROWS], factor if index in self._prior_layers else None
            )
            x[::GUIDANCE_ROWS] += read
            if index in self._alignment_layers:
                alignment += weights[:, :, 0].mean(dim=1)
            x = x + feed_forward(layer, x)
        return x.view(live, GUIDANCE_ROWS, -1), alignment / len(self._alignment_layers)

    def _read_text(
        self, index: int, slots: slice, width: int, x: Tensor, factor: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cross-attention of conditioned rows (`CrossAttention.attn_naive`).

        Args:
            index: Layer.
            slots: Slots that `x` belongs to.
            width: Text positions to look at.
            x: (slots, steps, width of the model).
            factor: Multiplies the probabilities before they are normalised again, (slots, 1, 1, text), or None.

        Returns:
            What was read, (slots, steps, width of the model), and the probabilities, (slots, heads, steps, text).
        """
        cache, layer = self._cache, self._decoder.layers[index]
        cross = layer.cross_attention
        count, steps, _ = x.shape
        query = cross.q_net(layer.norm_xattn_query(x)).view(count, steps, cross.n_heads, cross.d_head).transpose(1, 2)
        scores = query @ cache.text_keys[index, slots, :, :width].transpose(2, 3) * cross.scale
        mask = cache.text_mask[slots, None, None, :width]
        weights = scores.float().masked_fill(~mask, float("-inf")).softmax(dim=-1)
        if factor is not None:
            weights = weights * factor
            weights = weights / weights.sum(dim=-1, keepdim=True)
        read = weights.to(query.dtype) @ cache.text_values[index, slots, :, :width]
        return cross.o_net(read.transpose(1, 2).flatten(2)), weights


def _prior_factor(prior: Tensor, active: Tensor) -> Tensor:
    """What attention probabilities are multiplied with, (n, 1, 1, text): the prior where it is active."""
    return torch.where(active[:, None], prior + torch.finfo(prior.dtype).tiny, 1.0)[:, None, None]
