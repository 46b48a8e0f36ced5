"""Word error rate: one way to take words out of text and to count how two sequences of them differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_APOSTROPHES = re.compile("[\u2018\u2019\u02bc]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def spoken_words(text: str) -> list[str]:
    """Returns a text's words in lower case without punctuation; an apostrophe within a word stays ("what's")."""
    return _WORD.findall(_APOSTROPHES.sub("'", text).lower())


@dataclass(frozen=True)
class WordErrors:
    """Errors against a reference; counts of several utterances add up.

    Attributes:
        substitutions: Words heard as others.
        insertions: Words heard that were not said.
        deletions: Words said that were not heard.
        words: Words that were said.
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Errors for each word said; where nothing was said, 0 if nothing was heard, else infinite."""
        if self.words:
            return self.errors / self.words
        return float("inf") if self.errors else 0.0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.words + other.words,
        )


def compare(reference: Sequence[str], heard: Sequence[str]) -> WordErrors:
    """Counts the fewest edits that turn one sequence of words into another (Levenshtein distance).

    Of equally short ways the one with the most substitutions counts, as usual.
    """
    # Each cell: (edits, substitutions, insertions, deletions) from the start of both sequences to here.
    row = [(count, 0, count, 0) for count in range(len(heard) + 1)]
    for said in reference:
        above, row = row, [(row[0][0] + 1, 0, 0, row[0][3] + 1)]
        for column, word in enumerate(heard):
            edits, subs, ins, dels = above[column]
            same = said == word
            diagonal = (edits + (not same), subs + (not same), ins, dels)
            edits, subs, ins, dels = above[column + 1]
            deletion = (edits + 1, subs, ins, dels + 1)
            edits, subs, ins, dels = row[column]
            insertion = (edits + 1, subs, ins + 1, dels)
            row.append(min(diagonal, deletion, insertion, key=lambda cell: (cell[0], -cell[1])))
    _, substitutions, insertions, deletions = row[-1]
    return WordErrors(substitutions, insertions, deletions, len(reference))


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Counts the word errors of (reference, heard) texts, compared by `spoken_words`."""
    return sum((compare(spoken_words(said), spoken_words(heard)) for said, heard in pairs), WordErrors())
