"""What an answer of the recogniser costs late in a long utterance, and what becomes of one that cannot be made."""

from __future__ import annotations

import json
import queue
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np

from parakeet_engine import AsrError, AudioRequest, Observer, Transcript, Word, words
from parakeet_engine.delivery import Delivery
from parakeet_engine.runner import ChunkTokens
from parakeet_engine.words import WORD_START, WordAssembler

TIMEOUT_S = 10
PIECES = [f"{WORD_START}naïve", "té", f'{WORD_START}"quoted"', "s"]


def decode(tokens: list[int]) -> str:
    return "".join(PIECES[token] for token in tokens).replace(WORD_START, " ").strip()


def say(assembler: WordAssembler, first_word: int, count: int) -> None:
    """Adds words of two tokens each, two frames apart."""
    for word in range(first_word, first_word + count):
        opens = 2 * (word % 2)
        assembler.add(ChunkTokens([opens, opens + 1], [4 * word, 4 * word + 1], [0.5, 0.75]))


def test_the_words_are_the_json_of_a_list_of_all_of_them():
    assembler = WordAssembler(PIECES, decode)
    assert (assembler.text(), assembler.words_json()) == ("", "[]")
    assembler.begin(10.0)
    for count in range(1, 6):
        say(assembler, count - 1, 1)
        expected = [
            Word(
                ('"quoted"s' if word % 2 else "naïveté"),
                round(10 + 0.32 * word, 3),
                round(10.16 + 0.32 * word, 3),
                0.625,
            )
            for word in range(count)
        ]
        assert assembler.words_json() == json.dumps([asdict(word) for word in expected], ensure_ascii=False)
        assert assembler.text() == " ".join(word.word for word in expected)
        assert Transcript(assembler.text(), assembler.words_json(), False).words == tuple(expected)


def test_an_answer_after_ten_minutes_costs_what_the_first_one_does(monkeypatch):
    """Counted: the words that are made into JSON, and the tokens that are made into text, for each answer."""
    counts = SimpleNamespace(words=0, tokens=0)

    def dumps(value, **options):
        counts.words += len(value) if isinstance(value, list) else 1
        return json.dumps(value, **options)

    def counting(tokens: list[int]) -> str:
        counts.tokens += len(tokens)
        return decode(tokens)

    monkeypatch.setattr(words, "json", SimpleNamespace(dumps=dumps))
    delivery, answers = Delivery(PIECES, counting, Observer()), queue.Queue()
    costs = []
    try:
        for word in range(1500):
            opens = 2 * (word % 2)
            counts.words = counts.tokens = 0
            delivery.tokens("a", ChunkTokens([opens, opens + 1], [4 * word, 4 * word + 1], [0.5, 0.75]))
            delivery.answer("a", AudioRequest("a", np.zeros(0, np.int16), answers.put))
            transcript = answers.get(timeout=TIMEOUT_S)
            costs.append((counts.words, counts.tokens))
    finally:
        delivery.close()
    assert len(transcript.words) == len(transcript.text.split()) == 1500
    assert max(costs[1:]) == costs[1] == costs[-1]
    assert costs[-1][0] <= 2  # the word that was closed and the one that is open


def test_an_answer_that_cannot_be_made_is_an_error_and_the_stream_goes_on():
    broken, answers = [False], queue.Queue()

    def fragile(tokens: list[int]) -> str:
        if broken[0]:
            raise ValueError("no such piece")
        return decode(tokens)

    delivery = Delivery(PIECES, fragile, Observer())
    try:
        delivery.tokens("a", ChunkTokens([0], [0], [1.0]))
        for broken_now, closes in ((False, False), (True, True), (False, False)):
            delivery.run(lambda now=broken_now: broken.__setitem__(0, now))
            delivery.answer("a", AudioRequest("a", np.zeros(0, np.int16), answers.put, finalize=closes))
        first, second, third = (answers.get(timeout=TIMEOUT_S) for _ in range(3))
        assert first.text == "naïve"
        assert isinstance(second, AsrError) and "no such piece" in str(second)
        assert third == Transcript("", "[]", False)  # the utterance was closed all the same
    finally:
        delivery.close()
    assert answers.empty()


def test_whoever_cannot_be_answered_is_asked_once_and_the_next_one_is_served():
    calls, answers = [], queue.Queue()

    def gone(result):
        calls.append(result)
        raise RuntimeError("the sender is closed")

    delivery = Delivery(PIECES, decode, Observer())
    try:
        delivery.answer("a", AudioRequest("a", np.zeros(0, np.int16), gone))
        delivery.answer("b", AudioRequest("b", np.zeros(0, np.int16), answers.put))
        assert answers.get(timeout=TIMEOUT_S) == Transcript("", "[]", False)
    finally:
        delivery.close()
    assert len(calls) == 1
