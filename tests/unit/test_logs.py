"""Logs as JSON lines: what Triton writes, what is followed, how a flood is kept small, what is left out."""

from __future__ import annotations

import datetime
import io
import json
import logging
import time

import pytest
from loguru import logger

from incidents import MAX_LINES_PER_S, Incidents, conversation_of
from triton_voice.logs import JsonLines, following, triton_line
from triton_voice.paths import project_root
from voice_bot import logs


@pytest.fixture
def bot_log():
    """Sets the bot's log up on a file of memory; afterwards loguru writes nowhere."""

    def set_up(form, verbose=False):
        out = io.StringIO()
        logs.set_up(form, verbose, out)
        return lambda: out.getvalue().splitlines()

    handlers, level = logging.root.handlers[:], logging.root.level
    yield set_up
    logger.remove()
    logging.basicConfig(handlers=handlers, level=level, force=True)


def test_lines_of_triton_and_of_its_models_become_objects():
    told = json.loads(
        triton_line('W1120 17:15:03.723314 4725 model.py:88] "[magpie] refused conversation=ab-1 all \\"8\\" speak"')
    )
    assert told["message"] == '[magpie] refused conversation=ab-1 all "8" speak'
    assert (told["level"], told["where"], told["conversation"]) == ("warning", "model.py:88", "ab-1")
    at = datetime.datetime.fromisoformat(told["time"]).astimezone()  # Triton's clock is the machine's
    assert (at.month, at.day, at.hour, at.minute, at.second) == (11, 20, 17, 15, 3)
    printed = json.loads(triton_line("Traceback (most recent call last):"))
    assert printed["message"] == "Traceback (most recent call last):" and "conversation" not in printed


def test_a_file_is_followed_from_its_beginning_to_its_last_line_and_anew_when_it_begins_anew(tmp_path):
    path, lines = tmp_path / "log", []
    path.write_text("of a former run\n")
    with following(path, lines.append):
        path.write_text("one\ntwo\nthr")
        with path.open("a") as file:
            file.write("ee\n")
        while len(lines) < 3:
            time.sleep(0.02)
        path.write_text("new\n")
        while len(lines) < 4:
            time.sleep(0.02)
        with path.open("a") as file:
            file.write("last\n")
    assert lines == ["one", "two", "three", "new", "last"]


def test_what_a_command_prints_becomes_objects():
    out = io.StringIO()
    JsonLines(out, "serve").write("ready\n\nstop")
    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (line["logger"], line["message"]) == ("serve", "ready")


def test_a_flood_of_bad_requests_leaves_few_lines_and_says_how_many_are_missing():
    now, lines = [0.0], []
    incidents = Incidents("magpie", lines.append, lambda: now[0])
    for _ in range(1000):
        incidents.note("invalid", "c1", "no\nsuch voice " + "x" * 10000)
    assert len(lines) == MAX_LINES_PER_S
    assert lines[0].startswith("[magpie] invalid conversation=c1 no such voice xxx") and len(lines[0]) < 400
    now[0] = 1.5
    incidents.note("refused", "", "all 8 voices speak")
    assert lines[-2:] == [
        f"[magpie] {1000 - MAX_LINES_PER_S} more lines of this kind were left out",
        "[magpie] refused conversation=- all 8 voices speak",
    ]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\nb", 7, None, "ü"])
def test_an_id_that_does_not_belong_into_a_log_is_left_out(given):
    assert conversation_of({"triton_voice_conversation": given}) == ""
    assert conversation_of({"triton_voice_conversation": "a-1_b.c"}) == "a-1_b.c"


def test_the_three_models_keep_the_same_book_of_incidents():
    folders = ("model_repository/parakeet/1", "model_repository/magpie/1", "backends/vllm")
    books = {(project_root() / folder / "incidents.py").read_text() for folder in folders}
    assert len(books) == 1, "each folder stands alone, so each has a copy"


def test_the_bots_log_has_the_conversation_and_neither_words_nor_variables(bot_log):
    lines = bot_log("json")
    with logger.contextualize(conversation="c1"):
        token, said = "s3cret-token", "my own words"
        logger.warning(f"TTS: service is no longer usable, not speaking [{said}]")
        try:
            raise RuntimeError(said)
        except RuntimeError:
            logger.exception("the conversation broke down")
        logger.debug(f"heard: {said}")
    logging.getLogger("aiortc").warning("a candidate failed")
    told = [json.loads(line) for line in lines()]
    assert [(t["level"], t.get("conversation"), t["logger"]) for t in told] == [
        ("warning", "c1", __name__),
        ("error", "c1", __name__),
        ("warning", None, "aiortc"),
    ]
    assert told[1]["error"] == "RuntimeError"
    assert said not in "".join(lines()) and token not in "".join(lines())


def test_a_traceback_in_plain_words_shows_no_variables_and_verbose_shows_the_words(bot_log):
    lines = bot_log("text")
    token = "s3cret-token"
    try:
        json.loads("{" + token[:0])
    except ValueError:
        logger.exception("broken")
    assert "Traceback" in "".join(lines()) and token not in "".join(lines())
    lines = bot_log("text", verbose=True)
    logger.debug("heard: my own words")
    assert "my own words" in "".join(lines())
