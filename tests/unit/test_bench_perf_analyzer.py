"""What perf_analyzer is given and what is read from its export."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from triton_voice.errors import TritonVoiceError
from triton_voice_bench import perf_analyzer
from triton_voice_bench.perf_analyzer import PerfAnalyzerBench

SECOND = 10**9


def test_the_input_is_utterances_of_chunks_that_decode_to_the_audio(tmp_path):
    audio = np.arange(16000, dtype=np.int16)
    perf_analyzer.write_input(tmp_path / "in" / "input.json", audio)
    streams = json.loads((tmp_path / "in" / "input.json").read_text())["data"]
    assert {len(stream) for stream in streams} == {perf_analyzer.UTTERANCE_CHUNKS}
    step = streams[1][0]["AUDIO"]
    samples = np.frombuffer(base64.b64decode(step["content"]["b64"]), "<i2")
    assert step["shape"] == [len(samples)] == [2560]
    assert samples[0] == 2000


def test_real_time_asks_for_the_rate_of_speech_and_one_request_at_a_time(tmp_path):
    paced = PerfAnalyzerBench((4,), True, 5.0, tmp_path)
    words = perf_analyzer.command(paced, Path("perf_analyzer"), "host:1", 4)
    assert {"--request-rate-range=25", "--num-of-sequences=4", "--serial-sequences"} <= set(words)
    closed = PerfAnalyzerBench((4,), False, 5.0, tmp_path)
    assert "--concurrency-range=4" in perf_analyzer.command(closed, Path("perf_analyzer"), "host:1", 4)


def test_an_export_becomes_a_row():
    requests = [
        {"timestamp": i * SECOND // 10, "response_timestamps": [i * SECOND // 10 + 7_000_000]} for i in range(11)
    ]
    requests.append({"timestamp": SECOND, "response_timestamps": []})
    row = perf_analyzer.row(2, 12.5, {"experiments": [{"requests": requests}]}, "")
    assert row["chunk_ms"]["p99"] == pytest.approx(7.0)
    assert row["requests_per_s"] == pytest.approx(10.0)
    assert row["rtfx"] == pytest.approx(1.6)
    assert (row["requests"], row["errors"], row["stable"]) == (11, 1, True)


def test_one_that_is_missing_or_does_not_start_says_how_to_get_it(tmp_path):
    with pytest.raises(TritonVoiceError, match="tritonclient"):
        perf_analyzer.find(tmp_path / "nowhere")
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libb64.so.0d' >&2; exit 127\n")
    broken.chmod(0o755)
    with pytest.raises(TritonVoiceError, match="libb64-0d"):
        perf_analyzer.find(broken)


@pytest.mark.parametrize(
    ("machine", "libc", "words"),
    [
        ("x86_64", "2.36", "tritonclient==2.50.0"),
        ("x86_64", "2.39", "tritonclient==2.55.0"),
        ("aarch64", "2.39", "tritonclient==2.55.0"),
        ("aarch64", "2.36", "SDK image"),
    ],
)
def test_each_system_is_told_the_wheel_that_runs_on_it(machine, libc, words):
    assert words in perf_analyzer.how_to_get(machine, libc)
