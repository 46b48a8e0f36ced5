"""Every `triton-voice` command that the documentation shows is one that the program has."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer.main

from support_docs import ROOT, commands, pages
from triton_voice.cli.app import app


def shown() -> list[tuple[str, str]]:
    return sorted({(str(page.relative_to(ROOT)), line) for page in pages() for line in commands(page.read_text())})


def problem(line: str) -> str | None:
    """What is wrong with a command line; None if its commands and options exist and take what they are given."""
    command: Any = typer.main.get_command(app)
    try:
        words = shlex.split(line)
    except ValueError as error:
        return str(error)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        # Several subcommands in one mention, as in `bench asr`, `tts-engine`: only the first word counts.
        found = command.commands.get(words[0].rstrip(","))
        if found is None:
            return None if words[0] == "..." else f"there is no command {words[0]}"
        command, words = found, words[1:]
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for word in words:
        name = word.partition("=")[0].rstrip(",")
        if name.startswith("-") and name not in ("-", "--help") and name not in options:
            return f"{command.name} has no option {name}"
    return None


@pytest.mark.parametrize(("page", "line"), shown())
def test_every_command_on_a_page_exists(page, line):
    assert problem(line) is None


def test_the_check_sees_commands_and_what_is_wrong_with_them():
    assert len(shown()) > 40
    assert problem("serve --models random --supervise") is None
    assert problem("serve --modles random") == "serve has no option --modles"
    assert problem("bench tss") == "there is no command tss"
