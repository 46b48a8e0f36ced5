"""From text to segments: what the network speaks in one go, as token ids, with the words that are in it."""

from __future__ import annotations

import difflib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from magpie_engine.alignment import TAIL
from magpie_engine.history import HISTORY_TOKENS
from magpie_engine.normalization import UNSPACED, Normalizer, clean
from magpie_engine.request import SpeechRequest

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

#: A text that is shorter than this many characters per possible token need not be tokenized to know that it fits.
MAX_TOKENS_PER_CHARACTER = 4
#: How far a word's tokens are looked for behind the word before it.
SEARCH_TOKENS = 8
#: Characters that are normalised and aligned together: what others wait for on the text thread is bounded by this, not
#: by the longest text.
PIECE_LENGTH = 1000
#: Words beyond which frequent words no longer help to find what became of the others, which would take too long. A
#: piece of ordinary text has fewer.
MANY_WORDS = 250

#: Where a piece may end, the best place first: behind a sentence (whose last word is too long for an abbreviation),
#: behind a clause, between words.
_PIECE_ENDS = (
    re.compile(r"(?<=[^\W\d_]{5}\.)\s|(?<=[!?\u0964])\s|(?<=[\u3002\uff01\uff1f])"),
    re.compile(r"(?<=[,;:])\s(?=[^\W\d_])|(?<=[\u3001\uff0c\uff1b\uff1a])"),
    re.compile(r"(?<=[^\W\d_])\s(?=[^\W\d_])"),
    re.compile(r"\s"),
)
_CLAUSE_END = re.compile(r"(?<=[,;:\u2013\u2014\u3001\uff0c\uff1b\uff1a])\s*|\s+(?=\()")
_GAP = re.compile(r"\s+")
_UNSPACED_WORD = re.compile(r"[A-Za-z0-9]+\W*|\w\W*|\W+")


@dataclass(frozen=True)
class Segment:
    """Text that is spoken in one go.

    Attributes:
        tokens: Token ids, the end token last.
        words: The client's words, each with the token at which it begins.
        is_last: No more text of the request follows.
    """

    tokens: tuple[int, ...]
    words: tuple[tuple[str, int], ...] = ()
    is_last: bool = True


@dataclass
class Sentence:
    """Text of a segment before it is tokenized.

    Attributes:
        text: As it is spoken.
        words: The client's words, each with the index of the spoken word at which it begins.
    """

    text: str
    words: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Script:
    """A request's text, prepared as far as it has to be: the rest is the text thread's.

    Attributes:
        pieces: Written text that is not normalised yet.
        is_long: The text has more than one piece.
        sentences: Spoken text that is not tokenized yet.
        first: The first segment; None if there is nothing to say.
    """

    pieces: deque[str]
    is_long: bool
    sentences: deque[Sentence] = field(default_factory=deque)
    first: Segment | None = None


class TextFrontEnd:
    """Normalises, splits and tokenizes. Used by one thread.

    Long texts are split by sentences with upstream's thresholds (`chunk_text_for_inference`). A sentence that alone
    exceeds them, which upstream would cut off in mid-word at its step limit, is split at a clause or a space.

    Args:
        model: The restored model.
        max_tokens: Longest text that the encoder takes, history and end token included.
        normalizer: What makes written text spoken text.
    """

    def __init__(self, model: MagpieTTSModel, max_tokens: int, normalizer: Normalizer) -> None:
        from nemo.collections.tts.parts.utils import tts_dataset_utils as upstream

        self._tokenizer = model.tokenizer
        self._end: int = model.eos_id
        self._most = max_tokens - HISTORY_TOKENS
        self._normalizer = normalizer
        self._thresholds = upstream.DEFAULT_LANGUAGE_THRESHOLDS
        self._split = upstream.split_by_sentence

    def begin(self, request: SpeechRequest) -> Script:
        """Prepares a request's text up to its first segment."""
        written = clean(request.text)
        if request.language == "ja":  # upstream's workaround: spaces break its Japanese front end
            written = _GAP.sub("", written)
        pieces = deque(_pieces(written))
        script = Script(pieces, is_long=len(pieces) > 1)
        script.first = self.advance(script, request)
        return script

    def advance(self, script: Script, request: SpeechRequest) -> Segment | None:
        """Prepares the next segment of a text; None if nothing is left to say."""
        while self._has_sentence(script, request):
            sentence = script.sentences.popleft()
            tokens = self._tokens(sentence.text, request.tokenizer)
            if tokens:  # else no character of it is known to the tokenizer
                return self._segment(sentence, tokens, request, is_last=not self._has_sentence(script, request))
        return None

    def _has_sentence(self, script: Script, request: SpeechRequest) -> bool:
        """Normalises the next pieces until there is a sentence in one; tells False at the end of the text."""
        while not script.sentences and script.pieces:
            script.sentences.extend(self._plan(script.pieces.popleft(), script.is_long, request))
        return bool(script.sentences)

    def _plan(self, written: str, is_long: bool, request: SpeechRequest) -> list[Sentence]:
        """Splits a piece of text into what is spoken in one go."""
        language, tokenizer = request.language, request.tokenizer
        spoken = self._normalizer.normalize(written, language)
        if is_long or self._thresholds.exceeds_threshold(spoken, language):
            long = self._split(spoken, language)
            parts = [short for sentence in long for short in self._bounded(sentence, language, tokenizer)]
        else:
            parts = self._bounded(spoken, language, tokenizer)
        sentences = [Sentence(part) for part in parts if _pronounceable(part)]
        _assign_words(_words(written, language), sentences, language)
        return sentences

    def _segment(self, sentence: Sentence, tokens: list[int], request: SpeechRequest, *, is_last: bool) -> Segment:
        begins = self._find_words(tokens, _words(sentence.text, request.language), request)
        # Attention is not followed into the last tokens (`alignment.TAIL`): a word there begins just before them.
        latest = max(0, len(tokens) + 1 - TAIL - 1)
        words = tuple((word, min(begins[index], latest)) for word, index in sentence.words)
        return Segment((*tokens, self._end), words, is_last)

    def _find_words(self, tokens: list[int], words: list[str], request: SpeechRequest) -> list[int]:
        """Finds the token at which each spoken word begins: its own tokens, or about where they should be."""
        begins, position = [], 0
        gap = 0 if request.language in UNSPACED else 1
        for word in words:
            own = self._tokens(word, request.tokenizer)
            places = range(position, min(position + SEARCH_TOKENS, len(tokens) - len(own) + 1))
            begin = next((at for at in places if own and tokens[at : at + len(own)] == own), min(position, len(tokens)))
            begins.append(begin)
            position = begin + len(own) + (gap if own else 0)
        return begins

    def _tokens(self, text: str, tokenizer: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text=text, tokenizer_name=tokenizer)
        return tokens

    def _bounded(self, text: str, language: str, tokenizer: str) -> list[str]:
        """Splits a text as long as it exceeds the threshold or what the encoder takes."""
        threshold = self._thresholds.thresholds.get(language, self._thresholds.thresholds["en"])
        fits = self._thresholds.get_word_count(text, language) <= threshold
        if fits and MAX_TOKENS_PER_CHARACTER * len(text) >= self._most:
            fits = len(self._tokens(text, tokenizer)) < self._most
        if fits or len(text) < 2:
            return [text]
        for boundary in (_CLAUSE_END, _GAP):
            cuts = [match.end() for match in boundary.finditer(text) if 0 < match.end() < len(text)]
            middle = [cut for cut in cuts if len(text) // 4 <= cut <= 3 * len(text) // 4]
            if middle:
                break
        cut = min(middle, key=lambda place: abs(place - len(text) // 2)) if middle else len(text) // 2
        return [part for half in (text[:cut], text[cut:]) for part in self._bounded(half.strip(), language, tokenizer)]


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text, whose spaces are single ones, into pieces of at most `PIECE_LENGTH` characters."""
    begin = 0
    while len(text) - begin > PIECE_LENGTH:
        end = begin + PIECE_LENGTH
        places = ([m.end() for m in ends.finditer(text, end - PIECE_LENGTH // 2, end)] for ends in _PIECE_ENDS)
        end = next((found[-1] for found in places if found), end)
        yield text[begin:end].strip()
        begin = end
    yield text[begin:]


def _pronounceable(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _words(text: str, language: str) -> list[str]:
    return [word.strip() for word in _UNSPACED_WORD.findall(text)] if language in UNSPACED else text.split()


def _key(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum()) or word


def _assign_words(written: list[str], sentences: list[Sentence], language: str) -> None:
    """Finds for each written word the spoken word at which it begins, in order, and gives it to that sentence."""
    spoken = [(sentence, index, word) for sentence in sentences
              for index, word in enumerate(_words(sentence.text, language))]  # fmt: skip
    if not spoken:
        return
    keys, spoken_keys = [_key(word) for word in written], [_key(word) for *_, word in spoken]
    steps: list[tuple[str, int, int, int, int]] = [("equal", 0, len(keys), 0, len(keys))]
    if keys != spoken_keys:
        matcher = difflib.SequenceMatcher(None, keys, spoken_keys, autojunk=len(keys) > MANY_WORDS)
        steps = [(kind, *places) for kind, *places in matcher.get_opcodes()]  # type: ignore[misc]
    for kind, first, last, begin, end in steps:
        for place in range(first, last):
            at = min(begin + (place - first) * (end - begin) // (last - first), len(spoken) - 1)
            sentence, index, word = spoken[at]
            if _pronounceable(written[place]) or (kind != "delete" and _pronounceable(word)):
                sentence.words.append((written[place], index))
