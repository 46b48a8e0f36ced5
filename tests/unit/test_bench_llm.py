"""The language model's benchmark: what it makes of times and tokens, and its plot."""

import contextlib
from pathlib import Path

import pytest

from triton_voice_bench import llm, plot
from triton_voice_bench.llm_sides import Round
from triton_voice_bench.report import Report


def one_round(firsts_s, gap_s, tokens, seconds, errors=(), render_ms=()):
    made = Round(seconds=seconds, errors=list(errors), render_ms=list(render_ms))
    for first in firsts_s:
        times = [10.0 + first + gap_s * index for index in range(tokens)]
        made.arrived(times, 10.0, tokens)
    return made


def test_a_row_compares_the_server_with_the_bare_engine_round_by_round():
    """The second round met a busy machine, on both sides; a median over all requests would say 5 ms added."""
    ours = llm.Tally([one_round([0.012, 0.014], 0.002, 100, 2.0), one_round([0.112, 0.114], 0.002, 100, 8.0)])
    bare = llm.Tally([one_round([0.010, 0.012], 0.001, 100, 1.5), one_round([0.110, 0.112], 0.001, 100, 6.0)])
    ours.rounds.append(one_round([0.013, 0.015], 0.002, 100, 2.0, ["ServerFull: busy", "ServerFull: busy"]))
    bare.rounds.append(one_round([0.010, 0.014], 0.001, 100, 1.5, render_ms=[0.5, 0.7]))
    ours.cpu_s, bare.cpu_s = {"client": 0.06, "server": 0.12, "backend": 0.3, "engine": 0.6}, {"client": 0.03}
    row = llm._row(2, {"": ours, "reference_": bare}, others_percent=3.0)
    assert row["streams"] == 2
    assert row["added_first_token_ms"] == pytest.approx(2)
    assert (row["tokens_per_s"], row["reference_tokens_per_s"]) == (100.0, 133.3)
    assert row["share_of_reference_tokens_per_s"] == pytest.approx(0.75, abs=1e-3)
    assert row["token_gap_ms"]["p95"] == pytest.approx(2)
    assert row["cpu_us_per_token"] == {"client": 100, "server": 200, "backend": 500, "engine": 1000}
    assert row["reference_cpu_us_per_token"] == {"client": 50, "engine": None}
    assert row["reference_render_ms"]["p50"] == pytest.approx(0.6)
    assert "render_ms" not in row  # within the server, nobody tells
    assert row["goal"] == "missed"
    assert (row["errors"], row["error_messages"]) == (2, ["ServerFull: busy"])


@pytest.mark.parametrize(
    ("first_s", "seconds", "others", "goal"),
    [(0.012, 1.02, 3.0, "met"), (0.016, 1.02, 3.0, "missed"), (0.012, 1.2, 3.0, "missed"), (0.012, 1, 40, "too busy")],
)
def test_the_goal_is_both_and_says_nothing_on_a_busy_machine(first_s, seconds, others, goal):
    ours = llm.Tally([one_round([first_s], 0.001, 10, seconds)])
    bare = llm.Tally([one_round([0.010], 0.001, 10, 1.0)])
    assert llm._row(1, {"": ours, "reference_": bare}, others)["goal"] == goal


def test_without_a_reference_nothing_is_said_of_it():
    row = llm._row(1, {"": llm.Tally([one_round([0.01], 0.001, 10, 1.0)])})
    assert not [name for name in row if "reference" in name or name == "goal"]


def test_a_side_that_answered_nothing_has_no_figures():
    ours, bare = Round(errors=["ServerGone: x"]), one_round([0.01], 0.001, 10, 1.0)
    row = llm._row(1, {"": llm.Tally([ours]), "reference_": llm.Tally([bare])})
    assert row["first_token_ms"] is None
    assert row["tokens_per_s"] is None
    assert "added_first_token_ms" not in row


def test_each_run_asks_questions_of_its_own_and_both_sides_the_same(monkeypatch):
    """A server remembers the prompts of the run before, the bare engine is new each time."""
    runs = []

    class Side(contextlib.nullcontext):
        def __init__(self, target):
            super().__init__(self)
            self.asks, self.seen = target.question, asked.setdefault(target.url, [])

        def parts(self):
            return {}

        def round(self, chats):
            self.seen.extend(self.asks(number) for chat in chats for number in chat)
            return one_round([0.01], 0.001, 10, 1.0)

    monkeypatch.setattr(llm, "Side", Side)
    for _ in range(2):
        asked = {}
        llm.run(llm.LlmBench((1, 2), rounds=2, questions=3, checkpoint="x"), "localhost:1", "made up")
        ours, bare = asked.values()
        assert ours == bare and len({*ours}) == len(ours) == 3 * (1 + 2) * 3
        runs.append(ours)
    assert not {*runs[0]} & {*runs[1]}
    assert [*map(len, runs[0])] == [*map(len, runs[1])]
    assert len({question.split()[0] for run in runs for question in run}) == 2  # prompts are cached from the front


def test_a_random_checkpoint_is_made_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_VOICE_CACHE", str(tmp_path))
    folder, about = llm.checkpoint("random:tiny")
    assert (Path(folder) / "config.json").is_file()
    assert "size tiny, random weights" in about
    with pytest.raises(ValueError, match=r"random:7B: the sizes are .*0\.2B"):
        llm.checkpoint("random:7B")
    assert llm.checkpoint("nvidia/x") == ("nvidia/x", "nvidia/x")


def test_the_figures_are_tabled_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report = Report("llm", "made up", {"reading": llm.READING})
    for streams in (1, 4):
        sides = {"": llm.Tally([one_round([0.01], 0.002, 50, 1.0)])}
        sides["reference_"] = llm.Tally([one_round([0.008], 0.001, 50, 1.0, render_ms=[0.6])])
        report.rows.append(llm._row(streams, sides, others_percent=1.0))
    assert len(report.table(llm.COLUMNS).columns) == len(llm.COLUMNS)
    report.write(tmp_path / "llm.json")
    plot.plot(tmp_path / "llm.json", tmp_path / "llm.png")
    assert (tmp_path / "llm.png").stat().st_size > 10_000
