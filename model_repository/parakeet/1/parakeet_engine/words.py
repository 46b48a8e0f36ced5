"""Tokens become words, with times and confidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from parakeet_engine.checkpoint import FRAME_MS
from parakeet_engine.requests import Word
from parakeet_engine.runner import ChunkTokens

WORD_START = "▁"
"""SentencePiece's mark of a piece that begins a word."""
FRAME_S = FRAME_MS / 1000


class WordAssembler:
    """Collects one utterance's tokens into words. Only the last word can still change.

    The others are kept as they are sent, as text and as JSON, so that an answer late in a long utterance costs what one
    at its beginning does.

    Args:
        pieces: Piece of each token id.
        decode: Text of a list of token ids, as the checkpoint's tokenizer has it.
    """

    def __init__(self, pieces: Sequence[str], decode: Callable[[list[int]], str]):
        self._pieces = pieces
        self._decode = decode
        self.begin(0.0)

    def begin(self, utterance_start_s: float) -> None:
        """Begins an utterance.

        Args:
            utterance_start_s: Seconds from the sequence's start, added to every time.
        """
        self._offset = utterance_start_s
        self._text = ""  # of the words that are closed, as all that is sent
        self._words_json = ""
        self._tokens: list[int] = []
        self._frames: list[int] = []
        self._probabilities: list[float] = []

    def add(self, emitted: ChunkTokens) -> None:
        """Takes in what a step emitted."""
        for token, frame, probability in zip(emitted.tokens, emitted.frames, emitted.probabilities, strict=True):
            if self._pieces[token].startswith(WORD_START):
                self._close_word()
            self._tokens.append(token)
            self._frames.append(frame)
            self._probabilities.append(probability)

    def words_json(self) -> str:
        """Returns the utterance's words so far, as a JSON list."""
        return f"[{self._with_last_word()}]"

    def text(self) -> str:
        """Returns the utterance's text so far, as the tokenizer writes it: two spaces beside an unknown symbol."""
        return self._with_last_text() if self._tokens else self._text

    def _with_last_text(self) -> str:
        text = self._decode(self._tokens)
        return f"{self._text} {text}" if self._text else text  # a bare word mark is a space, except at the beginning

    def _with_last_word(self) -> str:
        if (word := self._last_word()) is None:
            return self._words_json
        said = json.dumps(asdict(word), ensure_ascii=False)
        return f"{self._words_json}, {said}" if self._words_json else said

    def _last_word(self) -> Word | None:
        if not self._tokens:
            return None
        text = self._decode(self._tokens).strip()
        if not text:
            return None
        return Word(
            word=text,
            start=round(self._offset + self._frames[0] * FRAME_S, 3),
            end=round(self._offset + (self._frames[-1] + 1) * FRAME_S, 3),
            confidence=round(sum(self._probabilities) / len(self._probabilities), 4),
        )

    def _close_word(self) -> None:
        if self._tokens:
            self._text, self._words_json = self._with_last_text(), self._with_last_word()
        self._tokens, self._frames, self._probabilities = [], [], []
