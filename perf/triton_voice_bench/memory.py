"""`triton-voice bench memory`: what each model's weights take, and each stream on top of them."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triton_voice.errors import InvalidInput
from triton_voice.paths import project_root
from triton_voice.server.settings import Weights
from triton_voice_bench.asr_engine import _without_banners as without_banners
from triton_voice_bench.report import Report, Row

FEW_SLOTS, MANY_SLOTS = 1, 5
CONTEXT_TOKENS = 4096
"""Length of a conversation for which the language model's memory is told."""
BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
STATE_BYTES = 4
"""Of a number of a Mamba layer's state, which vLLM keeps in float32 by default."""
READING = {
    "weight_bytes": "parameters and buffers as they are loaded; nemotron: the files of the checkpoint",
    "state_bytes": "memory that one more stream takes: parakeet and magpie: their slots' tensors, measured; nemotron: "
    f"token_bytes x {CONTEXT_TOKENS} tokens + sequence_bytes, computed from config.json",
    "token_bytes": "nemotron: keys and values of one token in all attention layers",
    "sequence_bytes": "nemotron: states of all Mamba layers, whatever the length",
}
COLUMNS = (
    ("model", "model"),
    ("weights\nbytes", "weight_bytes"),
    ("one stream\nbytes", "state_bytes"),
    ("a token\nbytes", "token_bytes"),
    ("a sequence\nbytes", "sequence_bytes"),
    ("how", "method"),
    ("skipped", "skipped"),
)


@dataclass(frozen=True)
class MemoryBench:
    """What is measured.

    Attributes:
        weights: The checkpoints; of the language model a local folder, or it is skipped.
        precision: Of parakeet and magpie.
        device: `auto`, `cpu` or `cuda`.
    """

    weights: Weights
    precision: str = "float32"
    device: str = "auto"


def run(bench: MemoryBench, on_progress: Callable[[str], None] = lambda what: None) -> Report:
    """Loads the engines without a server and counts.

    Args:
        bench: What is measured.
        on_progress: Told what is done next.

    Raises:
        InvalidInput: There is no such device.
        CheckpointError: A checkpoint cannot be used.
    """
    if bench.device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch sees no CUDA device here")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if bench.device == "auto" else bench.device)
    settings = {"precision": bench.precision, "device": device.type, "reading": READING}
    report = Report("memory", bench.weights.label, settings)
    for model in ("parakeet", "magpie"):
        engine = str(project_root() / "model_repository" / model / "1")
        if engine not in sys.path:
            sys.path.insert(0, engine)
    on_progress("parakeet")
    report.rows.append(_parakeet(bench, device))
    on_progress("magpie")
    report.rows.append(_magpie(bench, device))
    report.rows.append(llm(bench.weights.llm))
    return report


def llm(checkpoint: str | None) -> Row:
    """Computes the language model's memory from its folder.

    Args:
        checkpoint: A folder in Hugging Face's layout; of anything else nothing is known here.
    """
    folder = Path(checkpoint or "")
    row: Row = {"model": "nemotron", "method": "computed from config.json"}
    if checkpoint is None or not (folder / "config.json").is_file():
        return {**row, "state_bytes": None, "skipped": f"{checkpoint or 'no checkpoint'} is not a local folder"}
    config = json.loads((folder / "config.json").read_text())
    try:
        token, sequence = cache_bytes(config)
    except KeyError as missing:
        return {**row, "state_bytes": None, "skipped": f"{folder}/config.json has no {missing}"}
    return {
        **row,
        "weight_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "token_bytes": token,
        "sequence_bytes": sequence,
        "context_tokens": CONTEXT_TOKENS,
        "state_bytes": token * CONTEXT_TOKENS + sequence,
    }


def cache_bytes(config: dict[str, Any]) -> tuple[int, int]:
    """Computes what vLLM keeps for a sequence: bytes for each token, and bytes whatever its length.

    Args:
        config: Of a model with attention in every layer (Llama, Qwen), or of a Nemotron-H hybrid, whose
            `hybrid_override_pattern` has an `*` for each attention layer and an `M` for each Mamba layer.

    Raises:
        KeyError: A field is missing.
    """
    pattern = config.get("hybrid_override_pattern")
    attention = pattern.count("*") if pattern else config["num_hidden_layers"]
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = BYTES_OF.get(config.get("dtype") or config.get("torch_dtype") or "bfloat16", 2)
    token = 2 * attention * heads * width * numbers
    if not pattern:
        return token, 0
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    state = inner * config["ssm_state_size"] * STATE_BYTES
    convolved = (inner + 2 * config["n_groups"] * config["ssm_state_size"]) * (config["conv_kernel"] - 1) * numbers
    return token, pattern.count("M") * (state + convolved)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Returns the bytes of the storages behind some tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _parakeet(bench: MemoryBench, device: torch.device) -> Row:
    from parakeet_engine.checkpoint import Checkpoint
    from parakeet_engine.conformer import ring_sizes
    from parakeet_engine.features import LogMel
    from parakeet_engine.slots import Slots

    with without_banners():
        checkpoint = Checkpoint.load(str(bench.weights.parakeet), device)
    model, dtype = checkpoint.model, getattr(torch, bench.precision)
    rings = ring_sizes(checkpoint.lookaheads.values(), model.encoder.conv_context_size[0] + 1)
    mels = LogMel(model.preprocessor.featurizer).mels
    slots = Slots(model, 0, rings, mels, dtype, torch.device("meta"))
    weights = (*model.parameters(), *model.buffers())
    return {
        "model": "parakeet",
        "weight_bytes": tensor_bytes(weights) * BYTES_OF[bench.precision] // BYTES_OF["float32"],
        "state_bytes": slots.bytes_per_stream,
        "method": "the engine's slots",
    }


def _magpie(bench: MemoryBench, device: torch.device) -> Row:
    from magpie_engine.checkpoint import restore
    from magpie_engine.engine import SpeechEngine
    from magpie_engine.settings import EngineSettings

    assert bench.weights.magpie is not None
    about: dict[str, Any] = {"codec": bench.weights.codec or "", "device": device.type, "normalizer": "light"}
    about |= {"checkpoint": bench.weights.magpie, "precision": bench.precision, "cuda_graphs": False}
    with without_banners(), contextlib.redirect_stdout(io.StringIO()):
        model = restore(EngineSettings(max_streams=FEW_SLOTS, **about))

    def slots_bytes(streams: int) -> int:
        before = _live_bytes()
        engine = SpeechEngine(model, EngineSettings(max_streams=streams, **about))
        taken = _live_bytes() - before
        engine.close()
        return taken

    few, many = slots_bytes(FEW_SLOTS), slots_bytes(MANY_SLOTS)
    return {
        "model": "magpie",
        "weight_bytes": tensor_bytes((*model.parameters(), *model.buffers())),
        "state_bytes": (many - few) // (MANY_SLOTS - FEW_SLOTS),
        "method": f"the engine with {MANY_SLOTS} slots less the engine with {FEW_SLOTS}",
    }


def _live_bytes() -> int:
    """Bytes of all tensors that are alive in this process."""
    gc.collect()
    # By type, because asking a weak proxy for its class fails once what it stood for is gone.
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return tensor_bytes(tensor for tensor in tensors if tensor.device.type != "meta")
