"""What the language model answers: dialogues asked through the server, right if the words or the tool call are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triton_voice.client import TritonVoice
from triton_voice.evaluation.hearing import OnDone, at_once
from triton_voice.evaluation.sets import Question
from triton_voice.evaluation.words import spoken_words
from triton_voice.types import ChatFinish, ReasoningDelta, ReplyDelta, ToolCall

#: Longest answer, thoughts included, tokens.
MAX_TOKENS = 512


@dataclass(frozen=True)
class Answer:
    """One question with its answer.

    Attributes:
        question: What was asked.
        reply: What the model says.
        thoughts: What it thought before.
        calls: The tools that it calls.
    """

    question: Question
    reply: str
    thoughts: str
    calls: tuple[ToolCall, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is what was asked for."""
        asked = self.question
        if asked.call is not None:
            return len(self.calls) == 1 and _is_call(self.calls[0], asked.call)
        words = spoken_words(self.reply)
        if self.calls or not all(set(spoken_words(each)) <= set(words) for each in asked.contains):
            return False
        return not asked.accepted or any(words == spoken_words(each) for each in asked.accepted)

    def told(self) -> dict[str, Any]:
        """What went wrong, as JSON."""
        asked = self.question
        user = next((each.get("content") for each in reversed(asked.messages) if each["role"] == "user"), "")
        return {
            "group": asked.group,
            "user": user,
            "reply": self.reply,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in self.calls],
            "right": asked.call or list(asked.accepted or asked.contains),
        }


@dataclass(frozen=True)
class AnsweringResult:
    """Answers to many questions."""

    answers: list[Answer]

    @property
    def accuracy(self) -> float:
        """Part of the answers that are right."""
        return sum(each.right for each in self.answers) / len(self.answers)

    def groups(self) -> dict[str, tuple[int, int]]:
        """Right answers and questions by group."""
        found: dict[str, tuple[int, int]] = {}
        for each in self.answers:
            right, asked = found.get(each.question.group, (0, 0))
            found[each.question.group] = (right + each.right, asked + 1)
        return dict(sorted(found.items()))

    def row(self) -> dict[str, Any]:
        """The figures as JSON, with the wrong answers."""
        thinking = [each for each in self.answers if each.question.reasoning]
        return {
            "questions": len(self.answers),
            "right": sum(each.right for each in self.answers),
            "accuracy": round(self.accuracy, 5),
            "asked_to_think": len(thinking),
            "thought": sum(bool(each.thoughts.strip()) for each in thinking),
            "groups": {name: {"right": right, "asked": asked} for name, (right, asked) in self.groups().items()},
            "wrong": [each.told() for each in self.answers if not each.right],
        }


async def ask(
    voice: TritonVoice,
    questions: Sequence[Question],
    jobs: int,
    max_tokens: int = MAX_TOKENS,
    on_done: OnDone = lambda: None,
) -> AnsweringResult:
    """Asks every question, the likeliest word always taken.

    Args:
        voice: The connection.
        questions: What to ask.
        jobs: Questions at once.
        max_tokens: Longest answer.
        on_done: Called after each.

    Raises:
        TritonVoiceError: As `TritonVoice.chat`.
    """

    async def one(question: Question) -> Answer:
        reply, thoughts = "", ""
        calls: tuple[ToolCall, ...] = ()
        deltas = voice.chat(
            question.messages,
            tools=question.tools or None,
            reasoning=question.reasoning,
            temperature=0,
            max_tokens=max_tokens,
        )
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                if isinstance(delta, ReplyDelta):
                    reply += delta.text
                elif isinstance(delta, ReasoningDelta):
                    thoughts += delta.text
                elif isinstance(delta, ChatFinish):
                    calls = delta.tool_calls
        on_done()
        return Answer(question, reply.strip(), thoughts, calls)

    return AnsweringResult(await at_once(questions, one, jobs))


def _is_call(call: ToolCall, right: Mapping[str, Any]) -> bool:
    """Compares a call with the right one; names of arguments matter, the case of their values does not."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        return False
    return call.name == right["name"] and _plain(arguments) == _plain(right.get("arguments") or {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.casefold().strip() if isinstance(value, str) else value
