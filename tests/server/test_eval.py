"""`triton-voice eval` on a real server: every part measured, everything written, and a floor that breaks."""

from __future__ import annotations

import json

import pytest
import soundfile
from typer.testing import CliRunner

from support import SAMPLE_RATE, speechlike
from triton_voice.cli.app import app

TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def sets(tmp_path):
    """A small set of each kind; what random weights make of it is nonsense, the figures are not."""
    for name, seconds in (("a", 1.0), ("b", 1.5), ("quiet", 0.5)):
        soundfile.write(tmp_path / f"{name}.flac", speechlike(seconds, seed=len(name)), SAMPLE_RATE)
    files = {
        "speech": [
            {"audio_filepath": "a.flac", "duration": 1.0, "text": "one two three", "voice": "x"},
            {"audio_filepath": "b.flac", "duration": 1.5, "text": "four", "voice": "y"},
            {"audio_filepath": "quiet.flac", "duration": 0.5, "text": "", "voice": "y"},
        ],
        "texts": [{"text": "Hello there."}, {"text": "It is 7 PM.", "spoken": "It is seven P M."}],
        "dialogues": [
            {"group": "hello", "messages": [{"role": "user", "content": "Hi"}], "accepted": ["Hello."]},
            {"group": "time", "messages": [{"role": "user", "content": "Time?"}], "tools": [TIME], "reasoning": True,
             "call": {"name": "get_time", "arguments": {}}},
        ],
    }  # fmt: skip
    for name, entries in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


def run(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_every_part_is_measured_through_the_server(server, sets, tiny):
    result = run(
        "--server", server.grpc, "--manifest", sets / "speech.jsonl", "--texts", sets / "texts.jsonl",
        "--dialogues", sets / "dialogues.jsonl", "--latency", "160,1120", "--group-by", "voice", "--voices", "aria,leo",
        "--max-seconds", 1, "--jobs", 2, "--offline", "--parakeet", tiny.parakeet, "--max-offline-wer", 0,
        "--json", sets / "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = json.loads((sets / "out.json").read_text())
    assert [row["latency_ms"] for row in written["hearing"]] == [160, 1120]
    for row in written["hearing"]:
        assert (row["files"], row["words"], row["silences"]) == (3, 4, 1)
        assert row["wer"] == pytest.approx((row["substitutions"] + row["insertions"] + row["deletions"]) / 4, abs=1e-4)
        assert row["offline_wer"] == 0  # what the server streams is what NeMo says of the whole file
        assert set(row["groups"]) == {"x", "y"}
        assert row["misheard"][0]["heard"]
    assert [row["voice"] for row in written["speaking"]] == ["aria", "leo"]
    assert all(row["texts"] == 2 and row["words"] == 7 and 0 < row["seconds"] <= 2.1 for row in written["speaking"])
    (answers,) = written["answering"]
    assert (answers["questions"], answers["asked_to_think"], answers["thought"]) == (2, 1, 1)
    assert set(answers["groups"]) == {"hello", "time"}
    assert written["fallen"] == []


def test_a_figure_that_falls_through_its_floor_fails_the_command(server, sets):
    result = run("--server", server.grpc, "--dialogues", sets / "dialogues.jsonl", "--limit", 1, "--min-accuracy", 0.95,
                 "--json", sets / "out.json")  # fmt: skip
    assert result.exit_code == 1
    told = "right answers: 0.00%, allowed is at least 95.00%"
    assert told in result.output
    assert json.loads((sets / "out.json").read_text())["fallen"] == [told]


def test_without_a_choice_every_lookahead_of_the_checkpoint_is_measured(server, sets):
    result = run("--server", server.grpc, "--manifest", sets / "speech.jsonl", "--json", sets / "out.json")
    assert result.exit_code == 0, result.output
    assert [row["latency_ms"] for row in json.loads((sets / "out.json").read_text())["hearing"]] == [80, 160, 560, 1120]


def test_what_the_checkpoint_does_not_offer_is_refused_in_its_words(server, sets):
    result = run("--server", server.grpc, "--manifest", sets / "speech.jsonl", "--latency", 100)
    assert result.exit_code == 1
    assert "latency_ms 100 is not offered" in str(result.exception)
