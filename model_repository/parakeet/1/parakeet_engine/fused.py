"""Conformer layers and decoder with fused kernels: what runs on CUDA devices that the Triton language compiles for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

from parakeet_engine import kernels
from parakeet_engine.checkpoint import Lookahead
from parakeet_engine.conformer import HALF_STEP, ChunkPlaces, ConformerLayer, ConformerLayers, ring_sizes
from parakeet_engine.decoder import DecoderState, GreedyDecoder, Hypotheses
from parakeet_engine.slots import Rings

FEW_ROWS = 4
"""Rows up to which a matrix product is a sum of products, one pass over the matrix; beyond, tensor cores are faster."""
TILE = 4096
"""Weights that a program of such a product holds at a time, and multiplies with every row."""
WIDEST_NORM = 2048
"""Inputs up to which the norm before a product is part of it: a program has them all at hand."""
KEY_BLOCK = 32
"""Keys that attention looks at together."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""Relative difference from PyTorch's layers, all of them one after the other, that rounding explains."""
WARPS = 4


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
        if batch * frames <= FEW_ROWS and width <= WIDEST_NORM:
            for layer, own in zip(self.layers, rings.by_layer(), strict=True):
                x = step.with_few_rows(layer, x, own)
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
                    _compare(f"the layers at {mode.latency_ms} ms", ours, theirs)


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

    def with_few_rows(self, own: FusedConformerLayer, x: torch.Tensor, rings: Rings) -> torch.Tensor:
        """Runs a layer."""
        layer, conv = own.module, own.module.conv
        x = self._feed_forward(x, layer.norm_feed_forward1, layer.feed_forward1)
        qkv = _few_rows(x, own.qkv_weight, own.qkv_bias, norm=layer.norm_self_att)
        out = layer.self_attn.linear_out
        x = _few_rows(self._attend(own, qkv, rings), out.weight, out.bias, added=x)
        gates = _few_rows(x, conv.pointwise_conv1.weight, conv.pointwise_conv1.bias, norm=layer.norm_conv)
        mixed = self._convolve(own, gates, rings)
        x = _few_rows(mixed, conv.pointwise_conv2.weight, conv.pointwise_conv2.bias, added=x)
        x = self._feed_forward(x, layer.norm_feed_forward2, layer.feed_forward2)
        norm = layer.norm_out
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    @staticmethod
    def _feed_forward(x: torch.Tensor, norm: torch.nn.LayerNorm, block: Any) -> torch.Tensor:
        hidden = _few_rows(x, block.linear1.weight, block.linear1.bias, norm=norm, silu=True)
        return _few_rows(hidden, block.linear2.weight, block.linear2.bias, added=x, factor=HALF_STEP)

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

    def _attend(self, own: FusedConformerLayer, qkv: torch.Tensor, rings: Rings) -> torch.Tensor:
        attention, places = own.module.self_attn, self._places
        out = qkv.new_empty(self._batch, self._frames, self._width)
        kernels.attend[(self._batch, own.heads, self._frames)](
            qkv, rings.keys, rings.values, own.positions, attention.pos_bias_u, attention.pos_bias_v, places.slot,
            places.first_output, places.outputs, out, own.head_width**-0.5, rings.keys.stride(0), self._width,
            own.head_width, self._right_reach,
            FRAMES=self._frames, RING=self._ring, KEYS=KEY_BLOCK,
            WIDTH=triton.next_power_of_2(own.head_width), num_warps=WARPS,
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


def _few_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    norm: torch.nn.LayerNorm | None = None,
    silu: bool = False,
    added: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """[added + factor *] [silu] ([norm](x) @ weight.T + bias) for at most `FEW_ROWS` rows, (.., inputs)."""
    outputs, inputs = weight.shape[:2]
    rows = x.numel() // inputs
    out = x.new_empty(*x.shape[:-1], outputs)
    chunk = min(triton.next_power_of_2(inputs), WIDEST_NORM if norm else 1024)
    block = max(1, min(8, TILE // chunk))
    kernels.few_rows[(triton.cdiv(outputs, block),)](
        x, weight, bias, added, out, norm and norm.weight, norm and norm.bias, norm.eps if norm else 0.0, factor,
        rows, outputs, inputs,
        NORM=norm is not None, HAS_BIAS=bias is not None, SILU=silu, ADD=added is not None,
        ROWS=triton.next_power_of_2(rows), OUTPUTS=block, INPUTS=chunk, num_warps=WARPS,
    )  # fmt: skip
    return out


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, added: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns x @ weight.T + bias [+ added] for x of (rows, inputs)."""
    if len(x) <= FEW_ROWS:
        return _few_rows(x, weight, bias, added=added)
    product = F.linear(x, weight, bias)
    return product if added is None else product.add_(added)


def _compare(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not difference < TOLERANCE[ours.dtype]:
        raise RuntimeError(f"the fused kernels of {what} differ from PyTorch's by {difference:.1e}")


class FusedGreedyDecoder(GreedyDecoder):
    """`GreedyDecoder` whose iteration is a few kernels.

    Args:
        model: The NeMo model, whose predictor is `torch.nn.LSTM` and whose joint adds and rectifies.

    Raises:
        TypeError: Predictor or joint are of another kind.
    """

    def __init__(self, model: Any):
        super().__init__(model)
        lstm = getattr(model.decoder.prediction["dec_rnn"], "lstm", None)
        activation, *_, self._out = [part for part in model.joint.joint_net if not isinstance(part, torch.nn.Dropout)]
        if type(lstm) is not torch.nn.LSTM or lstm.proj_size or not lstm.bias or lstm.bidirectional:
            raise TypeError(f"there are no fused kernels for the predictor {lstm}")
        if type(activation) is not torch.nn.ReLU or model.joint.temperature != 1.0:
            raise TypeError(f"there are no fused kernels for the joint network {model.joint.joint_net}")
        self._project = model.joint.pred
        self._layers: list[list[Any]] = [
            lstm._flat_weights[4 * layer : 4 * layer + 4] for layer in range(lstm.num_layers)
        ]
        with torch.inference_mode():
            inputs, _, bias_in, bias_hidden = self._layers[0]
            self._table = F.linear(model.decoder.prediction["embed"].weight, inputs, bias_in + bias_hidden)
            self._biases = [None, *((own[2] + own[3]) for own in self._layers[1:])]

    @torch.inference_mode()
    def check(self, plain: GreedyDecoder) -> None:
        """Compares an iteration with PyTorch's decoder on noise, for few rows and for many; compiles the kernels.

        Raises:
            RuntimeError: They differ by more than rounding.
        """
        device, width = self.start.prediction.device, self.start.prediction.shape[1]
        for batch in (1, FEW_ROWS + 1):
            generator = torch.Generator(device).manual_seed(0)
            encoded = torch.randn(batch, 2, width, generator=generator, device=device).to(self.start.prediction.dtype)
            length = torch.full((batch,), 2, device=device)
            states, first = [], []
            for decoder in (self, plain):
                start = self.start
                state = DecoderState(
                    start.hidden.repeat(1, batch, 1), start.cell.repeat(1, batch, 1), start.prediction.repeat(batch, 1)
                )
                hypotheses, frame, symbols = self.begin(batch, 2, device)
                decoder.iterate(encoded, length, state, hypotheses, frame, symbols, predict_always=True)
                states.append(state.prediction)
                first.append(hypotheses.tokens[:, 0] + hypotheses.count)
            same = first[0] == first[1]  # rounding may turn a choice between two symbols that are as likely
            if 2 * int(same.sum()) < batch:
                raise RuntimeError("the fused kernels choose other symbols than PyTorch's")
            _compare("the decoder", states[0][same], states[1][same])

    def iterate(
        self,
        encoded: torch.Tensor,
        length: torch.Tensor,
        state: DecoderState,
        hypotheses: Hypotheses,
        frame: torch.Tensor,
        symbols: torch.Tensor,
        predict_always: bool,
    ) -> None:
        """See `GreedyDecoder`; the predictor always runs."""
        batch, frames, width = encoded.shape
        joined = encoded.new_empty(batch, width)
        grid, hidden_width = (batch,), state.hidden.shape[2]
        padded = triton.next_power_of_2(hidden_width)
        kernels.combine[grid](
            encoded, state.prediction, frame, joined, frames, width, WIDTH=triton.next_power_of_2(width)
        )
        logits = _product(joined, self._out.weight, self._out.bias)
        chosen, emitted = torch.empty_like(frame), torch.empty_like(hypotheses.unfinished)
        kernels.choose[grid](
            logits, length, frame, symbols, hypotheses.count, hypotheses.unfinished, hypotheses.tokens,
            hypotheses.frames, hypotheses.probabilities, chosen, emitted, self._blank, hypotheses.tokens.shape[1],
            self.max_symbols, logits.shape[1], SIZE=triton.next_power_of_2(logits.shape[1]),
        )  # fmt: skip
        for index, (inputs, recurrent, *_) in enumerate(self._layers):
            gates = _product(state.hidden[index], recurrent)
            if index:
                gates = _product(state.hidden[index - 1], inputs, self._biases[index], added=gates)
            kernels.remember[grid](
                gates, self._table, chosen, emitted, state.hidden[index], state.cell[index], hidden_width,
                FROM_TABLE=index == 0, WIDTH=padded,
            )  # fmt: skip
        # Where nothing was emitted this is what it was: the state has not changed.
        state.prediction.copy_(_product(state.hidden[-1], self._project.weight, self._project.bias))
