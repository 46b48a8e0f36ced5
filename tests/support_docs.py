"""Reads the project's Markdown: links, headings, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("node_modules", "build", "dist")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")


def pages() -> list[Path]:
    """Every Markdown file of the project, without what tools put there."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(ROOT).parts)
    )


def prose(text: str) -> str:
    """The text without fenced blocks and code spans."""
    kept, inside = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return re.sub(r"(`+)(?:.|\n)*?\1", "", "\n".join(kept))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    inside = False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        heading = None if inside else re.match(r"#{1,6} +(.*?) *#*$", line)
        if heading is None:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1))
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = 0
        while (anchor := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(anchor)
    return found


def links(text: str) -> Iterator[str]:
    """The targets of a page's links and pictures."""
    for found in re.finditer(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose(text)):
        yield found.group(1)
    for found in re.finditer(r"<(?:img|source)[^>]*?(?:src|srcset)=\"([^\"]+)\"", prose(text)):
        yield found.group(1)


def fenced(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Every `triton-voice ...` command line on a page: in blocks and code spans, without the program's name."""
    joined = re.sub(r" *\\\n\s*>?", " ", text)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", joined, flags=re.MULTILINE | re.DOTALL))
    lines = [line.strip() for line in joined.splitlines() if line.startswith(("$ ", "    "))]
    for candidate in [*spans, *lines]:
        words = " ".join(candidate.split()).removeprefix("$ ")
        found = re.match(r"(?:[A-Z_]+=\S+ )*(?:\S*/)?triton-voice( [^#|;>&]*)?", words)
        if found and found.group(1):
            yield found.group(1).strip()
