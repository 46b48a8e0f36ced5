"""NVIDIA's perf_analyzer against a real server, where it is at hand."""

from __future__ import annotations

import pytest

from triton_voice.errors import TritonVoiceError
from triton_voice_bench import perf_analyzer, perf_analyzer_binary
from triton_voice_bench.perf_analyzer import PerfAnalyzerBench


@pytest.fixture(scope="module")
def tool():
    try:
        return perf_analyzer_binary.find()
    except TritonVoiceError:
        pytest.skip("no perf_analyzer: `triton-voice bench perf-analyzer --get` fetches it")


@pytest.mark.parametrize(
    ("model", "first"), [("magpie", "first_audio_ms"), ("nemotron", "first_token_ms"), ("parakeet", "final_ms")]
)
def test_every_model_is_measured_and_its_first_response_told(model, first, server, tool, tmp_path):
    if model not in server.server.settings.only:
        pytest.skip(f"this server has no {model}")
    asked = PerfAnalyzerBench(model, (2,), tmp_path, seconds=1.0, requests=2, tokens=8, max_seconds=1)
    report = perf_analyzer.run(asked, tool, server.grpc, "random weights")
    (row,) = report.rows
    assert row["model"] == model and row["requests"] >= 4 and row["errors"] == 0
    if model == "parakeet":
        assert row["chunk_ms"]["p50"] > 0 and row["requests_per_s_asked"] == 12.5
    else:
        assert 0 < row[first]["p50"] <= row["last_response_ms"]["p50"]
    assert list(tmp_path.glob("*.log"))


def test_a_server_that_is_not_there_is_said(tool, tmp_path):
    asked = PerfAnalyzerBench("magpie", (1,), tmp_path, requests=1)
    with pytest.raises(TritonVoiceError, match="failed to get model metadata"):
        perf_analyzer.run(asked, tool, "127.0.0.1:9", "")
