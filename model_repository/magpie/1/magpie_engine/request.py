"""One request for speech: its parameters, their meaning, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from magpie_engine.catalog import Catalog
from magpie_engine.errors import InvalidRequestError

DEFAULT_VOICE = "aria"
DEFAULT_LANGUAGE = "en"

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 256
MAX_CFG_SCALE = 10.0
MAX_SEED = 2**63 - 1
#: Characters of an utterance's id.
MAX_ID_LENGTH = 256
#: Characters of a text: hours of speech.
MAX_TEXT_LENGTH = 200_000
#: In frames: keeps seconds that stand for a whole number of frames from losing one.
ROUNDING = 1e-6

#: Names that a client may send, in the order in which they are listed to it.
PARAMETERS = ("voice", "language", "temperature", "top_k", "cfg_scale", "seed", "max_seconds", "utterance")


@dataclass(frozen=True)
class SpeechRequest:
    """A checked request, ready for the engine.

    Attributes:
        text: What to say.
        speaker: Index of the baked speaker.
        language: Code of the language.
        tokenizer: Name of the checkpoint's tokenizer for the language.
        temperature: Of sampling; 0 takes the most likely code each time (greedy).
        top_k: Codes considered at each draw.
        cfg_scale: Strength of classifier-free guidance; 1 is none.
        seed: Of the sampling noise; None draws one.
        max_frames: Length in codec frames at which the speech is cut; None leaves it to the text.
        utterance: Id of the utterance that this is a piece of; None is one of its own.
        given: Names of the fields that the client chose.
    """

    #: Fields that later pieces of an utterance take from the first.
    CARRIED: ClassVar[frozenset[str]] = frozenset(
        {"speaker", "language", "tokenizer", "temperature", "top_k", "cfg_scale"}
    )

    text: str
    speaker: int
    language: str
    tokenizer: str
    temperature: float
    top_k: int
    cfg_scale: float
    seed: int | None
    max_frames: int | None
    utterance: str | None = None
    given: frozenset[str] = frozenset()

    @property
    def pronounceable(self) -> bool:
        """Whether there is a letter or digit in the text at all."""
        return any(character.isalnum() for character in self.text)

    @classmethod
    def from_parameters(cls, text: str, parameters: Mapping[str, Any], catalog: Catalog) -> SpeechRequest:
        """Checks a client's parameters against what the checkpoint offers.

        Args:
            text: What to say; may be empty.
            parameters: By the names in `PARAMETERS`; a missing one has the checkpoint's default.
            catalog: What the checkpoint offers.

        Raises:
            InvalidRequestError: A name or a value is not allowed; the message says what is.
        """
        unknown = sorted(set(parameters) - set(PARAMETERS))
        if unknown:
            raise InvalidRequestError(
                f"unknown parameter {', '.join(map(repr, unknown))}; allowed are {', '.join(PARAMETERS)}"
            )
        voice = _choice(parameters, "voice", DEFAULT_VOICE, catalog.voices)
        language = _choice(parameters, "language", DEFAULT_LANGUAGE, catalog.languages)
        if len(text) > MAX_TEXT_LENGTH:
            raise InvalidRequestError(f"the text has {len(text)} characters; at most {MAX_TEXT_LENGTH} are possible")
        max_frames = None
        if "max_seconds" in parameters:
            seconds = _number(parameters, "max_seconds", 0.0, 0.0, math.inf, open_below=True)
            max_frames = max(1, int(seconds * catalog.frames_per_second + ROUNDING))
        fields_of = {"voice": ("speaker",), "language": ("language", "tokenizer")}
        return cls(
            text=text,
            speaker=catalog.voices[voice],
            language=language,
            tokenizer=catalog.languages[language],
            temperature=_number(parameters, "temperature", catalog.temperature, 0.0, MAX_TEMPERATURE),
            top_k=_whole(parameters, "top_k", catalog.top_k, 1, MAX_TOP_K),
            cfg_scale=_number(parameters, "cfg_scale", catalog.cfg_scale, 0.0, MAX_CFG_SCALE),
            seed=_whole(parameters, "seed", None, 0, MAX_SEED),
            max_frames=max_frames,
            utterance=_identifier(parameters, "utterance"),
            given=frozenset(field for name in parameters for field in fields_of.get(name, (name,))),
        )


def _choice(parameters: Mapping[str, Any], name: str, default: str, offered: Mapping[str, object]) -> str:
    value = parameters.get(name, default)
    if not isinstance(value, str) or value.lower() not in offered:
        given = f"{name} {value!r}" if name in parameters else f"the default {name} {value!r}"
        raise InvalidRequestError(f"{given} is not offered by this checkpoint; allowed are {', '.join(offered)}")
    return value.lower()


def _identifier(parameters: Mapping[str, Any], name: str) -> str | None:
    if name not in parameters:
        return None
    value = parameters[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or not 0 < len(str(value)) <= MAX_ID_LENGTH:
        raise InvalidRequestError(f"{name} is {value!r}; it must be an id of 1 to {MAX_ID_LENGTH} characters")
    return str(value)


def _number(
    parameters: Mapping[str, Any], name: str, default: float, low: float, high: float, *, open_below: bool = False
) -> float:
    value = parameters.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
        or (open_below and value == low)
    ):
        allowed = f"above {low:g}" if open_below else f"from {low:g} to {high:g}"
        raise InvalidRequestError(f"{name} is {value!r}; it must be a number {allowed}")
    return float(value)


def _whole(parameters: Mapping[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    if name not in parameters:
        return default
    value = parameters[name]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return value
