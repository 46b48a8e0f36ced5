"""What perf_analyzer is given, how it is found, and what is read from real exports of it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from triton_voice.errors import InvalidInput, TritonVoiceError
from triton_voice_bench import perf_analyzer, perf_analyzer_binary, perf_analyzer_export
from triton_voice_bench.perf_analyzer import PerfAnalyzerBench
from triton_voice_bench.perf_analyzer_binary import Tool

EXPORTS = Path(__file__).parent / "exports"
"""Exports of perf_analyzer 2.50.0 against the small trained checkpoints: a few requests each, samples set to zero."""
TOOL = Tool(Path("perf_analyzer"))


@pytest.fixture
def export(tmp_path):
    def unpacked(name):
        path = tmp_path / f"{name}.json"
        path.write_bytes(gzip.decompress((EXPORTS / f"{name}.json.gz").read_bytes()))
        return path

    return unpacked


def milliseconds(request):
    return [(at - request["timestamp"]) / 1e6 for at in request["response_timestamps"]]


def requests_of(path):
    return json.loads(path.read_text())["experiments"][0]["requests"]


def test_the_recognisers_input_is_utterances_of_chunks_that_decode_to_the_audio():
    streams = perf_analyzer.utterances(np.arange(16000, dtype=np.int16))
    assert {len(stream) for stream in streams} == {perf_analyzer.UTTERANCE_CHUNKS}
    step = streams[1][0]["AUDIO"]
    samples = np.frombuffer(base64.b64decode(step["content"]["b64"]), "<i2")
    assert step["shape"] == [len(samples)] == [2560]
    assert samples[0] == 2000


@pytest.mark.parametrize(
    ("model", "tensor"), [("magpie", "TEXT"), ("nemotron", "chat_request"), ("nemotron-stock", "text_input")]
)
def test_the_others_get_one_request_a_line(model, tensor, tmp_path):
    asked = PerfAnalyzerBench(model, (1,), tmp_path / "new", tokens=7)
    perf_analyzer.write_input(asked)
    data = json.loads(asked.input.read_text())["data"]
    assert len(data) > 1 and all(isinstance(request[tensor][0], str) for request in data)
    if model == "nemotron":
        assert json.loads(data[0]["chat_request"][0])["max_tokens"] == 7


def test_each_model_gets_its_kind_of_load(tmp_path):
    paced = PerfAnalyzerBench("parakeet", (4,), tmp_path)
    words = perf_analyzer.command(paced, TOOL, "host:1", 4)
    assert {"--request-rate-range=25", "--num-of-sequences=4", "--serial-sequences"} <= set(words)
    closed = PerfAnalyzerBench("parakeet", (4,), tmp_path, realtime=False)
    assert "--concurrency-range=4" in perf_analyzer.command(closed, TOOL, "host:1", 4)
    listeners = PerfAnalyzerBench("magpie", (4,), tmp_path, requests=5, max_seconds=2)
    words = perf_analyzer.command(listeners, TOOL, "host:1", 4)
    assert {"--concurrency-range=4", "--request-count=20", "--request-parameter=max_seconds:2:int"} <= set(words)
    rates = PerfAnalyzerBench("nemotron-stock", (4,), tmp_path, rates=(0.5,), requests=5)
    words = perf_analyzer.command(rates, TOOL, "host:1", 0.5)
    assert {"--request-rate-range=0.5:0.5", "--request-count=5"} <= set(words)
    assert words[words.index("-m") + 1] == "nemotron"
    with pytest.raises(InvalidInput, match="speech"):
        PerfAnalyzerBench("parakeet", (4,), tmp_path, rates=(1.0,))


def test_time_to_first_audio_is_that_of_the_first_response_with_samples(export):
    path = export("magpie")
    (row,) = perf_analyzer_export.read(path)
    requests = requests_of(path)
    first = [milliseconds(request)[0] for request in requests]
    last = [milliseconds(request)[-1] for request in requests]
    assert row["model"] == "magpie" and row["requests"] == len(requests)
    assert row["first_audio_ms"]["p50"] == pytest.approx(np.median(first), abs=0.01)
    assert row["last_response_ms"]["p50"] == pytest.approx(np.median(last), abs=0.01)
    assert row["first_audio_ms"]["p99"] < row["last_response_ms"]["p50"] / 5, "perf_analyzer's headline is another"
    sounding = [
        [len(output["AUDIO"]) for output in request["response_outputs"] if isinstance(output["AUDIO"], list)]
        for request in requests
    ]
    assert row["rtfx"] == pytest.approx(sum(map(sum, sounding)) / 22050 / row["wall_s"], abs=0.01)


def test_a_player_that_runs_dry_is_counted(export):
    path = export("magpie")
    content = json.loads(path.read_text())
    for request in content["experiments"][0]["requests"]:  # chunks a hundred times faster than measured
        sent = request["timestamp"]
        request["response_timestamps"] = [sent + (at - sent) // 100 for at in request["response_timestamps"]]
    assert perf_analyzer_export.row(content["experiments"][0])["underruns"] == 0
    request["response_timestamps"][-2:] = [at + 60 * 10**9 for at in request["response_timestamps"][-2:]]
    assert perf_analyzer_export.row(content["experiments"][0])["underruns"] == 1


def test_the_first_token_is_the_first_response_with_text_and_tokens_are_those_of_the_usage(export):
    path = export("nemotron-chat")
    (row,) = perf_analyzer_export.read(path)
    requests = requests_of(path)
    assert row["first_token_ms"]["p99"] < row["last_response_ms"]["p50"]
    tokens = round(row["tokens_per_s"] * row["wall_s"])
    assert tokens == pytest.approx(48 * len(requests), abs=1), "as asked for by --tokens"


def test_the_stock_interface_counts_responses_and_waits_for_text(export):
    path = export("nemotron-stock")
    (row,) = perf_analyzer_export.read(path)
    requests = requests_of(path)
    spoken = [[bool(output["text_output"]) for output in request["response_outputs"]] for request in requests]
    expected = [
        milliseconds(request)[said.index(True)] for request, said in zip(requests, spoken, strict=True) if any(said)
    ]
    assert row["first_token_ms"]["p50"] == pytest.approx(np.median(expected), abs=0.01)
    assert row["tokens_per_s"] * row["wall_s"] == pytest.approx(sum(map(len, spoken)), rel=0.01)


def test_an_utterances_last_answer_is_its_final(export):
    path = export("parakeet")
    (row,) = perf_analyzer_export.read(path)
    requests = requests_of(path)
    finals = [milliseconds(request)[-1] for request in requests if request["response_outputs"][-1]["IS_FINAL"] is True]
    assert finals and row["final_ms"]["p50"] == pytest.approx(np.median(finals), abs=0.01)
    assert row["rtfx"] == pytest.approx(len(requests) * 0.16 / row["wall_s"], abs=0.01)
    assert row["requests_per_s_asked"] == 12.5


def test_what_is_no_export_is_refused(tmp_path, export):
    (tmp_path / "other.json").write_text('{"data": []}')
    for path in (tmp_path / "nowhere.json", tmp_path / "other.json"):
        with pytest.raises(InvalidInput, match="not an export"):
            perf_analyzer_export.read(path)
    path = export("magpie")
    content = json.loads(path.read_text())
    for request in content["experiments"][0]["requests"]:
        request["response_outputs"] = [{"LOGITS": 1} for _ in request["response_outputs"]]
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match="LOGITS"):
        perf_analyzer_export.read(path)


def test_one_that_is_missing_or_does_not_start_says_how_to_get_it(tmp_path):
    with pytest.raises(TritonVoiceError, match="tritonclient"):
        perf_analyzer_binary.find(tmp_path / "nowhere")
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libb64.so.0d' >&2; exit 127\n")
    broken.chmod(0o755)
    with pytest.raises(TritonVoiceError, match="libb64-0d"):
        perf_analyzer_binary.find(broken)


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
    assert words in perf_analyzer_binary.how_to_get(machine, libc)
