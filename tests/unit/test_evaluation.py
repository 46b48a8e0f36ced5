"""The arithmetic of `triton-voice eval`: what counts as right, what its files must hold, when a floor breaks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from triton_voice.errors import InvalidInput
from triton_voice.evaluation.answering import Answer, AnsweringResult
from triton_voice.evaluation.hearing import Heard, HearingResult, at_once
from triton_voice.evaluation.report import Floors, Report
from triton_voice.evaluation.sets import Line, Question, Recording, read_lines, read_manifest, read_questions
from triton_voice.evaluation.speaking import Said, SpeakingResult
from triton_voice.types import ToolCall

HI = [{"role": "user", "content": "Hi"}]


def write(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in entries) + "\n")
    return path


def heard(said: str, text: str, group: str = "") -> Heard:
    return Heard(Recording(Path("a.wav"), said, group), text, 1.0)


def said(spoken: str, text: str, seconds: float) -> Said:
    return Said(Line(spoken, spoken), "aria", text, seconds)


def answered(question: Question, reply: str = "", *calls: ToolCall) -> bool:
    return Answer(question, reply, "", calls).right


def test_word_errors_leave_silences_out_and_count_those_with_words():
    result = HearingResult(
        160,
        [
            heard("What's the time?", "whats the time", "anna"),
            heard("Turn on the lights.", "turn on the lights", "bob"),
            heard("", ""),
            heard("", "uh"),
        ],
    )
    row = result.row()
    assert (row["words"], row["substitutions"], row["insertions"], row["deletions"]) == (7, 1, 0, 0)
    assert row["wer"] == round(1 / 7, 5)
    assert (row["silences"], row["wrong_silences"]) == (2, 1)
    assert row["groups"] == {"anna": round(1 / 3, 5), "bob": 0.0}
    assert [each["heard"] for each in row["misheard"]] == ["whats the time", "uh"]
    assert "offline_wer" not in row


def test_streaming_is_compared_with_offline_in_words():
    same = HearingResult(160, [heard("x", "It is ten.")], ["it is ten"])
    assert same.row()["offline_wer"] == 0
    assert same.row()["offline_differs"] == []
    other = HearingResult(160, [heard("x", "it is"), heard("y", "two")], ["it is ten", "two"])
    assert other.row()["offline_wer"] == 0.25
    assert [each["offline"] for each in other.row()["offline_differs"]] == ["it is ten"]


def test_speech_that_does_not_end_or_ends_early_is_counted():
    assert not said("Okay.", "okay", 0.6).ran_away
    assert said("Okay.", "okay", 9.0).ran_away
    assert not said("It is ten in Oslo.", "it is ten in oslo", 1.5).truncated
    assert said("It is ten in Oslo.", "it is", 0.6).truncated
    assert said("It is ten in Oslo.", "it is ten in oslo", 0.2).truncated  # nobody speaks as fast
    assert not said("It is ten in Oslo.", "it ten in oslo", 1.5).truncated  # a word misheard is not a broken end
    assert said("Okay.", "", 0.0).truncated
    row = SpeakingResult("aria", [said("Okay.", "okay", 9.0), said("It is ten.", "it is ten", 1.1)]).row()
    assert (row["runaway"], row["truncated"], row["wer"], row["words"]) == (1, 0, 0.0, 4)
    assert row["seconds_per_word"] == round(10.1 / 4, 3)


def test_a_reply_is_right_by_its_words():
    question = Question(HI, accepted=("It is 7:05 PM.", "Seven."))
    assert answered(question, "it is 7:05 pm")
    assert answered(question, "Seven")
    assert not answered(question, "It is 7:06 PM.")
    assert not answered(question, "")
    assert not answered(question, "It is 7:05 PM.", ToolCall("1", "get_time", "{}"))
    loose = Question(HI, contains=("Paris", "twelve degrees"))
    assert answered(loose, "In Paris you can expect about twelve degrees today.")
    assert not answered(loose, "In Paris it is cold.")


def test_a_tool_call_is_right_by_name_and_arguments():
    question = Question(HI, call={"name": "get_weather", "arguments": {"city": "New York", "day": "today"}})
    right = ToolCall("1", "get_weather", '{"day": "Today", "city": "new york"}')
    assert answered(question, "", right)
    assert not answered(question, "", right, right)
    assert not answered(question, "", ToolCall("1", "get_weather", '{"city": "New York"}'))
    assert not answered(question, "", ToolCall("1", "get_time", right.arguments))
    assert not answered(question, "", ToolCall("1", "get_weather", "{"))
    assert not answered(question, "It is sunny.")
    assert answered(Question(HI, call={"name": "get_time"}), "", ToolCall("1", "get_time", ""))


def test_accuracy_is_told_by_group():
    questions = [
        Question(HI, accepted=("a",), group=group, reasoning=group == "sums") for group in ("sums", "sums", "x")
    ]
    row = AnsweringResult([Answer(q, reply, "so", ()) for q, reply in zip(questions, "aba", strict=True)]).row()
    assert row["groups"] == {"sums": {"right": 1, "asked": 2}, "x": {"right": 1, "asked": 1}}
    assert (row["right"], row["questions"], row["asked_to_think"], row["thought"]) == (2, 3, 2, 2)
    assert [each["reply"] for each in row["wrong"]] == ["b"]


def report() -> Report:
    made = Report("some weights")
    made.hearing = [{"latency_ms": 80, "wer": 0.05, "wrong_silences": 0}, {"latency_ms": 160, "wer": 0.02}]
    made.speaking = [{"voice": "leo", "wer": 0.2, "runaway": 1, "truncated": 0}]
    made.answering = [{"accuracy": 0.9}]
    return made


def test_floors_name_what_fell_through_and_where():
    assert report().fallen(Floors()) == []
    assert report().fallen(Floors(max_wer=0.05, max_runaways=1, min_accuracy=0.9)) == []
    told = report().fallen(Floors(max_wer=0.03, max_runaways=0, min_accuracy=0.95))
    assert told == [
        "word error rate at 80 ms: 5.00%, allowed is at most 3.00%",
        "runaways of leo: 1, allowed is at most 0",
        "right answers: 90.00%, allowed is at least 95.00%",
    ]


def test_a_floor_for_what_was_not_measured_is_refused():
    with pytest.raises(InvalidInput, match=r"--max-offline-wer .* was not measured"):
        report().fallen(Floors(max_offline_wer=0.0))


def test_a_manifest_names_files_relative_to_itself(tmp_path):
    entries = [{"audio_filepath": "a.wav", "text": "Hi", "duration": 1.0, "voice": "x"},
               {"audio_filepath": "/b.wav", "text": "", "voice": "y"}]  # fmt: skip
    path = write(tmp_path / "m.jsonl", *entries)
    assert read_manifest(path, "voice") == [
        Recording(tmp_path / "a.wav", "Hi", "x"),
        Recording(Path("/b.wav"), "", "y"),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 of .* is not JSON"),
        ("[]", "line 2 of .* is not a JSON object"),
        ({"text": "Hi"}, "line 2 of .* needs the strings audio_filepath and text"),
        ({"audio_filepath": "a.wav", "text": "Hi"}, "line 2 of .* has no field voice"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_named(tmp_path, line, told):
    path = write(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "text": "Hi", "voice": "x"}, line)
    with pytest.raises(InvalidInput, match=told):
        read_manifest(path, "voice")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"accepted": ["a"]}, "needs messages"),
        ({"messages": HI}, "says nothing of what is right"),
        ({"messages": HI, "accepted": "a"}, "accepted must be a list of strings"),
        ({"messages": HI, "call": "get_time"}, "call must be"),
    ],
)
def test_a_wrong_dialogue_is_named(tmp_path, entry, told):
    with pytest.raises(InvalidInput, match=told):
        read_questions(write(tmp_path / "d.jsonl", entry))


def test_texts_come_a_line_each_or_with_their_spoken_form(tmp_path):
    assert read_lines(write(tmp_path / "t.txt", "Hello.", "", "Bye.")) == [
        Line("Hello.", "Hello."),
        Line("Bye.", "Bye."),
    ]
    path = write(tmp_path / "t.jsonl", {"text": "7 PM", "spoken": "seven P M"}, {"text": "Hi"})
    assert read_lines(path) == [Line("7 PM", "seven P M"), Line("Hi", "Hi")]
    for name in ("e.txt", "e.jsonl"):
        with pytest.raises(InvalidInput, match="is empty"):
            read_lines(write(tmp_path / name, ""))
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_lines(tmp_path / "missing.txt")


async def test_many_are_measured_at_once_and_the_first_failure_ends_them():
    running = most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if item == 100:
                raise InvalidInput("no")
            return 2 * item
        finally:
            running -= 1

    assert await at_once(range(10), work, jobs=3) == [2 * item for item in range(10)]
    assert most == 3
    with pytest.raises(InvalidInput, match="no"):
        await at_once([1, 100, 2, 3], work, jobs=2)
    assert running == 0
