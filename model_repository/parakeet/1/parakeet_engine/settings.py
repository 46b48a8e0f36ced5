"""What an operator may choose, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from parakeet_engine.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")
PREFIX = "PARAKEET_"
#: Smallest value of each number that may be reached ...
LEAST = {"max_streams": 1, "max_batch": 1, "default_latency_ms": 1, "start_timeout_s": 0}
#: ... and the numbers that must be above nought.
POSITIVE = ("idle_s", "max_request_s", "max_backlog_s", "max_stream_s")

_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


@dataclass(frozen=True)
class EngineSettings:
    """Limits and choices. Each field `x` is the parameter and environment variable `PARAKEET_X`.

    Attributes:
        checkpoint: Path or hub name.
        device: `auto`, `cpu` or `cuda`.
        precision: `float32` or `bfloat16`.
        max_streams: Streams that can be live at once.
        max_batch: Chunks per step.
        cuda_graphs: Whether steps are captured as CUDA graphs (on CUDA).
        default_latency_ms: Latency of a stream that asks for none (or the nearest offered).
        language: Default language, and the only one of a checkpoint that is not prompt-conditioned.
        idle_s: A stream without requests for this long is dropped.
        max_request_s: Longest audio of one request, seconds.
        max_backlog_s: Most audio of one stream that may wait, seconds.
        max_stream_s: Most audio of one stream from START to END, seconds.
        start_timeout_s: How long a START waits for a slot when its request has no timeout; read by whoever makes the
            requests.

    Raises:
        SettingsError: A value is not among those that are allowed.
    """

    checkpoint: str
    device: str = "auto"
    precision: str = "float32"
    max_streams: int = 64
    max_batch: int = 64
    cuda_graphs: bool = True
    default_latency_ms: int = 160
    language: str = "en"
    idle_s: float = 60.0
    max_request_s: float = 600.0
    max_backlog_s: float = 900.0
    max_stream_s: float = 14400.0
    start_timeout_s: float = 2.0

    def __post_init__(self) -> None:
        for name, allowed in {"device": DEVICES, "precision": PRECISIONS}.items():
            if (value := getattr(self, name)) not in allowed:
                raise SettingsError(f"{PREFIX}{name.upper()} is {value!r}; choose one of {', '.join(allowed)}")
        for name, least in LEAST.items():
            if not (value := getattr(self, name)) >= least:  # so that "nan" is refused too
                raise SettingsError(f"{PREFIX}{name.upper()} is {value}; it must be at least {least}")
        for name in POSITIVE:
            if not (value := getattr(self, name)) > 0:
                raise SettingsError(f"{PREFIX}{name.upper()} is {value}; it must be more than 0")

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> EngineSettings:
        """Reads the settings from a mapping of `PARAKEET_X` to text; other keys are ignored.

        Raises:
            SettingsError: A value is of another kind, or not among those that are allowed.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            key = PREFIX + field.name.upper()
            if key in texts:
                try:
                    values[field.name] = _READERS[str(field.type)](texts[key].strip())
                except (ValueError, KeyError):
                    kind = _KINDS[str(field.type)]
                    raise SettingsError(f"{key} is {texts[key]!r}; it must be {kind}") from None
        return cls(**values)
