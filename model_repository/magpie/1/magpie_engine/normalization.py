"""Text as it is written to text as it is spoken: one interface, two engines.

NeMo's grammars (`nemo_text_processing`) are the better engine where they are installed; they need pynini, which has no
wheel for Arm, and compiling a language takes a minute, so they are used when their compiled form is at hand. The light
engine is always there: full English, digits by name elsewhere. Either runs on the text thread, off the device's.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from magpie_engine.errors import SettingsError
from magpie_engine.spoken_english import spell_out

ENGINES = ("auto", "light", "nemo")
#: Said once in each language when the engine starts, so that nothing is compiled or read later.
WARM_UP_TEXT = "On 3 May it was 42%."
#: Written digits that the character tokenizers would leave out, by name.
DIGIT_NAMES = {
    "de": "null eins zwei drei vier fünf sechs sieben acht neun",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "vi": "không một hai ba bốn năm sáu bảy tám chín",
    "hi": "शून्य एक दो तीन चार पाँच छह सात आठ नौ",
    "zh": "零 一 二 三 四 五 六 七 八 九",
    "ja": "ゼロ いち に さん よん ご ろく なな はち きゅう",
}
PERCENT = {"de": "Prozent", "es": "por ciento", "fr": "pour cent", "it": "per cento", "vi": "phần trăm",
           "hi": "प्रतिशत", "zh": "百分之", "ja": "パーセント"}  # fmt: skip
#: Languages written without spaces between words.
UNSPACED = ("zh", "ja")

# Whatever a client sends, each of these takes time in proportion to the text: Python's `re` stops every thread of the
# process while it searches. So what a mark encloses ends where another may begin, and is never searched again.
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\[\]]*+)\]\((?:[^()]++|\([^()]*+\))*+\)")
_URL = re.compile(r"https?://(?:www\.)?([\w.-]+)\S*")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+\u2022][ \t]+|\|)|^[ \t]*[-*_=~]{3,}[ \t]*$", re.MULTILINE)
#: A star between spaces and an underscore within a word are no marks.
_EMPHASIS = (
    re.compile(r"(\*{1,3})(?=\S)((?:[^*]++|(?<=\s)\*(?=\s))++)(?<=\S)\1"),
    re.compile(r"(_{2,3})(?=\S)((?:[^_]++|(?<=[^\W_])_(?=[^\W_]))++)(?<=\S)\1"),
    re.compile(r"(~~)(?=\S)((?:[^~]++|~(?!~))++)(?<=\S)~~"),
    re.compile(r"(`{1,2})(?=\S)([^`]++)(?<=\S)\1"),
    re.compile(r"(?<!\w)(_)(?=\S)((?:[^_\n]++|(?<=[^\W_])_(?=[^\W_]))++)(?<=\S)_(?!\w)"),
)
#: References to characters that do not exist, whose number Python would refuse to read.
_LONG_REFERENCE = re.compile(r"&#\d{8,};?")
#: Joiners, selectors and tags that belong to emoji, and marks that are not heard.
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufe00-\ufe0f\U000e0000-\U000e007f\u20e3\ufeff\ufffd]")
#: Full stop, comma, exclamation and question mark of Chinese and Japanese.
_WIDE_MARKS = "\u3002\u3001\uff0c\uff01\uff1f"
#: Symbols that are spoken or belong to a number; all other symbols of the kind "So" are pictures.
_SPOKEN_SYMBOLS = "°©®™№℃℉"
_NEEDS_ENGINE = re.compile(r"[\d$€£¥₹%&@+=#°<>]|\b[A-Za-z]+\.")


class Normalizer(Protocol):
    """An engine for one or more languages."""

    def normalize(self, text: str, language: str) -> str:
        """Returns the text as it is spoken."""
        ...


def clean(text: str) -> str:
    """Removes what is not to be spoken: emoji, Markdown and HTML marks, control characters.

    Code blocks go altogether, links leave their words, bare addresses their host. Line breaks end sentences that have
    no mark of their own.
    """
    text = html.unescape(_LONG_REFERENCE.sub(" ", _CODE_BLOCK.sub(" ", text)))
    text = _TAG.sub(" ", _URL.sub(r"\1", _LINK.sub(r"\1", _LINK.sub(r"\1", text))))  # a link may enclose a picture
    text = _LINE_MARK.sub("", text)
    for _ in range(3):  # marks nest; the inner ones go first
        for mark in _EMPHASIS:
            text = mark.sub(r"\2", text)
    text = re.sub(rf"([^\s.,;:!?…{_WIDE_MARKS}])[ \t]*+(?:\n[ \t]*+)++(?=\S)", r"\1. ", text.strip())
    return " ".join(_INVISIBLE.sub("", "".join(map(_audible, text))).split())


def _audible(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Co", "Cn") and character not in "\u200d":
        return " " if category == "Cc" else ""
    is_picture = category == "So" and character not in _SPOKEN_SYMBOLS
    is_modifier = category == "Sk" and ord(character) > 0xFFFF  # skin tones
    return " " if is_picture or is_modifier else character


class LightNormalizer:
    """English in full; elsewhere digits and percent signs by name."""

    def normalize(self, text: str, language: str) -> str:
        """See `Normalizer`."""
        if language == "en":
            return spell_out(text)
        if language not in DIGIT_NAMES or not any(character.isdigit() or character == "%" for character in text):
            return text
        names, gap = DIGIT_NAMES[language].split(), "" if language in UNSPACED else " "
        text = re.sub(r"(?<=\d)[.,](?=\d)", gap or "", text) if language in UNSPACED else text
        spoken = (
            f"{gap}{names[unicodedata.digit(c)]}{gap}" if unicodedata.digit(c, -1) >= 0 else c
            for c in text.replace("%", f"{gap}{PERCENT[language]}{gap}")
        )
        return re.sub(r"\s+([.,;:!?])", r"\1", " ".join("".join(spoken).split()))


class NemoNormalizer:
    """NeMo's weighted finite-state grammars, for the languages that have them; the light engine for the others.

    Args:
        languages: Language codes.
        folder: Where compiled grammars are kept.
        compile_missing: Whether to compile a language that is not there, which takes a minute.
    """

    def __init__(self, languages: Iterable[str], folder: Path, compile_missing: bool) -> None:
        from nemo_text_processing.text_normalization.normalize import Normalizer as Grammars  # type: ignore[import-untyped]

        self._light = LightNormalizer()
        self._grammars: dict[str, Any] = {}
        for language in languages:
            if compile_missing or _is_compiled(folder, language):
                with contextlib.suppress(NotImplementedError, ValueError, ImportError, KeyError, AttributeError):
                    self._grammars[language] = Grammars(
                        input_case="cased", lang=language, cache_dir=str(folder), overwrite_cache=False
                    )

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that have grammars here."""
        return tuple(self._grammars)

    def normalize(self, text: str, language: str) -> str:
        """See `Normalizer`."""
        grammars = self._grammars.get(language)
        if grammars is None or not _NEEDS_ENGINE.search(text):
            return self._light.normalize(text, language)
        spoken: str = grammars.normalize(text, verbose=False, punct_post_process=True)
        return spoken


def make_normalizer(engine: str, folder: str, languages: Iterable[str]) -> Normalizer:
    """Makes and warms up the engine that MAGPIE_NORMALIZER names.

    Args:
        engine: "light", "nemo" (compiling what is missing), or "auto": NeMo's where it is installed and compiled.
        folder: Where NeMo's compiled grammars are kept.
        languages: Language codes.

    Raises:
        SettingsError: "nemo" is asked for and not installed.
    """
    languages = tuple(languages)
    normalizer: Normalizer = LightNormalizer()
    if engine != "light":
        place = Path(os.path.expanduser(folder))
        try:
            if engine == "nemo" or any(_is_compiled(place, language) for language in languages):
                place.mkdir(parents=True, exist_ok=True)
                normalizer = NemoNormalizer(languages, place, compile_missing=engine == "nemo")
        except ImportError as error:
            if engine == "nemo":
                raise SettingsError(
                    f"MAGPIE_NORMALIZER is nemo, but nemo_text_processing cannot be imported ({error}); "
                    "install it, or use auto or light"
                ) from error
    for language in languages:
        normalizer.normalize(WARM_UP_TEXT, language)
    return normalizer


def _is_compiled(folder: Path, language: str) -> bool:
    return any(folder.glob(f"*{language}_tn_*.far"))
