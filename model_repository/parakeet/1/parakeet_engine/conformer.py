"""The conformer layers over slots: NeMo's `ConformerEncoder` on the same weights, one chunk of many streams at a time.

What attention and convolutions look back at stays in the slots, in rings that are written in place: keys and values
rather than the layer's input, so that a chunk projects its own frames only, and the projected positions are constants.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from parakeet_engine.checkpoint import Lookahead
from parakeet_engine.slots import Rings

_log = logging.getLogger(__name__)

HALF_STEP = 0.5
"""What a feed-forward block adds counts half (Macaron-Net)."""


@dataclass(frozen=True)
class ChunkPlaces:
    """Where the rows of a batch are, which is the same for all layers; what is not asked for is not computed.

    Attributes:
        slot: int64 (batch,).
        first_output: int64 (batch,), utterance frame of each row's first output.
        outputs: int64 (batch,), valid outputs.
        frames: Of a chunk.
        ring: Places of the ring of keys and values.
        past: Frames that the convolutions look back at.
        right_reach: Frames that a query sees to its right, in the mode that sees most.
    """

    slot: torch.Tensor
    first_output: torch.Tensor
    outputs: torch.Tensor
    frames: int
    ring: int
    past: int
    right_reach: int

    @cached_property
    def key_places(self) -> torch.Tensor:
        """int64 (batch, frames), where the chunk's keys and values go in their ring."""
        return self._query % self.ring

    @cached_property
    def distance(self) -> torch.Tensor:
        """int64 (batch, frames, ring), row of the projected positions for each query and key."""
        return self._query[:, :, None] - self._key[:, None] + self.right_reach

    @cached_property
    def visible(self) -> torch.Tensor:
        """Bool (batch, 1, 1, ring), keys that queries look at."""
        end = (self.first_output + self.outputs)[:, None]
        return ((self._key >= 0) & (self._key < end))[:, None, None]

    @cached_property
    def past_places(self) -> torch.Tensor:
        """int64 (batch, past), where the convolutions' past is in its ring."""
        return self._back % self._time_ring

    @cached_property
    def past_exists(self) -> torch.Tensor:
        """Bool (batch, past, 1), whether the utterance had begun there."""
        return (self._back >= 0)[..., None]

    @cached_property
    def time_places(self) -> torch.Tensor:
        """int64 (batch, frames), where the chunk's convolution inputs go."""
        return self._query % self._time_ring

    @property
    def _time_ring(self) -> int:
        return self.past + self.frames

    @cached_property
    def _query(self) -> torch.Tensor:
        """int64 (batch, frames), the chunk's utterance frames."""
        return self.first_output[:, None] + torch.arange(self.frames, device=self.slot.device)

    @cached_property
    def _key(self) -> torch.Tensor:
        """int64 (batch, ring), utterance frame in each place of the ring."""
        last = self.first_output[:, None] + self.frames - 1
        return last - (last - torch.arange(self.ring, device=self.slot.device)) % self.ring

    @cached_property
    def _back(self) -> torch.Tensor:
        """int64 (batch, past), utterance frames before the chunk."""
        return self.first_output[:, None] + torch.arange(-self.past, 0, device=self.slot.device)


def visible_left(lookahead: Lookahead) -> int:
    """Returns the frames of left context that every query sees: `chunked_limited` attention counts whole chunks."""
    return lookahead.left // lookahead.frames * lookahead.frames


def ring_sizes(lookaheads: Iterable[Lookahead], kernel: int) -> tuple[int, int]:
    """Returns the frames that the largest rings hold: of keys and values, and of convolution inputs."""
    lookaheads = tuple(lookaheads)
    keys = max(visible_left(mode) + mode.frames for mode in lookaheads)
    return keys, kernel - 1 + max(mode.frames for mode in lookaheads)


class ConformerLayer:
    """One layer, on NeMo's weights.

    Args:
        layer: NeMo's `ConformerLayer`.
        positions: Sinusoidal embeddings by distance, (distances, width).
    """

    def __init__(self, layer: Any, positions: torch.Tensor):
        attention = layer.self_attn
        self.module = layer
        self.heads: int = attention.h
        self.head_width: int = attention.d_k
        projections = attention.linear_q, attention.linear_k, attention.linear_v
        self.qkv_weight = _joined([p.weight for p in projections])
        self.qkv_bias = None if projections[0].bias is None else _joined([p.bias for p in projections])
        with torch.inference_mode():
            projected = attention.linear_pos(positions)
        #: (heads, head width, distances), not contiguous.
        self.positions = projected.view(-1, self.heads, self.head_width).permute(1, 2, 0)

    def __call__(self, x: torch.Tensor, places: ChunkPlaces, rings: Rings) -> torch.Tensor:
        """Runs the layer on a chunk of each row.

        Args:
            x: (batch, frames, width).
            places: Where the rows are.
            rings: This layer's, updated.
        """
        layer = self.module
        x = x + HALF_STEP * layer.feed_forward1(layer.norm_feed_forward1(x))
        x = x + self._attend(layer.norm_self_att(x), places, rings)
        x = x + self._convolve(layer.norm_conv(x), places, rings)
        x = x + HALF_STEP * layer.feed_forward2(layer.norm_feed_forward2(x))
        return layer.norm_out(x)

    def _attend(self, x: torch.Tensor, places: ChunkPlaces, rings: Rings) -> torch.Tensor:
        """Attention over the ring and the chunk."""
        keys, values = rings.keys, rings.values
        attention, (batch, frames, width) = self.module.self_attn, x.shape
        ring = places.distance.shape[2]
        query, key, value = F.linear(x, self.qkv_weight, self.qkv_bias).chunk(3, dim=2)
        keys[places.slot[:, None], places.key_places] = key
        values[places.slot[:, None], places.key_places] = value
        query, key, value = (
            part.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)
            for part in (query, keys[places.slot, :ring], values[places.slot, :ring])
        )
        content = query + attention.pos_bias_u[:, None]
        position = (query + attention.pos_bias_v[:, None]).transpose(0, 1).flatten(1, 2)  # (heads, batch x frames, ..)
        bias = torch.bmm(position, self.positions).unflatten(1, (batch, frames)).transpose(0, 1)
        bias = bias.gather(3, places.distance[:, None].expand(-1, self.heads, -1, -1))
        bias = (bias * self.head_width**-0.5).masked_fill(~places.visible, float("-inf"))
        mixed = F.scaled_dot_product_attention(content, key, value, attn_mask=bias)
        return attention.linear_out(mixed.transpose(1, 2).reshape(batch, frames, width))

    def _convolve(self, x: torch.Tensor, places: ChunkPlaces, rings: Rings) -> torch.Tensor:
        """The convolution block; its convolutions of kernel size 1 are run as matrix products."""
        conv, time = self.module.conv, rings.time
        x = F.glu(F.linear(x, conv.pointwise_conv1.weight[:, :, 0], conv.pointwise_conv1.bias), dim=2)
        past = time[places.slot[:, None], places.past_places] * places.past_exists
        time[places.slot[:, None], places.time_places] = x
        depthwise = conv.depthwise_conv
        x = torch.cat([past, x], dim=1).transpose(1, 2)
        x = F.conv1d(x, depthwise.weight, depthwise.bias, groups=depthwise.groups)
        is_layer_norm = conv.norm_type == "layer_norm"  # the others keep channels in the middle
        x = conv.batch_norm(x.transpose(1, 2)) if is_layer_norm else conv.batch_norm(x).transpose(1, 2)
        return F.linear(F.silu(x), conv.pointwise_conv2.weight[:, :, 0], conv.pointwise_conv2.bias)


class ConformerLayers:
    """All layers, in the dtype and on the device that the encoder's weights have.

    Upstream: `ConformerEncoder.forward_internal`, `ConformerLayer`, `RelPositionMultiHeadAttention` and
    `CausalConv1D`; positions as in Transformer-XL, arXiv:1901.02860.

    Args:
        encoder: NeMo's `ConformerEncoder`.
        lookaheads: The modes that chunks come in.
    """

    kind: ClassVar[type[ConformerLayer]] = ConformerLayer

    def __init__(self, encoder: Any, lookaheads: Iterable[Lookahead]):
        lookaheads = tuple(lookaheads)
        self._scale_in = encoder.pos_enc.xscale
        self._project_out = encoder.out_proj
        self.kernel: int = encoder.conv_context_size[0] + 1
        longest = max(mode.frames for mode in lookaheads)
        reach = max(visible_left(mode) for mode in lookaheads)
        table = encoder.pos_enc.pe[0]
        centre = len(table) // 2  # distance 0; keys further left come before it
        self.right_reach = longest - 1
        positions = table[centre - reach - longest + 1 : centre + longest].flip(0)  # distance -(longest - 1) and up
        self.layers: list[Any] = [self.kind(layer, positions) for layer in encoder.layers]

    def places(
        self, lookahead: Lookahead, slot: torch.Tensor, first: torch.Tensor, outputs: torch.Tensor
    ) -> ChunkPlaces:
        """Returns where the rows of a batch are.

        Args:
            lookahead: The mode of all rows.
            slot: int64 (batch,).
            first: int64 (batch,), utterance frame of each row's first output.
            outputs: int64 (batch,), valid outputs.
        """
        ring, _ = ring_sizes([lookahead], self.kernel)
        return ChunkPlaces(slot, first, outputs, lookahead.frames, ring, self.kernel - 1, self.right_reach)

    def __call__(self, lookahead: Lookahead, x: torch.Tensor, places: ChunkPlaces, rings: Rings) -> torch.Tensor:
        """Encodes a chunk of each row and keeps what later chunks look back at.

        Args:
            lookahead: The mode of all rows.
            x: (batch, frames, width), from the subsampling.
            places: Where the rows are.
            rings: What is looked back at, updated.

        Returns:
            (batch, frames, width).
        """
        if self._scale_in:
            x = x * self._scale_in
        for layer, own in zip(self.layers, rings.by_layer(), strict=True):
            x = layer(x, places, own)
        return x if self._project_out is None else self._project_out(x)


def conformer_layers(encoder: Any, lookaheads: Iterable[Lookahead], device: torch.device) -> ConformerLayers:
    """Returns the layers in the fastest form that works on the device: with fused kernels on CUDA, else without."""
    lookaheads = tuple(lookaheads)
    plain = ConformerLayers(encoder, lookaheads)
    if device.type == "cuda":
        try:
            from parakeet_engine.fused import FusedConformerLayers

            fused = FusedConformerLayers(encoder, lookaheads)
            fused.check(plain, lookaheads)
            return fused
        except Exception:  # no Triton language, no C compiler for it, or a device or encoder that it does not suit
            _log.exception("the fused kernels cannot be used; the encoder runs with PyTorch's, at a higher latency")
    return plain


def _joined(parts: list[torch.nn.Parameter]) -> torch.Tensor:
    """Returns the parts one after the other; they become views of it, so that no memory is spent twice."""
    joined = torch.cat([part.data for part in parts])
    for part, own in zip(parts, joined.chunk(len(parts)), strict=True):
        part.data = own
    return joined
