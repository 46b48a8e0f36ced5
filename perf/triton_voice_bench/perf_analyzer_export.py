"""Reads perf_analyzer's `--profile-export-file`: what a listener and a reader saw, not when the last response came.

perf_analyzer's own latency of a decoupled model ends with the last response. The export has the time of every response
and the text and audio in it, so time to first audio, gaps, underruns and tokens a second follow from it. The numbers of
integer outputs in it are not used: perf_analyzer 2.50 writes whatever lies in memory there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_voice.errors import InvalidInput
from triton_voice.types import ASR_SAMPLE_RATE, TTS_SAMPLE_RATE
from triton_voice_bench.report import Row, percentiles
from triton_voice_bench.tts import Player

NANOSECONDS_PER_MS = 1e6
MODELS = ("parakeet", "magpie", "nemotron")
READING = {
    "last_response_ms": "from sending a request to its last response: what perf_analyzer prints as latency",
    "chunk_ms": "parakeet: from sending a request to its answer; perf_analyzer's clock, closed loop",
    "final_ms": "parakeet: the same for the request that ends an utterance",
    "first_audio_ms": "magpie: from sending a request to its first response with samples",
    "chunk_gap_ms": "magpie: between responses with samples of one request",
    "underruns": "magpie: times that a player which starts with the first chunk ran dry before the last",
    "rtfx": "seconds of audio (magpie: received, parakeet: sent) for each second of the run",
    "first_token_ms": "nemotron: from sending a request to its first response with text",
    "token_gap_ms": "nemotron: between responses with text of one request",
    "tokens_per_s": "nemotron: all requests together; tokens by the usage of chat, else one for each response",
    "stable": "parakeet: perf_analyzer found three windows within its limit (25 %)",
    "requests_per_s": "answered requests by the time from the first one's sending to the last one's",
}
COLUMNS = (
    ("model", "model"),
    ("streams", "streams"),
    ("asked\nrequests/s", "requests_per_s_asked"),
    ("requests/s", "requests_per_s"),
    ("last response ms\np50 90 95 99", "last_response_ms"),
    ("chunk ms\np50 90 95 99", "chunk_ms"),
    ("final ms\np50 90 95 99", "final_ms"),
    ("first audio ms\np50 90 95 99", "first_audio_ms"),
    ("chunk gap ms\np50 90 95 99", "chunk_gap_ms"),
    ("underruns", "underruns"),
    ("first token ms\np50 90 95 99", "first_token_ms"),
    ("token gap ms\np50 90 95 99", "token_gap_ms"),
    ("tokens/s", "tokens_per_s"),
    ("x real\ntime", "rtfx"),
    ("requests", "requests"),
    ("errors", "errors"),
    ("stable", "stable"),
)


@dataclass
class _Answer:
    """One request and its responses that carry something: milliseconds from sending it, and what they carry."""

    sent_ns: int
    times_ms: list[float]
    outputs: list[dict[str, Any]]
    sent: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Row]:
    """Reads an export.

    Args:
        path: What `--profile-export-file` wrote.

    Returns:
        A row for each experiment, which is one concurrency or one request rate.

    Raises:
        InvalidInput: It is not there, not an export, or of a model that this project does not have.
    """
    try:
        content = json.loads(path.read_text())
        experiments = content["experiments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is not an export of perf_analyzer's --profile-export-file: {error}") from None
    return [row(experiment) for experiment in experiments]


def row(experiment: dict[str, Any]) -> Row:
    """Turns one experiment of an export into a row.

    Args:
        experiment: Its object in the export: `{"experiment", "requests", ...}`; times in nanoseconds.

    Raises:
        InvalidInput: No request was answered, or the outputs are of no model of this project.
    """
    asked = experiment["experiment"]
    answers = [_answer(request) for request in experiment["requests"] if request["response_timestamps"]]
    if not answers:
        raise InvalidInput(f"no request was answered at {asked['mode']} {asked['value']:g}")
    model = _model(answers)
    sent = [answer.sent_ns for answer in answers]
    sending_s = (max(sent) - min(sent)) / 1e9
    ended_ns = max(answer.sent_ns + answer.times_ms[-1] * NANOSECONDS_PER_MS for answer in answers)
    wall_s = (ended_ns - min(sent)) / 1e9
    result: Row = {
        "model": model,
        "streams": int(asked["value"]) if asked["mode"] == "concurrency" else None,
        "requests_per_s_asked": asked["value"] if asked["mode"] == "request_rate" else None,
        "requests_per_s": round((len(answers) - 1) / sending_s, 2) if sending_s else None,
        "last_response_ms": percentiles(answer.times_ms[-1] for answer in answers),
        "requests": len(answers),
        "errors": len(experiment["requests"]) - len(answers),
        "wall_s": round(wall_s, 3),
    }
    return {**result, **_OF_MODEL[model](answers, wall_s)}


def _answer(request: dict[str, Any]) -> _Answer:
    sent = request["timestamp"]
    times = [(at - sent) / NANOSECONDS_PER_MS for at in request["response_timestamps"]]
    outputs = request.get("response_outputs") or [{} for _ in times]
    return _Answer(sent, times, outputs, request.get("request_inputs") or {})


def _model(answers: Sequence[_Answer]) -> str:
    names = {name for answer in answers for output in answer.outputs for name in output}
    for model, output in (("parakeet", "TRANSCRIPT"), ("magpie", "AUDIO"), ("nemotron", "text_output")):
        if output in names:
            return model
    raise InvalidInput(f"the outputs {', '.join(sorted(names)) or '(none)'} are of none of {', '.join(MODELS)}")


def _parakeet(answers: Sequence[_Answer], wall_s: float) -> Row:
    chunk_ms: list[float] = []
    final_ms: list[float] = []
    samples = 0
    for answer in answers:
        is_final = answer.outputs[-1].get("IS_FINAL") is True
        (final_ms if is_final else chunk_ms).append(answer.times_ms[-1])
        samples += _length(answer.sent.get("AUDIO"))
    audio_s = samples / ASR_SAMPLE_RATE
    return {
        "chunk_ms": percentiles(chunk_ms),
        "final_ms": percentiles(final_ms),
        "rtfx": round(audio_s / wall_s, 2) if audio_s else None,
    }


def _magpie(answers: Sequence[_Answer], wall_s: float) -> Row:
    first_ms: list[float] = []
    gaps_ms: list[float] = []
    underruns, samples = 0, 0
    for answer in answers:
        sounding = [
            (at, length)
            for at, output in zip(answer.times_ms, answer.outputs, strict=True)
            if (length := _length(output.get("AUDIO")))
        ]
        if not sounding:
            continue
        player = Player()
        for at, length in sounding:
            player.receive(length / TTS_SAMPLE_RATE, at / 1000)
            samples += length
        underruns += player.underruns
        first_ms.append(sounding[0][0])
        gaps_ms += [later - at for (at, _), (later, _) in itertools.pairwise(sounding)]
    return {
        "first_audio_ms": percentiles(first_ms),
        "chunk_gap_ms": percentiles(gaps_ms),
        "underruns": underruns,
        "rtfx": round(samples / TTS_SAMPLE_RATE / wall_s, 2),
    }


def _nemotron(answers: Sequence[_Answer], wall_s: float) -> Row:
    first_ms: list[float] = []
    gaps_ms: list[float] = []
    tokens = 0
    for answer in answers:
        counted = None
        times = []
        for at, output in zip(answer.times_ms, answer.outputs, strict=True):
            text, usage = _said(output)
            counted = usage if usage is not None else counted
            if text:
                times.append(at)
        tokens += len(answer.times_ms) if counted is None else counted
        if times:
            first_ms.append(times[0])
            gaps_ms += [later - at for at, later in itertools.pairwise(times)]
    return {
        "first_token_ms": percentiles(first_ms),
        "token_gap_ms": percentiles(gaps_ms),
        "tokens_per_s": round(tokens / wall_s, 1),
    }


def _said(output: dict[str, Any]) -> tuple[bool, int | None]:
    """Whether a response has text, and the reply's length if it tells it."""
    if not (chunk := output.get("chat_chunk")):
        return bool(output.get("text_output")), None
    try:
        parsed = json.loads(chunk)
    except ValueError:
        return True, None
    deltas = [choice.get("delta", {}) for choice in parsed.get("choices", ())]
    said = any(delta.get(name) for delta in deltas for name in ("content", "reasoning_content", "tool_calls"))
    usage = parsed.get("usage") or {}
    return said, usage.get("completion_tokens")


def _length(values: Any) -> int:
    """Elements of a tensor in the export: a list, or a bare number where it has one element or none."""
    return len(values) if isinstance(values, list) else 0


_OF_MODEL = {"parakeet": _parakeet, "magpie": _magpie, "nemotron": _nemotron}
