"""Settings of the engine: defaults, `config.pbtxt` parameters, environment variables, in rising order of precedence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from magpie_engine.errors import SettingsError
from magpie_engine.normalization import ENGINES

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float16")
PREFIX = "MAGPIE_"
#: Smallest value of each number.
LEAST = {
    "max_streams": 1,
    "max_queue": 0,
    "first_chunk_frames": 1,
    "max_chunk_frames": 1,
    "playout_margin_ms": 0,
    "utterance_idle_seconds": 1,
}


@dataclass(frozen=True)
class EngineSettings:
    """What an operator may choose. Each field `x` is the parameter and environment variable `MAGPIE_X`.

    Attributes:
        checkpoint: Magpie `.nemo` file or hub name.
        codec: Codec `.nemo` file or hub name; empty for the one that the checkpoint names.
        byt5: Folder of the ByT5 tokenizer, for checkpoints that take one from the hub (French, Hindi); empty makes it:
            it has no data of its own.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        voices: Comma-separated names of the baked speakers in index order; empty for the public checkpoint's.
        max_streams: Utterances decoded at the same time (slots).
        max_queue: Requests that may wait for a slot; one more is refused.
        first_chunk_frames: Codec frames (46.4 ms each) in the first audio chunk of an utterance.
        max_chunk_frames: Size up to which chunks grow, doubling.
        playout_margin_ms: Audio that a client's playout buffer is kept from falling below, as far as the model of it
            tells: chunks grow only while it is safe.
        utterance_idle_seconds: After which an utterance in pieces that gets no further piece is forgotten.
        normalizer: "light", "nemo" or "auto"; see `normalization.make_normalizer`.
        normalizer_cache: Folder of NeMo's compiled grammars.
        precision: "float32", "bfloat16" or "float16", of the acoustic model; the codec stays float32. Only float32
            speaks upstream's codes; the others round, so that speech takes other turns, and how that sounds must be
            heard with the checkpoint that is served.
        cuda_graphs: 1 captures the decoding step in CUDA graphs, 0 does not.
        tf32: 1 lets the convolutions of codec and text encoder round to TF32 on CUDA, 0 does not. The codec then takes
            half the time, and streamed audio is 3e-4 from whole decoding instead of within 1e-4.
        fixed_batch: 1 steps all slots always, at the longest text, and prefills one text at a time. Every product then
            has the same shape whoever else speaks; 0 lets a GPU's library pick another kernel for another batch, whose
            sums are rounded in another order: now and then a draw on the border of two codes falls to the other.
    """

    checkpoint: str = "nvidia/magpie_tts_multilingual_357m"
    codec: str = ""
    byt5: str = ""
    device: str = "auto"
    voices: str = ""
    max_streams: int = 8
    max_queue: int = 32
    first_chunk_frames: int = 2
    max_chunk_frames: int = 16
    playout_margin_ms: int = 50
    utterance_idle_seconds: int = 60
    normalizer: str = "auto"
    normalizer_cache: str = "~/.cache/triton-voice/text-normalization"
    precision: str = "float32"
    cuda_graphs: int = 1
    tf32: int = 0
    fixed_batch: int = 0

    def __post_init__(self) -> None:
        choices = {
            "device": DEVICES,
            "normalizer": ENGINES,
            "precision": PRECISIONS,
            "cuda_graphs": (0, 1),
            "tf32": (0, 1),
            "fixed_batch": (0, 1),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                said = ", ".join(map(str, allowed))
                raise SettingsError(f"{PREFIX}{name.upper()} is {getattr(self, name)!r}; choose one of {said}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{PREFIX}{name.upper()} is {getattr(self, name)}; it must be at least {least}")

    @classmethod
    def from_sources(cls, *sources: Mapping[str, str]) -> EngineSettings:
        """Reads the settings from mappings of `MAGPIE_X` to text; later mappings win, other keys are ignored.

        Args:
            sources: For example the parameters of `config.pbtxt`, then `os.environ`.

        Raises:
            SettingsError: A value is not a number where one is needed, or is out of range.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            key = PREFIX + field.name.upper()
            parse: Callable[[str], Any] = int if field.type == "int" else str
            for source in sources:
                if key in source:
                    try:
                        values[field.name] = parse(source[key].strip())
                    except ValueError:
                        raise SettingsError(f"{key} is {source[key]!r}; it must be a whole number") from None
        return replace(cls(), **values)
