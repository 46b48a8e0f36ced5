"""Every CUDA kernel compiles for GPUs that are not here, as it is launched at full size, and fits on them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton language is not installed: `make kernels` runs this")
if triton.knobs.runtime.interpret:
    pytest.skip("with TRITON_INTERPRET=1 nothing is compiled", allow_module_level=True)

from support_parakeet_kernels import encoder_of  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.jit import KernelInterface  # noqa: E402

import magpie_engine.fused as magpie  # noqa: E402
import magpie_engine.kernels as magpie_kernels  # noqa: E402
import parakeet_engine.fused as parakeet  # noqa: E402
from magpie_engine.alignment import AlignmentTracker  # noqa: E402
from parakeet_engine import fused_products  # noqa: E402
from parakeet_engine.checkpoint import Checkpoint, Lookahead  # noqa: E402
from parakeet_engine.conformer import ring_sizes  # noqa: E402
from parakeet_engine.decoder import DecoderState  # noqa: E402
from parakeet_engine.fused_decoder import FusedGreedyDecoder  # noqa: E402
from parakeet_engine.slots import Rings  # noqa: E402

#: Bytes of shared memory that a block may have (CUDA C++ Programming Guide, technical specifications by capability).
SHARED_MEMORY = {90: 227 * 1024, 121: 99 * 1024}
CPU = torch.device("cpu")


class Absent:
    """A GPU that is not here, as far as a compiler asks."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[(90, torch.float32), (121, torch.bfloat16)], ids=["H100, float32", "DGX Spark, bfloat16"])
def gpu(request, monkeypatch) -> SimpleNamespace:
    """Compiles what is launched; nothing runs."""
    capability, dtype = request.param
    made: dict[str, list[Any]] = {}

    def compile_only(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            kernel.device_caches.clear()  # what another device's test made of the same kernel
            made.setdefault(kernel.fn.__name__, []).append(kernel.warmup(*args, grid=grid, **options))

        return launch

    monkeypatch.setattr(KernelInterface, "__getitem__", compile_only)
    monkeypatch.setattr(magpie, "_starts_early", lambda device: True)
    monkeypatch.setattr(parakeet, "starts_early", lambda device: True)
    monkeypatch.setattr(fused_products, "starts_early", lambda device: True)
    monkeypatch.setattr(driver, "_active", Absent(capability))
    return SimpleNamespace(dtype=dtype, shared=SHARED_MEMORY[capability], made=made)


def check(gpu: SimpleNamespace, names: set[str]) -> None:
    assert set(gpu.made) == names
    for name, kernels in gpu.made.items():
        for kernel in kernels:
            assert kernel.metadata.shared <= gpu.shared, name
            assert len(kernel.asm["cubin"]) > 1000, name
            early = bool(kernel.metadata.launch_pdl)
            assert ("griddepcontrol.wait" in kernel.asm["ptx"]) is early, name


@torch.inference_mode()
def test_the_recognisers_kernels(gpu, tiny):
    modes = [Lookahead(80 * (right + 1), 70, right) for right in (13, 6, 1, 0)]
    encoder = encoder_of("full", 1).to(gpu.dtype)
    layers = parakeet.FusedConformerLayers(encoder, modes)
    rings = Rings.zeros(1, 8, ring_sizes(modes, layers.kernel), encoder.d_model, gpu.dtype, CPU)
    for mode, batch in ((modes[2], 1), (modes[2], 2), (modes[2], 8), (modes[0], 1)):
        slot = torch.arange(batch)
        places = layers.places(mode, slot, torch.zeros_like(slot), torch.ones_like(slot))
        layers(mode, torch.zeros(batch, mode.frames, encoder.d_model, dtype=gpu.dtype), places, rings)
    model = Checkpoint.load(str(tiny.parakeet), CPU).model
    parakeet.FusedLogMel(model.preprocessor.featurizer)._bands(torch.zeros(1, 3, 257, dtype=torch.complex64))
    for part in (model.decoder, model.joint):
        part.to(gpu.dtype)
    decoder = FusedGreedyDecoder(model)
    start = decoder.start
    state = DecoderState(start.hidden.to(gpu.dtype), start.cell.to(gpu.dtype), start.prediction.to(gpu.dtype))
    encoded = torch.zeros(1, 2, start.prediction.shape[1], dtype=gpu.dtype)
    decoder.iterate(encoded, torch.ones(1, dtype=torch.int64), state, *decoder.begin(1, 2, CPU), predict_always=True)
    names = "add_and_normalise attend convolve convolve_few_rows few_rows mel_bands combine choose remember"
    check(gpu, set(names.split()))


@torch.inference_mode()
def test_the_speech_engines_kernels(gpu):
    def zeros(*shape: int, dtype: torch.dtype = gpu.dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    norm = torch.nn.LayerNorm(768, bias=False).to(gpu.dtype)
    for rows in (1, 2, 4):
        magpie.product(zeros(rows, 768), zeros(3072, 768), norm=norm, gelu=True)
        magpie.product(zeros(rows, 3072), zeros(768, 3072), added=zeros(rows, 768))
    for rows in (2, 64):
        memory = zeros(rows, 12, 864, 64)
        attention = SimpleNamespace(n_heads=12, d_head=64, scale=0.125)
        magpie._attend(zeros(rows, 2304), memory, memory, torch.zeros(rows // 2, dtype=torch.int64), attention)
    for rows in (2, 4):
        lengths, memory = torch.zeros(rows // 2, dtype=torch.int64), zeros(rows, 12, 864, 64)
        magpie._attend_by_parts(zeros(rows, 2304), memory, memory, lengths, attention)
        for heads in (1, 4):
            source = magpie.Attention(heads, positions=8, number=3, scale=0.1)
            magpie.product(zeros(8, rows, 768), zeros(256, 256), added=zeros(rows, 256), source=source)
    attention = SimpleNamespace(n_heads=1, d_head=256, scale=0.0625)
    magpie._attend(zeros(2, 768), *[zeros(2, 1, 8, 256)] * 2, torch.arange(8), attention, positions=8)
    floats, nobody = zeros(2, 2048, dtype=torch.float32), zeros(2, dtype=torch.bool)
    for text in (384, 2048):
        magpie_kernels.read_text[(2,)](
            zeros(2, 128), *[zeros(2, 1, 2048, 128)] * 2, floats > 0, floats, nobody, floats[:, :text].clone(),
            zeros(2, 128), 0.1, 0.25, 1e-38, 128, text, 2048, 2048,
            HEADS=1, PRIOR=True, ALIGN=2, SHORT=magpie.SHORT_TEXT_TOKENS, TEXT=triton.next_power_of_2(text),
            PART=magpie.TEXT_PART, WIDTH=128, EARLY=True, num_warps=8, launch_pdl=True,
        )  # fmt: skip
    codes = zeros(2, 8, dtype=torch.int64)
    magpie_kernels.draw[(2,)](
        zeros(4, 2024), zeros(2024, dtype=torch.bool), nobody, nobody, floats[:, 0].clone(), floats[:, 0].clone(),
        codes[:, 0].clone(), floats[:, 1:9], zeros(2024, 256), zeros(2024, 768), codes[:, 1:], zeros(4, 256),
        zeros(4, 768), 2017, 2024, 2048, 8, 256,
        FOLLOWS=True, TOKENS=2048, WIDTH=256, QKV=1024, EARLY=True, num_warps=8, launch_pdl=True,
    )  # fmt: skip
    for vote in (0, 1, 2):
        magpie_kernels.conclude[(2,)](
            codes, zeros(2, 1, 8, dtype=torch.bool), nobody, nobody, codes[:, 0], nobody, codes[..., None], codes[:, 0],
            codes[:, 0], codes[:, :3], 2017, 8,
            BOOKS=8, BOOKS_PADDED=8, STACKING=1, VOTE=vote, SAMPLED=True, num_warps=1,
        )  # fmt: skip
    books = torch.nn.ModuleList(torch.nn.Embedding(2024, 768, dtype=gpu.dtype) for _ in range(8))
    positions = torch.nn.Embedding(2048, 768, dtype=gpu.dtype)
    model = SimpleNamespace(audio_embeddings=books, decoder=SimpleNamespace(position_embeddings=positions))
    cache = SimpleNamespace(lengths=codes[:, 0].clone(), keys=torch.empty(1, 1, 1, 864, 1))
    magpie.FusedEmbedding(model, cache)(codes[..., None])
    parameters, chunked = _alignment_settings()
    tracker = magpie.FusedAlignment(2, 2048, parameters, chunked, CPU)
    assert isinstance(tracker, AlignmentTracker)
    tracker.update(floats[:, :384].clone(), codes[:, 0].clone())
    names = "few_rows attend attend_part merge_parts read_text draw embed follow conclude"
    check(gpu, set(names.split()))


def _alignment_settings() -> tuple[Any, Any]:
    from nemo.collections.tts.models.magpietts import ChunkedInferenceConfig, ModelInferenceParameters

    return ModelInferenceParameters(), ChunkedInferenceConfig()
