"""What is measured: files of recordings, of texts to speak, and of dialogues, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_voice.errors import InvalidInput


@dataclass(frozen=True)
class Recording:
    """A line of a NeMo manifest.

    Attributes:
        path: The audio file; a relative path is taken from the manifest's folder.
        text: What is said in it; empty for a recording without speech.
        group: Value of the field that results are grouped by; empty without one.
    """

    path: Path
    text: str
    group: str = ""


@dataclass(frozen=True)
class Line:
    """A text to be spoken.

    Attributes:
        text: As it is sent to the synthesiser.
        spoken: As it is heard: numbers and times in words.
    """

    text: str
    spoken: str


@dataclass(frozen=True)
class Question:
    """A conversation up to where the assistant speaks, and what it may say.

    Attributes:
        messages: OpenAI messages.
        tools: OpenAI tools that are offered.
        reasoning: Whether the model is asked to think first; None leaves it to the server.
        accepted: Replies that are right, compared by their words.
        contains: Words that a right reply has among others; for models that word freely.
        call: The tool call that is right, `{"name", "arguments"}`; then no reply is expected.
        group: What the question is about.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    reasoning: bool | None = None
    accepted: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    call: dict[str, Any] | None = None
    group: str = ""


def read_manifest(path: Path, group_by: str | None = None) -> list[Recording]:
    """Reads a NeMo manifest: `{"audio_filepath", "text", ...}` on each line.

    Args:
        path: The file.
        group_by: Field of the manifest to group results by, e.g. `voice`.

    Raises:
        InvalidInput: There is no such file, it is empty, or a line is not as it must be; the message names the line.
    """
    recordings = []
    for where, entry in _objects(path):
        if not isinstance(entry.get("audio_filepath"), str) or not isinstance(entry.get("text"), str):
            raise InvalidInput(f"{where} needs the strings audio_filepath and text")
        if group_by is not None and group_by not in entry:
            raise InvalidInput(f"{where} has no field {group_by}, by which results are to be grouped")
        group = str(entry[group_by]) if group_by is not None else ""
        recordings.append(Recording(path.parent / entry["audio_filepath"], entry["text"], group))
    return recordings


def read_lines(path: Path) -> list[Line]:
    """Reads texts to speak: a text on each line, or in a .jsonl file `{"text", "spoken"}`, `spoken` optional.

    Raises:
        InvalidInput: As `read_manifest`.
    """
    if path.suffix != ".jsonl":
        texts = [line.strip() for line in _read(path).splitlines() if line.strip()]
        if not texts:
            raise InvalidInput(f"{path} is empty")
        return [Line(text, text) for text in texts]
    lines = []
    for where, entry in _objects(path):
        text = entry.get("text")
        spoken = entry.get("spoken", text)
        if not isinstance(text, str) or not isinstance(spoken, str) or not text.strip():
            raise InvalidInput(f"{where} needs the string text, and may have the string spoken")
        lines.append(Line(text, spoken))
    return lines


def read_questions(path: Path) -> list[Question]:
    """Reads dialogues: `{"messages", "tools", "reasoning", "accepted", "contains", "call", "group"}` on each line.

    `messages` and one of `accepted`, `contains` and `call` must be there.

    Raises:
        InvalidInput: As `read_manifest`.
    """
    questions = []
    for where, entry in _objects(path):
        messages, call = entry.get("messages"), entry.get("call")
        if not isinstance(messages, list) or not messages:
            raise InvalidInput(f"{where} needs messages, a list of OpenAI messages")
        for name in ("accepted", "contains"):
            if not _is_texts(entry.get(name, [])):
                raise InvalidInput(f"{where}: {name} must be a list of strings")
        if call is not None and not (isinstance(call, dict) and isinstance(call.get("name"), str)):
            raise InvalidInput(f'{where}: call must be {{"name": ..., "arguments": {{...}}}}')
        if call is None and not entry.get("accepted") and not entry.get("contains"):
            raise InvalidInput(f"{where} says nothing of what is right: give accepted, contains or call")
        questions.append(
            Question(
                messages=messages,
                tools=entry.get("tools") or [],
                reasoning=entry.get("reasoning"),
                accepted=tuple(entry.get("accepted", ())),
                contains=tuple(entry.get("contains", ())),
                call=call,
                group=str(entry.get("group", "")),
            )
        )
    return questions


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each line is and what it holds."""
    empty = True
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, empty = f"line {number} of {path}", False
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{where} is not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise InvalidInput(f"{where} is not a JSON object")
        yield where, entry
    if empty:
        raise InvalidInput(f"{path} is empty")
