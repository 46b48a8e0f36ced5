"""`triton-voice bench turn`, small."""

from __future__ import annotations

import asyncio

from triton_voice_bench.plot import plot
from triton_voice_bench.report import Report
from triton_voice_bench.turn import COLUMNS, STAGES, TurnBench, run


async def test_it_measures_turns_and_barge_ins_by_stage(server, tmp_path):
    asked = TurnBench((1, 2), turns=2, reply_tokens=40)
    report = await asyncio.to_thread(run, asked, server.grpc, "random weights")
    assert [row["streams"] for row in report.rows] == [1, 2]
    for row in report.rows:
        assert row["turns"] == 2 * row["streams"], row["error_messages"]
        assert set(row["turn_ms"]) == {"p50", "p90", "p95", "p99"}
        assert all(row[stage] is not None for stage in STAGES)
        assert row["turn_ms"]["p50"] >= row["endpointing_ms"]["p50"]
    assert report.settings["turn_taking"]["vad_stop_s"] == 0.2
    assert report.table(COLUMNS).row_count == 2
    report.write(tmp_path / "turn.json")
    assert Report.read(tmp_path / "turn.json").rows == report.rows
    plot(tmp_path / "turn.json", tmp_path / "turn.svg")
    assert (tmp_path / "turn.svg").stat().st_size > 1000
