"""Features and conformer layers with fused kernels: what runs on CUDA devices that the Triton language compiles for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

from parakeet_engine import kernels
from parakeet_engine.checkpoint import Lookahead
from parakeet_engine.conformer import HALF_STEP, ChunkPlaces, ConformerLayer, ConformerLayers, ring_sizes
from parakeet_engine.features import LogMel
from parakeet_engine.fused_products import FEW_ROWS, WARPS, compare, few_rows, starts_early
from parakeet_engine.slots import Rings

CONVOLVED_OUTPUTS = 8
"""Outputs of a program of the product after the convolution, which it computes as well."""
KEY_BLOCK = 32
"""Keys that attention looks at together where there are many rows; where there are few, all at once."""
MEL_BLOCK = 8
"""Mel bands of a frame that a program computes."""


class FusedConformerLayer(ConformerLayer):
    """A layer's constants in the shapes that the kernels read.

    Args:
        layer: NeMo's `ConformerLayer`, whose convolution block has a layer norm.
        positions: Sinusoidal embeddings by distance, (distances, width).
    """

    def __init__(self, layer: Any, positions: torch.Tensor):
        if layer.conv.norm_type != "layer_norm" or layer.conv.pointwise_activation != "glu_":
            raise TypeError(f"there are no fused kernels for the convolution block {layer.conv}")
        super().__init__(layer, positions)
        self.positions = self.positions.permute(2, 0, 1).contiguous()  # (distances, heads, head width)
        self.taps = layer.conv.depthwise_conv.weight[:, 0].t().contiguous()  # (taps, width)


class FusedConformerLayers(ConformerLayers):
    """`ConformerLayers` whose layers are a few kernels each, and fewer still for few rows.

    Args:
        encoder: NeMo's `ConformerEncoder`, whose convolution blocks have layer norms.
        lookaheads: The modes that chunks come in.
    """

    kind = FusedConformerLayer

    def __call__(self, lookahead: Lookahead, x: torch.Tensor, places: ChunkPlaces, rings: Rings) -> torch.Tensor:
        """See `ConformerLayers`."""
        batch, frames, width = x.shape
        x = x * self._scale_in if self._scale_in else x.clone()
        step = _Step(self, lookahead, places, batch, width)
        if batch * frames <= FEW_ROWS:
            before = None
            for layer, own in zip(self.layers, rings.by_layer(), strict=True):
                x = step.with_few_rows(layer, x, before, own)
                before = layer.module.norm_out
            x = self.layers[-1].module.norm_out(x)
        else:
            following = [*(layer.module.norm_feed_forward1 for layer in self.layers[1:]), None]
            normal = self.layers[0].module.norm_feed_forward1(x)
            for layer, own, norm in zip(self.layers, rings.by_layer(), following, strict=True):
                normal = step.with_many_rows(layer, x, normal, norm, own)
        return x if self._project_out is None else self._project_out(x)

    @torch.inference_mode()
    def check(self, plain: ConformerLayers, lookaheads: Iterable[Lookahead]) -> None:
        """Compares with PyTorch's layers on noise, in every mode, for few rows and for many; compiles the kernels.

        Raises:
            RuntimeError: They differ by more than rounding.
        """
        weight = self.layers[0].qkv_weight
        width, dtype, device = weight.shape[1], weight.dtype, weight.device
        generator = torch.Generator(device).manual_seed(0)
        for mode in lookaheads:
            for batch in (1, FEW_ROWS + 1):
                empty = Rings.zeros(len(self.layers), batch, ring_sizes([mode], self.kernel), width, dtype, device)
                states = [Rings(*(t.clone() for t in vars(empty).values())) for _ in range(2)]
                slot = torch.arange(batch, device=device)
                for chunk in range(2):
                    x = torch.randn(batch, mode.frames, width, generator=generator, device=device).to(dtype)
                    first = torch.full_like(slot, chunk * mode.frames)
                    places = self.places(mode, slot, first, torch.full_like(slot, mode.frames))
                    ours, theirs = self(mode, x, places, states[0]), plain(mode, x, places, states[1])
                    compare(f"the layers at {mode.latency_ms} ms", ours, theirs)


class FusedLogMel(LogMel):
    """`LogMel` whose bands are one kernel.

    Args:
        featurizer: The checkpoint's `FilterbankFeatures`, with bands of magnitudes or powers, and logarithms.

    Raises:
        TypeError: It is of another kind.
    """

    def __init__(self, featurizer: Any):
        super().__init__(featurizer)
        if self._power not in (1.0, 2.0) or not self._log:
            raise TypeError(f"there is no fused kernel for mel bands of the power {self._power} without logarithm")

    def _bands(self, spectrum: torch.Tensor) -> torch.Tensor:
        batch, frames, all_bins = spectrum.shape
        bands = torch.empty(batch, frames, self.mels, device=spectrum.device)
        kernels.mel_bands[(batch * frames, triton.cdiv(self.mels, MEL_BLOCK))](
            torch.view_as_real(spectrum), self._filters, bands, self._bins, all_bins, self.mels, self._guard,
            SQUARE=self._power == 2.0, ADD=self._guard_type == "add", BINS=triton.next_power_of_2(self._bins),
            MELS=MEL_BLOCK, num_warps=WARPS,
        )  # fmt: skip
        return bands

    @torch.inference_mode()
    def check(self, plain: LogMel) -> None:
        """Compares with PyTorch's on noise; compiles the kernel.

        Raises:
            RuntimeError: They differ by more than rounding.
        """
        generator = torch.Generator(self._filters.device).manual_seed(0)
        noise = torch.randn(2, 3, self.fft, generator=generator, device=self._filters.device)
        spectrum = torch.fft.rfft(noise)
        compare("the mel bands", self._bands(spectrum), plain._bands(spectrum))


class _Step:
    """One step's sizes and places, and a layer's kernels on them."""

    def __init__(self, layers: ConformerLayers, lookahead: Lookahead, places: ChunkPlaces, batch: int, width: int):
        self._places = places
        self._batch, self._frames, self._width = batch, lookahead.frames, width
        self._rows = batch * lookahead.frames
        self._taps = layers.kernel
        self._right_reach = layers.right_reach
        self._ring, self._time_ring = ring_sizes([lookahead], layers.kernel)
        self._padded = triton.next_power_of_2(width)

    def with_many_rows(
        self,
        own: FusedConformerLayer,
        x: torch.Tensor,
        normal: torch.Tensor,
        following: torch.nn.LayerNorm | None,
        rings: Rings,
    ) -> torch.Tensor:
        """Runs a layer in place on `x`; takes its first norm's output, returns that of the next layer."""
        layer, conv = own.module, own.module.conv
        normal = self._add(x, layer.feed_forward1(normal), HALF_STEP, layer.norm_self_att)
        mixed = self._attend(own, F.linear(normal, own.qkv_weight, own.qkv_bias), rings)
        normal = self._add(x, layer.self_attn.linear_out(mixed), 1.0, layer.norm_conv)
        gates = F.linear(normal, conv.pointwise_conv1.weight[:, :, 0], conv.pointwise_conv1.bias)
        mixed = F.linear(
            self._convolve(own, gates, rings), conv.pointwise_conv2.weight[:, :, 0], conv.pointwise_conv2.bias
        )
        normal = self._add(x, mixed, 1.0, layer.norm_feed_forward2)
        return self._add(x, layer.feed_forward2(normal), HALF_STEP, layer.norm_out, following or layer.norm_out)

    def with_few_rows(
        self, own: FusedConformerLayer, x: torch.Tensor, before: torch.nn.LayerNorm | None, rings: Rings
    ) -> torch.Tensor:
        """Runs a layer, but for its last norm; `before` is the last norm of the layer before it."""
        layer, conv = own.module, own.module.conv
        renewed = x if before is None else torch.empty_like(x)
        x = self._feed_forward(x, layer.norm_feed_forward1, layer.feed_forward1, before, renewed)
        qkv = few_rows(x, own.qkv_weight, own.qkv_bias, norm=layer.norm_self_att)
        out = layer.self_attn.linear_out
        x = few_rows(self._attend(own, qkv, rings, few=True), out.weight, out.bias, added=x)
        gates = few_rows(x, conv.pointwise_conv1.weight, conv.pointwise_conv1.bias, norm=layer.norm_conv)
        x = self._convolve_few_rows(own, gates, x, rings)
        return self._feed_forward(x, layer.norm_feed_forward2, layer.feed_forward2, None, x)

    @staticmethod
    def _feed_forward(
        x: torch.Tensor, norm: torch.nn.LayerNorm, block: Any, before: torch.nn.LayerNorm | None, renewed: torch.Tensor
    ) -> torch.Tensor:
        """A feed-forward block and its residual, on `before` of x, which goes into `renewed`, if that is not None."""
        first, second = block.linear1, block.linear2
        hidden = few_rows(x, first.weight, first.bias, norm=norm, silu=True, before=before, renewed=renewed)
        return few_rows(hidden, second.weight, second.bias, added=renewed, factor=HALF_STEP)

    def _add(
        self,
        x: torch.Tensor,
        added: torch.Tensor,
        factor: float,
        norm: torch.nn.LayerNorm,
        following: torch.nn.LayerNorm | None = None,
    ) -> torch.Tensor:
        normal = torch.empty_like(x)
        then = following or norm
        kernels.add_and_normalise[(self._rows,)](
            x, added, factor, norm.weight, norm.bias, norm.eps, then.weight, then.bias, then.eps, normal, self._width,
            TWICE=following is not None, WIDTH=self._padded, num_warps=WARPS,
        )  # fmt: skip
        return normal

    def _attend(self, own: FusedConformerLayer, qkv: torch.Tensor, rings: Rings, few: bool = False) -> torch.Tensor:
        attention, places = own.module.self_attn, self._places
        out = qkv.new_empty(self._batch, self._frames, self._width)
        early = few and starts_early(qkv.device)
        kernels.attend[(self._batch, own.heads, self._frames)](
            qkv, rings.keys, rings.values, own.positions, attention.pos_bias_u, attention.pos_bias_v, places.slot,
            places.first_output, places.outputs, out, own.head_width**-0.5, rings.keys.stride(0), self._width,
            own.head_width, self._right_reach,
            FRAMES=self._frames, RING=self._ring, KEYS=triton.next_power_of_2(self._ring) if few else KEY_BLOCK,
            WIDTH=triton.next_power_of_2(own.head_width), EARLY=early,
            num_warps=qkv.element_size() * WARPS if few else WARPS, launch_pdl=early,
        )  # fmt: skip
        return out

    def _convolve(self, own: FusedConformerLayer, gates: torch.Tensor, rings: Rings) -> torch.Tensor:
        conv, places = own.module.conv, self._places
        depthwise, norm = conv.depthwise_conv, conv.batch_norm
        out = gates.new_empty(self._batch, self._frames, self._width)
        kernels.convolve[(self._batch, self._frames)](
            gates, rings.time, own.taps, depthwise.bias, norm.weight, norm.bias, norm.eps, places.slot,
            places.first_output, out, rings.time.stride(0), self._width,
            HAS_BIAS=depthwise.bias is not None, FRAMES=self._frames, TAPS=self._taps, RING=self._time_ring,
            WIDTH=self._padded, num_warps=WARPS,
        )  # fmt: skip
        return out

    def _convolve_few_rows(
        self, own: FusedConformerLayer, gates: torch.Tensor, x: torch.Tensor, rings: Rings
    ) -> torch.Tensor:
        conv, places = own.module.conv, self._places
        depthwise, norm, last = conv.depthwise_conv, conv.batch_norm, conv.pointwise_conv2
        out = torch.empty_like(x)
        early = starts_early(x.device)
        kernels.convolve_few_rows[(triton.cdiv(self._width, CONVOLVED_OUTPUTS), self._batch)](
            gates, rings.time, own.taps, depthwise.bias, norm.weight, norm.bias, norm.eps, places.slot,
            places.first_output, last.weight, last.bias, x, out, rings.time.stride(0), self._width,
            HAS_BIAS=depthwise.bias is not None, HAS_MATRIX_BIAS=last.bias is not None, FRAMES=self._frames,
            TAPS=self._taps, RING=self._time_ring, OUTPUTS=CONVOLVED_OUTPUTS, WIDTH=self._padded, EARLY=early,
            num_warps=2 * WARPS, launch_pdl=early,
        )  # fmt: skip
        return out
