"""The file of a machine: the newest result of every benchmark; `triton-voice bench all` writes it."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triton_voice.errors import InvalidInput
from triton_voice_bench.report import Report

BENCHES = ("memory", "asr-engine", "tts-engine", "asr", "tts", "llm", "turn")
"""Those of `triton-voice bench all`, in the order in which they run."""
ROW_KEYS = ("model", "streams", "batch", "requests_per_s_asked")
"""Fields that tell a benchmark's rows apart."""


@dataclass
class Entry:
    """The newest result of one benchmark.

    Attributes:
        command: What printed it.
        mode: `quick`, `standard` or `thorough`; empty of a result that was written by itself.
        began: When, UTC.
        circumstances: `hardware.Circumstances` as JSON; empty if nobody watched.
        report: The result; None if it never succeeded.
        failure: Why the newest attempt failed; the report is then of an earlier one. None if it succeeded.
    """

    command: str = ""
    mode: str = ""
    began: str = ""
    circumstances: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None
    failure: str | None = None

    @property
    def warnings(self) -> list[str]:
        """Why the figures are to be doubted."""
        return list(self.circumstances.get("warnings", ()))

    def as_json(self) -> dict[str, Any]:
        """Returns the entry for the file."""
        return {**asdict(self), "busy": bool(self.warnings)}

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Entry:
        """Reads what `as_json` wrote."""
        known = {name: content[name] for name in ("command", "mode", "began", "circumstances", "failure")}
        return cls(**known, report=None if content["report"] is None else Report(**content["report"]))


@dataclass
class Results:
    """The results of one machine.

    Attributes:
        name: What the machine is called; the file's name.
        benches: Entries by benchmark.
    """

    name: str
    benches: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads a machine's file, or the file of a single benchmark, which becomes the only entry.

        Raises:
            InvalidInput: It is not there, or is neither.
        """
        try:
            content = json.loads(path.read_text())
            if "benches" in content:
                benches = {name: Entry.of_json(entry) for name, entry in content["benches"].items()}
                return cls(content["name"], benches)
            report = Report(**content)
            return cls(path.stem, {report.bench: Entry(report=report)})
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{path} is no result of `triton-voice bench`: {type(error).__name__} {error}") from None

    def write(self, path: Path) -> None:
        """Writes the file, making the folder if need be; never half of it."""
        newest = self.newest()
        content: dict[str, Any] = {
            "name": self.name,
            "updated": now(),
            "machine": newest.machine if newest else None,
            "versions": newest.versions if newest else None,
            "commit": newest.commit if newest else None,
            "benches": {name: entry.as_json() for name, entry in self.benches.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        beside.replace(path)

    def newest(self) -> Report | None:
        """Returns the report that was made last."""
        made = [(entry.began, entry.report) for entry in self.benches.values() if entry.report is not None]
        return max(made, key=lambda pair: pair[0])[1] if made else None

    def report(self, bench: str) -> Report | None:
        """Returns a benchmark's report if it is there."""
        entry = self.benches.get(bench)
        return entry.report if entry else None


def row_key(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns what tells a row from the others of its benchmark."""
    return tuple((name, row[name]) for name in ROW_KEYS if row.get(name) is not None)


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
