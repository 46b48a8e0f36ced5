"""Logs as JSON lines, for machines that collect them: one object a line with time, level, logger and message.

A line that belongs to a conversation has its id in `conversation`: the bot's own lines, and those in which a model
tells of a request that it refused or dropped.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

POLL_S = 0.2
"""How soon a line of a followed file is passed on."""
_TRITON = re.compile(
    r"(?P<level>[IWEF])(?P<day>\d{4}) (?P<clock>[\d:.]+) \d+ (?P<where>[\w./-]+:\d+)\] (?P<message>.*)"
)
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_CONVERSATION = re.compile(r"\bconversation=([\w.-]+)")


def json_line(
    message: str, *, level: str = "info", logger: str, time: datetime.datetime | None = None, **more: Any
) -> str:
    """Returns a log line as JSON, without its end.

    Args:
        message: What happened.
        logger: Who says so.
        level: `debug`, `info`, `warning`, `error` or `critical`.
        time: When; now if None.
        **more: Further fields; those that are None or empty are left out.
    """
    at = (time or datetime.datetime.now(datetime.UTC)).astimezone(datetime.UTC)
    fields = {"time": at.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": message}
    return json.dumps({**fields, **{name: value for name, value in more.items() if value}}, ensure_ascii=False)


def triton_line(line: str) -> str:
    """Returns a line of Triton's log, or of what its models print, as JSON.

    Triton's own format is `I1120 17:15:03.723314 4725 server.cc:305] "message"`, on the machine's clock.
    """
    found = _TRITON.match(line)
    if found is None:
        return json_line(line, logger="triton")
    message = found["message"]
    if message.startswith('"'):
        with contextlib.suppress(json.JSONDecodeError):
            message = json.loads(message)
    conversation = _CONVERSATION.search(message)
    return json_line(
        message,
        level=_LEVELS[found["level"]],
        logger="triton",
        time=_moment(found["day"], found["clock"]),
        where=found["where"],
        conversation=conversation[1] if conversation else None,
    )


def _moment(day: str, clock: str) -> datetime.datetime | None:
    """The time that Triton tells, without its year: this one's, or the last one's in the first hours of January."""
    now = datetime.datetime.now().astimezone()
    with contextlib.suppress(ValueError):
        at = datetime.datetime.strptime(f"{now.year}{day} {clock}", "%Y%m%d %H:%M:%S.%f").astimezone()
        return at if at <= now + datetime.timedelta(days=1) else at.replace(year=now.year - 1)
    return None


class JsonLines(io.TextIOBase):
    """A text file that makes each line written to it a JSON line of another.

    Args:
        out: The other.
        logger: Who writes.
    """

    def __init__(self, out: TextIO, logger: str):
        self._out = out
        self._logger = logger
        self._rest = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Writes the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._out.write(json_line(line.strip(), logger=self._logger) + "\n")
        return len(text)

    def flush(self) -> None:
        """Flushes the other file."""
        self._out.flush()


@contextlib.contextmanager
def following(path: Path, write: Callable[[str], None]) -> Iterator[None]:
    """Hands on what is written to a file while this lasts, line by line; a file that begins anew is read anew.

    Args:
        path: The file; it need not be there yet.
        write: Takes a line, in a thread of its own.
    """
    over = threading.Event()
    path.unlink(missing_ok=True)  # what a former run left is not this one's

    def follow() -> None:
        at, rest = 0, b""
        while True:
            last = over.wait(POLL_S)
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if file.seek(0, io.SEEK_END) < at:
                    at, rest = 0, b""
                file.seek(at)
                *lines, rest = (rest + (new := file.read())).split(b"\n")
                at += len(new)
                for line in lines:
                    write(line.decode(errors="replace"))
            if last:
                return

    thread = threading.Thread(target=follow, name="log-follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
