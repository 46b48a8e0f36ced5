"""Which chunk the benchmark's callers send when, and what is read from a server's metrics."""

from __future__ import annotations

import numpy as np
import pytest

from triton_voice_bench.asr import AsrBench
from triton_voice_bench.asr_callers import Plan
from triton_voice_bench.observe import CpuMeter, Metrics

AUDIO = np.arange(16000, dtype=np.int16)


def plan(streams: int = 4, seconds: float = 20.0) -> Plan:
    return AsrBench([streams], seconds=seconds).plan("127.0.0.1:1", AUDIO, streams)


def test_a_stream_goes_round_the_audio_without_a_seam():
    said = np.concatenate([plan().piece(1, chunk) for chunk in range(10)])
    assert len(said) == 10 * 2560
    assert said[0] == 4000
    assert set(np.diff(said)) == {1, 1 - 16000} or set(np.diff(said.astype(int))) == {1, 1 - 16000}


def test_every_stream_ends_its_last_utterance_and_they_do_not_all_end_at_once():
    p = plan(streams=8)
    ends = [{chunk for chunk in range(p.chunks) if p.closes(stream, chunk)} for stream in range(8)]
    assert p.chunks == 125
    assert all(p.chunks - 1 in chunks for chunks in ends)
    assert len({min(chunks) for chunks in ends}) == 8
    gaps = np.diff(sorted(ends[0]))
    assert gaps.max() == p.utterance_chunks == 19


def test_a_histograms_mean_over_a_run():
    before = Metrics({"x_sum": 5.0, "x_count": 10.0})
    assert Metrics({"x_sum": 8.0, "x_count": 16.0}).mean_since(before, "x") == pytest.approx(0.5)
    assert before.mean_since(before, "x") is None
    assert Metrics().mean_since(Metrics(), "x") is None
    assert Metrics.scrape("http://127.0.0.1:9/metrics").totals == {}


def test_a_server_elsewhere_has_no_processor_time_here():
    assert CpuMeter("192.0.2.1:8001").percent() is None
    assert CpuMeter("127.0.0.1:9").percent() is None
