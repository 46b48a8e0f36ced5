"""The language model's benchmark: what it makes of times and tokens, and its plot."""

import pytest

from triton_voice_bench import llm, plot
from triton_voice_bench.report import Report


def tally(first_s, gaps, tokens, seconds, errors=()):
    made = llm.Tally(errors=list(errors))
    for first in first_s:
        times = [10.0 + first + gap * index for index, gap in enumerate([gaps] * tokens)]
        made.arrived(times, 10.0, tokens)
    made.seconds = seconds
    return made


def test_a_row_compares_the_server_with_the_bare_engine():
    ours = tally([0.012, 0.014, 0.016], 0.002, 100, 2.0, ["ServerFull: busy", "ServerFull: busy"])
    bare = tally([0.010, 0.011, 0.012], 0.001, 100, 1.5)
    row = llm._row(3, {"": ours, "reference_": bare})
    assert row["streams"] == 3
    assert row["first_token_ms"]["p50"] == pytest.approx(14)
    assert row["reference_first_token_ms"]["p50"] == pytest.approx(11)
    assert row["added_first_token_ms"] == pytest.approx(3)
    assert row["token_gap_ms"]["p95"] == pytest.approx(2)
    assert (row["tokens_per_s"], row["reference_tokens_per_s"]) == (150.0, 200.0)
    assert row["share_of_reference_tokens_per_s"] == 0.75
    assert (row["errors"], row["error_messages"]) == (2, ["ServerFull: busy"])


def test_without_a_reference_nothing_is_said_of_it():
    row = llm._row(1, {"": tally([0.01], 0.001, 10, 1.0)})
    assert not [name for name in row if "reference" in name]


def test_a_side_that_answered_nothing_has_no_figures():
    row = llm._row(1, {"": llm.Tally(errors=["ServerGone: x"]), "reference_": tally([0.01], 0.001, 10, 1.0)})
    assert row["first_token_ms"] is None
    assert row["tokens_per_s"] is None
    assert "added_first_token_ms" not in row


def test_the_figures_are_tabled_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report = Report("llm", "made up", {"reading": llm.READING})
    for streams in (1, 4):
        sides = {"": tally([0.01], 0.002, 50, 1.0), "reference_": tally([0.008], 0.001, 50, 1.0)}
        report.rows.append(llm._row(streams, sides))
    assert len(report.table(llm.COLUMNS).columns) == len(llm.COLUMNS)
    report.write(tmp_path / "llm.json")
    plot.plot(tmp_path / "llm.json", tmp_path / "llm.png")
    assert (tmp_path / "llm.png").stat().st_size > 10_000
