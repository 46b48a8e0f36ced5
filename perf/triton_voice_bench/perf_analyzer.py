"""`triton-voice bench perf-analyzer`: NVIDIA's load generator on the recogniser. By hand: perf/perf_analyzer."""

from __future__ import annotations

import base64
import json
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from triton_voice.audio import Samples, read_audio
from triton_voice.errors import TritonVoiceError
from triton_voice.types import ASR_SAMPLE_RATE
from triton_voice_bench.report import Report, Row, percentiles

CHUNK_MS = 160
"""The checkpoint's default lookahead: perf_analyzer puts a request parameter on every request, `latency_ms` belongs on
the first one alone."""
UTTERANCE_CHUNKS = 20
UTTERANCES = 8
STABILITY_PERCENT = 25
MAX_WINDOWS = 6
TIMEOUT_S = 600
NEW_GLIBC = (2, 38)
COLUMNS = (
    ("streams", "streams"),
    ("request ms\np50 90 95 99", "chunk_ms"),
    ("requests\na second", "requests_per_s"),
    ("asked\nfor", "requests_per_s_asked"),
    ("x real\ntime", "rtfx"),
    ("requests\nmeasured", "requests"),
    ("stable", "stable"),
)
READING = {
    "chunk_ms": "from sending a request to its answer, by perf_analyzer's clock; the last of an utterance carries END",
    "stable": f"perf_analyzer found three windows within {STABILITY_PERCENT} %",
}


@dataclass(frozen=True)
class PerfAnalyzerBench:
    """What is measured.

    Attributes:
        streams: Numbers of concurrent sequences, a run each.
        realtime: Requests at the rate of speech; else each as fast as it is answered.
        seconds: Length of a measurement window.
        folder: Where input, exports and logs go.
        wav: What is said; None is the recorded question that comes with the package.
    """

    streams: Sequence[int]
    realtime: bool
    seconds: float
    folder: Path
    wav: Path | None = None


def find(binary: Path | None = None) -> Path:
    """Finds a perf_analyzer that runs here.

    Args:
        binary: Where it is; None looks on PATH.

    Raises:
        TritonVoiceError: There is none, or it does not start; the message says how to get what is missing.
    """
    found = str(binary) if binary else shutil.which("perf_analyzer")
    if found is None or not Path(found).is_file():
        raise TritonVoiceError(f"perf_analyzer is not {'at ' + found if found else 'on PATH'}. {how_to_get()}")
    try:
        tried = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise TritonVoiceError(f"{found} does not start: {error.strerror}. {how_to_get()}") from error
    if tried.returncode != 0:
        raise TritonVoiceError(f"{found} does not start: {tried.stderr.strip()}. {how_to_get()}")
    return Path(found)


def how_to_get(machine: str = platform.machine(), libc: str = platform.libc_ver()[1]) -> str:
    """Says in plain words how this machine gets a perf_analyzer.

    Args:
        machine: `x86_64` or `aarch64`.
        libc: Version of glibc.
    """
    new = tuple(int(part) for part in (libc or "0").split(".")[:2]) >= NEW_GLIBC
    if not new and machine != "x86_64":
        return f"No tritonclient wheel has one for {machine} with glibc {libc}; NVIDIA's tritonserver SDK image does."
    version = "2.55.0" if new else "2.50.0"
    words = (
        f"It is inside the wheel tritonclient {version} (for glibc {libc} on {machine}; the newest wheels have none): "
        f"`pip download --no-deps tritonclient=={version}`, unzip it, and put its folder data/bin on PATH, executable. "
        "Do not install that wheel here: the SDK needs a newer one."
    )
    if machine == "x86_64":
        words += (
            " It loads libb64.so.0d (Debian, Ubuntu: apt-get install libb64-0d) and libcudart.so.12 (`pip download "
            "--no-deps nvidia-cuda-runtime-cu12`, unzip it, and put its folder lib on LD_LIBRARY_PATH)."
        )
    return words + " Step by step: perf/perf_analyzer/README.md"


def write_input(path: Path, audio: Samples) -> None:
    """Writes what perf_analyzer sends: utterances of 160 ms chunks; it sets START and END of each by itself.

    Args:
        path: The JSON file.
        audio: int16 (samples,), 16 kHz; each utterance begins elsewhere in it and goes round.
    """
    size = CHUNK_MS * ASR_SAMPLE_RATE // 1000
    utterances = []
    for number in range(UTTERANCES):
        start = len(audio) * number // UTTERANCES
        said = audio.take(range(start, start + UTTERANCE_CHUNKS * size), mode="wrap").astype("<i2")
        utterances.append([_step(said[at : at + size]) for at in range(0, len(said), size)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": utterances}))


def _step(samples: Samples) -> dict[str, Any]:
    return {"AUDIO": {"content": {"b64": base64.b64encode(samples.tobytes()).decode()}, "shape": [len(samples)]}}


def command(bench: PerfAnalyzerBench, binary: Path, url: str, streams: int) -> list[str]:
    """Returns the command of one run."""
    name = _name(bench, streams)
    if bench.realtime:
        rate = streams * 1000 / CHUNK_MS
        load = [f"--request-rate-range={rate:g}", f"--num-of-sequences={streams}", "--serial-sequences"]
    else:
        load = [f"--concurrency-range={streams}"]
    return [
        str(binary),
        *("-m", "parakeet", "-u", url, "-i", "grpc", "--streaming", "--async"),
        f"--input-data={bench.folder / 'parakeet.json'}",
        *load,
        f"--measurement-interval={round(1000 * bench.seconds)}",
        f"--stability-percentage={STABILITY_PERCENT}",
        f"--max-trials={MAX_WINDOWS}",
        "--percentile=95",
        f"--profile-export-file={bench.folder / name}.json",
        *("-f", f"{bench.folder / name}.csv"),
    ]


def run(
    bench: PerfAnalyzerBench, binary: Path, url: str, weights: str, on_command: Callable[[str], None] = lambda c: None
) -> Report:
    """Runs perf_analyzer once for each number of streams; its exports stay in the folder.

    Args:
        bench: What is measured.
        binary: perf_analyzer.
        url: gRPC endpoint.
        weights: What is known of the server's weights.
        on_command: Told each command before it runs.

    Raises:
        TritonVoiceError: perf_analyzer failed; the message has its last words.
    """
    write_input(
        bench.folder / "parakeet.json", read_audio(bench.wav or Path(str(files("triton_voice") / "data/question.wav")))
    )
    settings = {
        "mode": "realtime" if bench.realtime else "closed",
        "latency_ms": CHUNK_MS,
        "window_s": bench.seconds,
        "reading": READING,
    }
    report = Report("perf-analyzer", weights, settings)
    for streams in bench.streams:
        words = command(bench, binary, url, streams)
        on_command(shlex.join(words))
        export = bench.folder / f"{_name(bench, streams)}.json"
        export.unlink(missing_ok=True)
        try:
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TritonVoiceError(f"perf_analyzer was still at {streams} streams after {TIMEOUT_S} s") from None
        export.with_suffix(".log").write_text(done.stdout)
        if not export.exists():
            raise TritonVoiceError(f"perf_analyzer failed: {' '.join(done.stdout.strip().splitlines()[-3:])}")
        asked = streams * 1000 / CHUNK_MS if bench.realtime else None
        report.rows.append(row(streams, asked, json.loads(export.read_text()), done.stdout))
    return report


def row(streams: int, asked: float | None, export: dict[str, Any], log: str) -> Row:
    """Turns an export into a row.

    Args:
        streams: Concurrent sequences.
        asked: Requests a second that were asked for, if any.
        export: What `--profile-export-file` wrote: times in nanoseconds.
        log: What perf_analyzer printed.
    """
    requests = export["experiments"][0]["requests"]
    answered = [r for r in requests if r["response_timestamps"]]
    sent = [r["timestamp"] for r in answered]
    span_s = (max(sent) - min(sent)) / 1e9 if answered else 0.0
    rate = (len(answered) - 1) / span_s if span_s else None
    return {
        "streams": streams,
        "chunk_ms": percentiles((r["response_timestamps"][-1] - r["timestamp"]) / 1e6 for r in answered),
        "requests_per_s": None if rate is None else round(rate, 2),
        "requests_per_s_asked": asked,
        "rtfx": None if rate is None else round(rate * CHUNK_MS / 1000, 2),
        "requests": len(answered),
        "errors": len(requests) - len(answered),
        "stable": "Failed to obtain stable measurement" not in log,
    }


def _name(bench: PerfAnalyzerBench, streams: int) -> str:
    return f"parakeet-{'realtime' if bench.realtime else 'closed'}-{streams}"
