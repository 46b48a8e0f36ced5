"""Asks the public advisory database about every package that the locks pin, with pip-audit.

An advisory that has no answer in `ACCEPTED` is an error. A package that the database does not answer for is counted and
said, never taken for a clean one; `--strict` makes it an error, too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted([*(ROOT / "requirements").glob("*.txt"), *(ROOT / "docker" / "locks").glob("*.txt")])
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,.-]+\])?==([\w.!+-]+)")
PIP_AUDIT = "pip-audit==2.10.1"
TIMEOUT_S = 600

ACCEPTED: dict[str, str] = {}
"""Advisories that do not reach this project: id or alias, and why not."""


def rounds() -> list[dict[str, str]]:
    """Returns the pinned versions, name to version; a package pinned differently in two locks is in several rounds."""
    pinned: dict[str, list[str]] = {}
    for lock in LOCKS:
        for line in lock.read_text().splitlines():
            if match := PIN.match(line.strip()):
                name = re.sub(r"[-_.]+", "-", match[1]).lower()
                version = match[2].partition("+")[0]  # advisories know no local versions such as +cpu
                if version not in pinned.setdefault(name, []):
                    pinned[name].append(version)
    count = max(map(len, pinned.values()))
    return [{name: of[i] for name, of in pinned.items() if i < len(of)} for i in range(count)]


def ask(pins: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Returns pip-audit's answer per package: `name`, and `version` and `vulns`, or `skip_reason`.

    Raises:
        ConnectionError: There was no answer at all; the last line that pip-audit wrote.
    """
    asked, answer = folder / "pins.txt", folder / "answer.json"
    asked.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    answer.unlink(missing_ok=True)
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--output", str(answer)]
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "tool", "run", PIP_AUDIT, *options, "-r", str(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"no answer within {TIMEOUT_S} s") from None
    if not answer.exists():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ConnectionError(said[-1] if said else f"pip-audit ended with code {done.returncode}")
    found: list[dict[str, Any]] = json.loads(answer.read_text())["dependencies"]
    return found


def open_advisories(answers: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Returns (package, version, advisory, fixed in) of every advisory that is not accepted."""
    return [
        (answer["name"], answer["version"], advisory["id"], ", ".join(advisory["fix_versions"]) or "no release")
        for answer in answers
        for advisory in answer.get("vulns", [])
        if ACCEPTED.keys().isdisjoint([advisory["id"], *advisory["aliases"]])
    ]


def main() -> int:
    """Prints what is known; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="fail where the database does not answer")
    parser.add_argument("--report", action="store_true", help="print advisories without failing")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    answers: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, console.status("Asking the advisory database ..."):
        try:
            for pins in rounds():
                answers += ask(pins, Path(folder))
        except ConnectionError as error:
            console.print(f"audit: NOT DONE, the advisory database cannot be reached: {error}", markup=False)
            return int(options.strict)
    silent = sorted(answer["name"] for answer in answers if "skip_reason" in answer)
    advisories = open_advisories(answers)
    if advisories:
        table = Table("package", "version", "advisory", "mended in")
        for row in advisories:
            table.add_row(*row)
        console.print(table)
    told = f"audit: {len(answers) - len(silent)} of {len(answers)} pinned releases answered for"
    console.print(f"{told}, {len(advisories)} open advisories.")
    if silent:
        shown = ", ".join(silent[:6]) + (" ..." if len(silent) > 6 else "")
        console.print(f"audit: NOT DONE for {len(silent)} releases that the database does not know: {shown}")
    return int((bool(advisories) and not options.report) or (bool(silent) and options.strict))


if __name__ == "__main__":
    sys.exit(main())
