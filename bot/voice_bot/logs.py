"""The bot's log: plain lines or JSON, without what people say unless that is asked for."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Literal, TextIO

from loguru import logger

from triton_voice.logs import json_line

if TYPE_CHECKING:
    from loguru import Message

CONVERSATION = "conversation"
"""Name of the field, in loguru's `extra` and in JSON, with a conversation's id."""
TEXT_FORMAT = "{time:HH:mm:ss.SSS} {level:8} {name} {message}"
_SPOKEN = (
    (re.compile(r"(not speaking) \[.*\]", re.DOTALL), r"\1 [...]"),
    (re.compile(r"(Failed to parse function call arguments): .*", re.DOTALL), r"\1"),
)
"""Pipecat's lines above DEBUG that repeat what was said or heard."""


def set_up(form: Literal["text", "json"], verbose: bool, out: TextIO) -> None:
    """Sends the log of this process to a file.

    Args:
        form: `text`, or `json`: an object a line, see `triton_voice.logs`.
        verbose: Pipecat's DEBUG lines too, which hold what is said.
        out: The file.
    """
    logger.remove()
    level = "DEBUG" if verbose else "INFO" if form == "json" else "WARNING"

    def write(message: Message) -> None:
        out.write((_as_json(message.record, verbose) if form == "json" else _as_text(message, verbose)) + "\n")
        out.flush()

    # `diagnose` would print the values of variables beside a traceback: words, tokens, anything.
    logger.add(
        write, level=level, format="{time:HH:mm:ss.SSS} {level:8} {name} {message}", diagnose=False, backtrace=False
    )
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.DEBUG if verbose else logging.WARNING, force=True)


def _without_speech(text: str) -> str:
    for pattern, replacement in _SPOKEN:
        text = pattern.sub(replacement, text)
    return text


def _as_text(message: Message, verbose: bool) -> str:
    text = str(message).rstrip("\n")
    return text if verbose else _without_speech(text)


def _as_json(record: Any, verbose: bool) -> str:
    error = record["exception"]
    return json_line(
        record["message"] if verbose else _without_speech(record["message"]),
        level=record["level"].name.lower(),
        logger=record["name"] or "",
        time=record["time"],
        conversation=record["extra"].get(CONVERSATION),
        # The kind and the place of an error; its sentence only if that is asked for: it may repeat what was said.
        error=None if error is None or error.type is None else error.type.__name__,
        error_message=str(error.value) if verbose and error is not None else None,
        where=f"{record['file'].name}:{record['line']}",
    )


class _ToLoguru(logging.Handler):
    """Hands the standard library's records (uvicorn's, aiortc's) to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL") else "INFO"

        def name(patched: Any) -> None:
            patched.update(name=record.name)

        logger.patch(name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())
