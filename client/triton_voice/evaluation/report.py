"""The figures of an evaluation: as tables, as JSON, and against the floors that they must keep."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from triton_voice.errors import InvalidInput

Row = dict[str, Any]


@dataclass(frozen=True)
class Floors:
    """What the figures must keep; None asks for nothing.

    Attributes:
        max_wer: Word error rate of the recogniser, at every lookahead that is measured.
        max_wrong_silences: Recordings without speech in which words were heard.
        max_offline_wer: Word errors of streaming against NeMo's offline transcripts.
        max_read_back_wer: Word error rate of the synthesiser, heard by the recogniser, in every voice.
        max_runaways: Texts whose speech did not end, in every voice.
        max_truncations: Texts whose speech ended early, in every voice.
        min_accuracy: Part of the language model's answers that are right.
    """

    max_wer: float | None = None
    max_wrong_silences: int | None = None
    max_offline_wer: float | None = None
    max_read_back_wer: float | None = None
    max_runaways: int | None = None
    max_truncations: int | None = None
    min_accuracy: float | None = None


#: Where each floor finds its figure: the part, the field of its rows, and what the figure is called.
_FIGURES = {
    "max_wer": ("hearing", "wer", "word error rate"),
    "max_wrong_silences": ("hearing", "wrong_silences", "silences with words"),
    "max_offline_wer": ("hearing", "offline_wer", "streaming against offline"),
    "max_read_back_wer": ("speaking", "wer", "read-back word error rate"),
    "max_runaways": ("speaking", "runaway", "runaways"),
    "max_truncations": ("speaking", "truncated", "truncations"),
    "min_accuracy": ("answering", "accuracy", "right answers"),
}


@dataclass
class Report:
    """What was measured.

    Attributes:
        weights: What is known of the weights.
        sets: The files that were used, by part.
        hearing: A row for each lookahead.
        speaking: A row for each voice.
        answering: One row.
    """

    weights: str
    sets: dict[str, str] = field(default_factory=dict)
    hearing: list[Row] = field(default_factory=list)
    speaking: list[Row] = field(default_factory=list)
    answering: list[Row] = field(default_factory=list)

    def fallen(self, floors: Floors) -> list[str]:
        """Returns a sentence for each figure that fell through its floor.

        Raises:
            InvalidInput: There is a floor for something that was not measured.
        """
        told = []
        for name, (part, figure, words) in _FIGURES.items():
            floor = getattr(floors, name)
            if floor is None:
                continue
            rows = [row for row in getattr(self, part) if figure in row]
            if not rows:
                raise InvalidInput(f"--{name.replace('_', '-')} is given, but {words} was not measured")
            for row in rows:
                value, where = row[figure], _where(row)
                if value < floor if name.startswith("min") else value > floor:
                    limit = "at least" if name.startswith("min") else "at most"
                    told.append(f"{words}{where}: {_shown(value)}, allowed is {limit} {_shown(floor)}")
        return told

    def tables(self) -> list[Table]:
        """The figures for a person."""
        made = []
        if self.hearing:
            made.append(_hearing_table(self.hearing))
        if self.speaking:
            made.append(_speaking_table(self.speaking))
        if self.answering:
            made.append(_answering_table(self.answering[0]))
        return made

    def write(self, path: Path, fallen: list[str]) -> None:
        """Writes everything as JSON, with the sentences of `fallen`."""
        whole = {"eval": 1, **dataclasses.asdict(self), "fallen": fallen}
        path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _where(row: Row) -> str:
    if "latency_ms" in row:
        return f" at {row['latency_ms']} ms"
    return f" of {row['voice']}" if row.get("voice") else ""


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _hearing_table(rows: list[Row]) -> Table:
    groups = sorted({name for row in rows for name in row["groups"]})
    offline = any("offline_wer" in row for row in rows)
    columns = ["lookahead", "files", "words", "word errors", "sub", "ins", "del", "silences with words"]
    table = _table("what the recogniser hears", *columns, *groups, *(["against offline"] if offline else []))
    for row in rows:
        cells = [
            f"{row['latency_ms']} ms", str(row["files"]), str(row["words"]), _shown(float(row["wer"])),
            str(row["substitutions"]), str(row["insertions"]), str(row["deletions"]),
            f"{row['wrong_silences']} of {row['silences']}",
        ]  # fmt: skip
        cells += [_shown(float(row["groups"][name])) for name in groups]
        if offline:
            cells.append(f"{_shown(float(row['offline_wer']))} ({len(row['offline_differs'])} files)")
        table.add_row(*cells)
    return table


def _speaking_table(rows: list[Row]) -> Table:
    table = _table(
        "what the synthesiser says, read back", "voice", "texts", "words", "word errors", "sub", "ins", "del",
        "runaway", "truncated", "s/word",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["voice"] or "default", str(row["texts"]), str(row["words"]), _shown(float(row["wer"])),
            str(row["substitutions"]), str(row["insertions"]), str(row["deletions"]), str(row["runaway"]),
            str(row["truncated"]), f"{row['seconds_per_word']:.2f}",
        )  # fmt: skip
    return table


def _answering_table(row: Row) -> Table:
    table = _table("what the language model answers", "about", "right", "asked", "")
    for name, counts in row["groups"].items():
        right, asked = counts["right"], counts["asked"]
        table.add_row(name or "-", str(right), str(asked), f"{right / asked:.1%}")
    table.add_row("all", str(row["right"]), str(row["questions"]), f"{row['accuracy']:.1%}", style="bold")
    if row["asked_to_think"]:
        table.caption = f"thought in {row['thought']} of the {row['asked_to_think']} that ask for it"
    return table
