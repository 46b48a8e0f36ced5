"""The bare engine's benchmark on the tiny checkpoint."""

from __future__ import annotations

import pytest
import torch

from triton_voice.errors import InvalidInput
from triton_voice_bench import asr_engine
from triton_voice_bench.asr_engine import EngineBench


def bench(tiny, **options) -> EngineBench:
    return EngineBench(str(tiny.parakeet), **{"batches": (1, 4), "device": "cpu", "steps": 6, **options})


@pytest.fixture(scope="module")
def report(tiny):
    return asr_engine.run(bench(tiny), "random weights")


def test_a_row_for_each_batch_with_floor_and_upstream_in_the_same_run(report):
    assert report.bench == "asr-engine"
    assert [row["batch"] for row in report.rows] == [1, 4]
    for row in report.rows:
        assert row["skipped"] is None
        assert row["steps"] == 6
        assert row["step_ms"] > 0
        assert set(row["step_percentiles_ms"]) == {"p50", "p90", "p95", "p99"}
        assert row["final_ms"]["p99"] >= row["final_ms"]["p50"] > 0
        assert row["floor_ms"] > 0
        assert row["reference_ms"] > 0
        assert row["live_streams"] > 0
        assert row["reference_live_streams"] > 0
        assert row["state_bytes"] == report.rows[0]["state_bytes"] > 0


def test_the_floor_is_the_weights_over_the_bandwidth(report, tiny):
    settings = report.settings
    floor_ms = settings["weight_bytes"] / settings["bandwidth_gb_s"] / 1e6
    assert report.rows[0]["floor_ms"] == pytest.approx(floor_ms, abs=1e-3)


def test_half_the_precision_reads_half_the_weights(report, tiny):
    half = asr_engine.run(bench(tiny, batches=(1,), precision="bfloat16", steps=5), "random weights")
    assert half.settings["weight_bytes"] * 2 == report.settings["weight_bytes"]
    assert half.rows[0]["state_bytes"] < report.rows[0]["state_bytes"]


def test_what_takes_too_long_or_does_not_fit_is_skipped_with_the_reason(tiny):
    slow = asr_engine.run(bench(tiny, batches=(1, 2, 10**9), row_seconds=1e-6), "random weights")
    reasons = [row["skipped"] for row in slow.rows]
    assert [row["step_ms"] for row in slow.rows] == [None] * 3
    assert "a step takes" in reasons[0]
    assert "1 streams a step were too much" in reasons[1]
    assert "GiB are free" in reasons[2]


def test_a_latency_or_device_that_is_not_there_is_refused(tiny):
    with pytest.raises(InvalidInput, match="80, 160, 560, 1120"):
        asr_engine.run(bench(tiny, latency_ms=200), "")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="no CUDA device"):
            asr_engine.run(bench(tiny, device="cuda"), "")
