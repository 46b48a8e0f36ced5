"""The recogniser's CUDA kernels without a GPU: interpreted, and compared with PyTorch, at tiny and at full shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support_kernels import a_few, backwards, close, every, vast, watched
from support_parakeet_kernels import encoder_of

from parakeet_engine import fused, fused_products, kernels
from parakeet_engine.checkpoint import Lookahead
from parakeet_engine.conformer import ConformerLayers, ring_sizes
from parakeet_engine.slots import Rings

CPU = torch.device("cpu")
MODES = [Lookahead(80 * (right + 1), 70, right) for right in (13, 6, 1, 0)]
PRECISIONS = [torch.float32, torch.bfloat16]
SLOTS = 40


@pytest.fixture(scope="module")
def tiny_encoder() -> Any:
    return encoder_of("tiny", 2)


@pytest.fixture(scope="module")
def full_encoder() -> Any:
    return encoder_of("full", 1)


def rings_of(encoder: Any, dtype: torch.dtype, kernel: int) -> tuple[Rings, Rings]:
    """Rings of noise, twice: what a kernel reads at a wrong place changes its result."""
    generator = torch.Generator().manual_seed(1)
    ours = Rings.zeros(len(encoder.layers), SLOTS, ring_sizes(MODES, kernel), encoder.d_model, dtype, CPU)
    for tensor in vars(ours).values():
        tensor.normal_(generator=generator)
    return ours, Rings(*(tensor.clone() for tensor in vars(ours).values()))


def batch_of(mode: Lookahead, batch: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """A first chunk, ragged ends, and streams of hours: input, slots, first outputs, outputs."""
    generator = torch.Generator().manual_seed(batch)
    first = mode.frames * torch.randint(0, 200, (batch,), generator=generator)
    first[0] = 0
    first[-1] = mode.frames * 200_000
    outputs = torch.randint(1, mode.frames + 1, (batch,), generator=generator)
    x = torch.randn(batch, mode.frames, width, generator=generator).to(dtype)
    return x, torch.randperm(SLOTS, generator=generator)[:batch], first, outputs


@pytest.mark.parametrize(
    ("latency", "batch", "dtype"),
    [
        (160, 1, torch.float32),
        (160, 2, torch.bfloat16),
        (160, 8, torch.float32),
        (80, 32, torch.bfloat16),
        (560, 1, torch.float32),
        (1120, 1, torch.float32),
    ],
    ids=str,
)
def test_the_layers_are_pytorchs(tiny_encoder, dtype, latency, batch):
    """Whole layers, few rows and many, programs in any order, none of which touches what another stores."""
    encoder, mode = tiny_encoder.to(dtype), next(own for own in MODES if own.latency_ms == latency)
    with torch.inference_mode():
        plain, own = ConformerLayers(encoder, MODES), fused.FusedConformerLayers(encoder, MODES)
        ours, theirs = rings_of(encoder, dtype, plain.kernel)
        x, slot, first, outputs = batch_of(mode, batch, encoder.d_model, dtype)
        places = plain.places(mode, slot, first, outputs)
        with watched(backwards if batch % 2 else every) as watch:
            got = own(mode, x, places, ours)
        wanted = plain(mode, x, places, theirs)
    for launch in watch.launches:
        launch.check_programs_are_apart()
    few = batch * mode.frames <= fused_products.FEW_ROWS
    assert ("few_rows" in {launch.name for launch in watch.launches}) is few
    close(got, wanted, torch.arange(mode.frames) < outputs[:, None])
    for tensor, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        close(tensor, other)


def test_what_is_read_ahead_is_there(tiny_encoder, monkeypatch):
    """Kernels that start early read before they wait only what no kernel before them may still be writing."""
    monkeypatch.setattr(fused, "starts_early", lambda device: True)
    monkeypatch.setattr(fused_products, "starts_early", lambda device: True)
    encoder, mode, dtype = tiny_encoder.to(torch.float32), MODES[2], torch.float32
    with torch.inference_mode():
        plain, own = ConformerLayers(encoder, MODES), fused.FusedConformerLayers(encoder, MODES)
        ours, theirs = rings_of(encoder, dtype, plain.kernel)
        x, slot, first, outputs = batch_of(mode, 2, encoder.d_model, dtype)
        places = plain.places(mode, slot, first, outputs)
        with watched(early=[kernels]) as watch:
            got = own(mode, x, places, ours)
        wanted = plain(mode, x, places, theirs)
    assert all(launch.early for launch in watch.launches)
    close(got, wanted, torch.arange(mode.frames) < outputs[:, None])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(
    ("outputs", "inputs", "options"),
    [
        (4096, 1024, {"norm": True, "silu": True, "before": True}),  # feed-forward blocks
        (1024, 4096, {"added": True, "factor": 0.5}),
        (3072, 1024, {"norm": True}),  # queries, keys, values
        (1025, 640, {"bias": True}),  # symbols
        (2560, 640, {"bias": True, "added": True}),  # the predictor's gates
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value),
)
def test_products_of_few_rows_at_full_size(dtype, rows, outputs, inputs, options):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def norm() -> torch.nn.LayerNorm:
        made = torch.nn.LayerNorm(inputs).to(dtype)
        made.weight.data, made.bias.data = noise(inputs), noise(inputs)
        return made

    x, weight = noise(rows, inputs), noise(outputs, inputs) * inputs**-0.5
    bias = noise(outputs) if options.get("bias") else None
    added = noise(rows, outputs) if options.get("added") else None
    own, before = norm() if options.get("norm") else None, norm() if options.get("before") else None
    renewed, factor = torch.full_like(x, float("nan")), options.get("factor", 1.0)
    with torch.inference_mode(), watched(a_few) as watch:
        got = fused_products.few_rows(
            x, weight, bias, norm=own, silu=bool(options.get("silu")), added=added, factor=factor, before=before,
            renewed=renewed,
        )  # fmt: skip
        kept = x if before is None else before(x)
        wanted = F.linear(kept if own is None else own(kept), weight, bias)
        wanted = F.silu(wanted) if options.get("silu") else wanted
        wanted = wanted if added is None else added + factor * wanted
    close(got, wanted, watch.last.written(got))
    if before is not None:
        close(renewed, kept)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("latency", "batch"), [(160, 1), (160, 2), (160, 32), (1120, 2)])
def test_attention_and_convolution_at_full_size(full_encoder, dtype, latency, batch):
    """Rings as wide as the real ones, of slots so far apart that 32 bits do not count the elements between."""
    encoder, mode = full_encoder.to(dtype), next(own for own in MODES if own.latency_ms == latency)
    width, frames = encoder.d_model, mode.frames
    with torch.inference_mode():
        plain, own = ConformerLayers(encoder, MODES), fused.FusedConformerLayers(encoder, MODES)
        layer, reference = own.layers[0], plain.layers[0]
        x, slot, first, outputs = batch_of(mode, batch, width, dtype)
        theirs = next(rings_of(encoder, dtype, plain.kernel)[0].by_layer())
        ours = _far_apart(theirs, slot)
        places = own.places(mode, slot, first, outputs)
        step = fused._Step(own, mode, places, batch, width)
        qkv = F.linear(x, layer.qkv_weight, layer.qkv_bias)
        few = batch * frames <= fused_products.FEW_ROWS
        with watched(a_few) as watch:
            mixed = step._attend(layer, qkv, ours, few=few)
        wanted = seen_by(layer.module.self_attn.linear_out, lambda: reference._attend(x, places, theirs))
        valid = (torch.arange(frames) < outputs[:, None])[..., None]
        close(mixed, wanted, watch.last.written(mixed) & valid)
        conv = layer.module.conv
        normal = layer.module.norm_conv(x)
        gates = F.linear(normal, conv.pointwise_conv1.weight[:, :, 0], conv.pointwise_conv1.bias)
        with watched(a_few) as watch:
            got = step._convolve_few_rows(layer, gates, x, ours) if few else step._convolve(layer, gates, ours)
        if few:
            wanted = x + reference._convolve(normal, places, theirs)
        else:
            activation = seen_by(conv.batch_norm, lambda: reference._convolve(normal, places, theirs), result=True)
            wanted = F.silu(activation)
        close(got, wanted, watch.last.written(got))


def seen_by(module: torch.nn.Module, work: Callable[[], Any], *, result: bool = False) -> torch.Tensor:
    """What a module gets, or gives, in the course of some work."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda own, inputs, output: seen.append(output if result else inputs[0]))
    work()
    hook.remove()
    return seen[0]


def _far_apart(rings: Rings, slots: torch.Tensor) -> Rings:
    """The same rings, with slots so far apart that the used ones lie beyond 2^31 elements."""
    distance = (1 << 31) // max(int(slots.max()), 1) + 1024
    made = []
    for tensor in vars(rings).values():
        _, ring, width = tensor.shape
        far = vast(distance * (int(slots.max()) + 1), tensor.dtype)
        far = far.as_strided((int(slots.max()) + 1, ring, width), (distance, width, 1))
        for slot in slots.tolist():
            far[slot] = tensor[slot]
        made.append(far)
    return Rings(*made)
