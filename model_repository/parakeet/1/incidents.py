"""Log lines about requests that ended badly, few enough that a flood of bad requests cannot fill the disk."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

CONVERSATION = "triton_voice_conversation"
"""gRPC header with the caller's conversation id. Triton hands it on as a request parameter when it is started with
`--grpc-header-forward-pattern=triton_voice_conversation`, as `triton-voice serve` does."""
MAX_LINES_PER_S = 20
MAX_MESSAGE = 300
"""Characters of a message: a client's own words are part of some."""
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def conversation_of(parameters: dict[str, Any]) -> str:
    """Returns the conversation id among a request's parameters; empty if there is none that may stand in a log."""
    value = parameters.get(CONVERSATION)
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""


class Incidents:
    """Writes the lines. May be called from any thread.

    Args:
        model: Name of the model.
        write: Takes a line for the log.
        clock: Seconds, monotonic.
    """

    def __init__(self, model: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._model = model
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._window = clock()
        self._lines = 0
        self._left_out = 0

    def note(self, what: str, conversation: str, message: str = "") -> None:
        """Writes a line unless there were too many in this second; how many were left out is told later.

        Args:
            what: One word: `refused`, `evicted`, `failed`, ...
            conversation: The conversation's id; may be empty.
            message: What the client was told.
        """
        lines = []
        with self._lock:
            if self._clock() - self._window >= 1:
                if self._left_out:
                    lines.append(f"[{self._model}] {self._left_out} more lines of this kind were left out")
                self._window, self._lines, self._left_out = self._clock(), 0, 0
            if self._lines < MAX_LINES_PER_S:
                self._lines += 1
                said = " ".join(message[:MAX_MESSAGE].split())  # one incident is one line, whatever a client sent
                lines.append(f"[{self._model}] {what} conversation={conversation or '-'} {said}".rstrip())
            else:
                self._left_out += 1
        for line in lines:
            self._write(line)
