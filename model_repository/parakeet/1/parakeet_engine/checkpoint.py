"""Restores a NeMo checkpoint and finds out what it offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parakeet_engine.errors import CheckpointError

SUBSAMPLING = 8
"""Mel frames per encoder frame. The exact window arithmetic below is that of three strided convolutions."""
FRAME_MS = 80
"""Milliseconds per encoder frame: 8 mel frames of 10 ms."""


@dataclass(frozen=True, order=True)
class Lookahead:
    """One latency mode: how far the encoder looks ahead.

    Attributes:
        latency_ms: 80 ms x (right context + 1), the size of a chunk.
        left: Encoder frames of left context.
        right: Encoder frames of right context; a chunk is right + 1 frames.
    """

    latency_ms: int
    left: int
    right: int

    @property
    def frames(self) -> int:
        """Encoder frames per chunk."""
        return self.right + 1


@dataclass(frozen=True)
class Checkpoint:
    """A restored model, ready for inference.

    Attributes:
        model: NeMo's `EncDecRNNTBPEModel` or a subclass, in eval mode, without dither.
        lookaheads: Modes by `latency_ms`.
        languages: Language names that a stream may ask for.
        default_language: The one of a stream that asks for none.
        prompts: Index of each language's prompt for prompt-conditioned models (Nemotron 3.5), else empty.
        source: Path or hub name it came from.
    """

    model: Any
    lookaheads: dict[int, Lookahead]
    languages: tuple[str, ...]
    default_language: str
    prompts: dict[str, int]
    source: str

    def default_lookahead(self, latency_ms: int) -> Lookahead:
        """Returns the mode of that latency, or the nearest offered."""
        return min(self.lookaheads.values(), key=lambda mode: (abs(mode.latency_ms - latency_ms), mode.latency_ms))

    @classmethod
    def load(cls, source: str, device: torch.device, language: str = "en") -> Checkpoint:
        """Restores a checkpoint.

        Args:
            source: Path of a `.nemo` file, or a hub name such as `nvidia/nemotron-speech-streaming-en-0.6b`.
            device: Where the weights go.
            language: The default language, and the only one of a checkpoint that is not prompt-conditioned.

        Raises:
            CheckpointError: It is not there, not a NeMo model, or one that cannot be streamed exactly.
        """
        model = _restore(source, device).eval()
        _check(model, source)
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        left = {int(context[0]) for context in model.encoder.att_context_size_all}
        if len(left) != 1:
            raise CheckpointError(f"{source}: the lookaheads have different left contexts {sorted(left)}")
        lookaheads = {
            FRAME_MS * (int(right) + 1): Lookahead(FRAME_MS * (int(right) + 1), int(context_left), int(right))
            for context_left, right in model.encoder.att_context_size_all
        }
        prompts: dict[str, int] = {}
        if getattr(model, "concat", False):
            prompts = {str(k): int(v) for k, v in model.cfg.model_defaults.prompt_dictionary.items()}
        languages = tuple(prompts) or (language,)
        default = next((name for name in (language, "auto") if name in languages), languages[0])
        return cls(model, dict(sorted(lookaheads.items())), languages, default, prompts, source)


def _restore(source: str, device: torch.device) -> Any:
    from nemo.collections.asr.models import ASRModel
    from nemo.utils import logging as nemo_logging

    nemo_logging.set_verbosity(nemo_logging.ERROR)
    path = Path(source).expanduser()
    is_file = source.endswith(".nemo") or path.is_absolute() or source.startswith((".", "~"))
    if is_file and not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        if is_file:
            return ASRModel.restore_from(str(path), map_location=device)
        return ASRModel.from_pretrained(source, map_location=device)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{source} could not be restored as a NeMo ASR model: {reason}") from error


def _check(model: Any, source: str) -> None:
    """Refuses what this engine would stream wrongly, naming the reason."""

    def refuse(reason: str) -> None:
        raise CheckpointError(f"{source} ({type(model).__name__}) cannot be streamed: {reason}")

    for part in ("encoder", "decoder", "joint", "preprocessor"):
        if not hasattr(model, part):
            refuse(f"it has no {part}")
    encoder, featurizer = model.encoder, model.preprocessor.featurizer
    if getattr(encoder, "att_context_style", None) != "chunked_limited":
        refuse("its attention is not chunked_limited")
    if encoder.self_attention_model != "rel_pos":
        refuse(f"its attention is {encoder.self_attention_model}, not rel_pos")
    if any(layer.is_adapter_available() for layer in encoder.layers):
        refuse("its encoder has adapters")
    if not encoder.layers[0].conv.norm_type.endswith(("layer_norm", "batch_norm")):
        refuse(f"its convolutions are normalised over time ({encoder.layers[0].conv.norm_type})")
    subsampling = encoder.pre_encode
    if not getattr(subsampling, "is_causal", False) or not getattr(subsampling, "conv2d_subsampling", False):
        refuse("its subsampling is not made of causal 2-D convolutions")
    if encoder.subsampling_factor != SUBSAMPLING:
        refuse(f"its subsampling factor is {encoder.subsampling_factor}, not {SUBSAMPLING}")
    if encoder.reduction_position is not None:
        refuse("its encoder reduces the frame rate between layers")
    if any(int(left) < 0 or int(right) < 0 for left, right in encoder.att_context_size_all):
        refuse("its attention context is unlimited")
    if encoder.conv_context_size[1] != 0:
        refuse("its convolutions are not causal")
    if featurizer.normalize not in (None, False, "NA", "none"):
        refuse(f"its features are normalised over the whole file ({featurizer.normalize})")
    if featurizer.exact_pad or featurizer.frame_splicing != 1:
        refuse("its features use exact padding or frame splicing")
    if not getattr(model.decoder, "blank_as_pad", False):
        refuse("its predictor does not take blank as padding")
