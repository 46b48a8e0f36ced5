"""Settings: flags, environment and the tables in the bot's README are one and the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from triton_voice.cli.app import app
from triton_voice.cli.bot import TALK_FIELDS
from voice_bot.settings import ENV_PREFIX, TURN_ENV_PREFIX, BotSettings, TurnTaking

README = Path(__file__).resolve().parents[2] / "bot" / "README.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in (*BotSettings.model_fields, *TurnTaking.model_fields):
        monkeypatch.delenv(f"{ENV_PREFIX}{name}".upper(), raising=False)
        monkeypatch.delenv(f"{TURN_ENV_PREFIX}{name}".upper(), raising=False)


def flags(command: str) -> set[str]:
    return {option for p in get_command(app).commands[command].params for option in p.opts}


def shown(default: object) -> str:
    """A default as the table has it."""
    if default is None or default in ((), ""):
        return ""
    return f"`{', '.join(default) if isinstance(default, tuple) else default}`"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the README."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_every_setting_is_a_flag_of_the_bot_and_those_of_talk_exist():
    assert {f"--{name.replace('_', '-')}" for name in BotSettings.model_fields} <= flags("bot")
    assert {f"--{name.replace('_', '-')}" for name in TALK_FIELDS} <= flags("talk")
    assert set(TALK_FIELDS) <= set(BotSettings.model_fields)


def test_the_readme_has_every_setting_with_its_default_and_meaning():
    expected = [
        [f"`--{name.replace('_', '-')}`", shown(field.default), field.description]
        for name, field in BotSettings.model_fields.items()
    ]
    assert rows("Configuration") == expected


def test_the_readme_has_every_value_of_turn_taking_with_its_reason():
    expected = [
        [f"`{TURN_ENV_PREFIX}{name.upper()}`", shown(field.default), field.description]
        for name, field in TurnTaking.model_fields.items()
    ]
    assert rows("Turn-taking") == expected


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("TRITON_VOICE_BOT_MAX_CONVERSATIONS", "3")
    monkeypatch.setenv("TRITON_VOICE_BOT_LANGUAGES", "en, de")
    monkeypatch.setenv("TRITON_VOICE_TURN_VAD_STOP_S", "0.3")
    monkeypatch.setenv("TRITON_VOICE_TURN_BACKCHANNELS", "Hm,Aha")
    assert BotSettings().max_conversations == 3
    assert BotSettings().languages == ("en", "de")
    assert TurnTaking().vad_stop_s == 0.3
    assert TurnTaking().backchannels == ("hm", "aha")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"voice": "bob"}, "voice 'bob' is none of the voices aria"),
        ({"language": "tlh"}, "language 'tlh' is none of the languages en"),
        ({"tls_cert": README}, "belong together"),
        ({"tls_cert": README, "tls_key": README.parent / "none.pem"}, "there is no file"),
        ({"port": 70000}, "less than or equal to 65535"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_words(settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        BotSettings(**settings)


def test_the_watchdog_is_the_longest_limit():
    with pytest.raises(ValidationError, match="longer than"):
        TurnTaking(incomplete_timeout_s=6)


def test_a_server_cannot_be_named_and_started():
    result = CliRunner().invoke(app, ["bot", "--server", "127.0.0.1:1", "--serve"])
    assert result.exit_code == 1
    assert "do not name another one" in result.output + result.stderr


def test_a_port_that_is_taken_is_said_to_be():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["bot", "--server", "127.0.0.1:1", "--port", port])
    assert result.exit_code == 1
    assert "try another --port" in result.output + result.stderr


def test_talk_without_an_audio_device_says_so():
    result = CliRunner().invoke(app, ["talk", "--server", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert re.search("microphone|loudspeaker", str(result.exception))
