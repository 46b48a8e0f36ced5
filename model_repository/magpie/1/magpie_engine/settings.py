"""Settings of the engine: defaults, `config.pbtxt` parameters, environment variables, in rising order of precedence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from magpie_engine.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda")
PREFIX = "MAGPIE_"


@dataclass(frozen=True)
class EngineSettings:
    """What an operator may choose. Each field `x` is the parameter and environment variable `MAGPIE_X`.

    Attributes:
        checkpoint: Magpie `.nemo` file or hub name.
        codec: Codec `.nemo` file or hub name; empty for the one that the checkpoint names.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        voices: Comma-separated names of the baked speakers in index order; empty for the public checkpoint's.
        max_streams: Utterances decoded at the same time (slots).
        max_queue: Requests that may wait for a slot; one more is refused.
        first_chunk_frames: Codec frames (46.4 ms each) in the first audio chunk of an utterance.
        max_chunk_frames: Size up to which chunks grow, doubling.
    """

    checkpoint: str = "nvidia/magpie_tts_multilingual_357m"
    codec: str = ""
    device: str = "auto"
    voices: str = ""
    max_streams: int = 8
    max_queue: int = 32
    first_chunk_frames: int = 2
    max_chunk_frames: int = 16

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise SettingsError(f"{PREFIX}DEVICE is {self.device!r}; choose one of {', '.join(DEVICES)}")
        for name, least in (("max_streams", 1), ("max_queue", 0), ("first_chunk_frames", 1), ("max_chunk_frames", 1)):
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
