"""`triton-voice bench perf-analyzer`: NVIDIA's load generator on each of the models. By hand: perf/perf_analyzer."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from triton_voice.audio import Samples, read_audio
from triton_voice.errors import InvalidInput, TritonVoiceError
from triton_voice.types import ASR_SAMPLE_RATE
from triton_voice_bench import perf_analyzer_export
from triton_voice_bench.perf_analyzer_binary import Tool
from triton_voice_bench.report import Report, Row
from triton_voice_bench.tts import SENTENCES

CHUNK_MS = 160
"""The checkpoint's default lookahead: perf_analyzer puts a request parameter on every request, `latency_ms` belongs on
the first one alone."""
UTTERANCE_CHUNKS = 20
UTTERANCES = 8
QUESTIONS = (
    "What is the weather in Paris tomorrow?",
    "Could you set a timer for ten minutes?",
    "Add milk and eggs to my shopping list, please.",
    "How much is twelve plus seven?",
    "Turn on the lights in the kitchen.",
    "What time is it?",
    "Wake me up at seven o'clock.",
    "What is on my shopping list?",
)
STABILITY_PERCENT = 25
MAX_WINDOWS = 6
TIMEOUT_S = 900
SPEAKS = {"parakeet": "parakeet", "magpie": "magpie", "nemotron": "nemotron", "nemotron-stock": "nemotron"}
"""What can be asked for, and the model in Triton: `nemotron` sends chats, `nemotron-stock` bare prompts."""


@dataclass(frozen=True)
class PerfAnalyzerBench:
    """What is measured.

    Attributes:
        model: One of `SPEAKS`.
        streams: Numbers of concurrent requests (parakeet: sequences), a run each.
        rates: Requests a second, a run each, instead of `streams`; not for parakeet, whose rate is that of speech.
        realtime: Parakeet: requests at the rate of speech; else each sequence as fast as it is answered.
        seconds: Parakeet: length of a measurement window; runs take three or more.
        requests: Magpie and nemotron: requests of each stream, or of a rate in all.
        tokens: Nemotron: length of each reply.
        max_seconds: Magpie: where each answer is cut, whole seconds; None lets the model end it.
        folder: Where input, exports and logs go.
        wav: Parakeet: what is said; None is the recorded question that comes with the package.
    """

    model: str
    streams: Sequence[int]
    folder: Path
    rates: Sequence[float] = ()
    realtime: bool = True
    seconds: float = 5.0
    requests: int = 10
    tokens: int = 48
    max_seconds: int | None = None
    wav: Path | None = None

    def __post_init__(self) -> None:
        if self.model not in SPEAKS:
            raise InvalidInput(f"--model {self.model}: there are {', '.join(SPEAKS)}")
        if self.model == "parakeet" and self.rates:
            raise InvalidInput("--rates is for magpie and nemotron; the rate of parakeet's requests is that of speech")

    @property
    def input(self) -> Path:
        """The file that perf_analyzer reads."""
        return self.folder / f"{self.model}.json"


def write_input(bench: PerfAnalyzerBench) -> None:
    """Writes what perf_analyzer sends, making the folder if need be.

    Raises:
        InvalidInput: The audio cannot be read.
    """
    if bench.model == "parakeet":
        audio = read_audio(bench.wav or Path(str(files("triton_voice") / "data/question.wav")))
        data: list[Any] = utterances(audio)
    elif bench.model == "magpie":
        data = [{"TEXT": [sentence]} for sentence in SENTENCES]
    elif bench.model == "nemotron":
        data = [{"chat_request": [json.dumps(_chat(question, bench.tokens))]} for question in QUESTIONS]
    else:
        sampling = json.dumps({"max_tokens": bench.tokens, "temperature": 0, "ignore_eos": True})
        fixed = {"stream": [True], "sampling_parameters": [sampling], "exclude_input_in_output": [True]}
        data = [{"text_input": [question], **fixed} for question in QUESTIONS]
    bench.input.parent.mkdir(parents=True, exist_ok=True)
    bench.input.write_text(json.dumps({"data": data}))


def utterances(audio: Samples) -> list[list[dict[str, Any]]]:
    """Returns sequences for the recogniser: utterances of 160 ms chunks; perf_analyzer sets START and END by itself.

    Args:
        audio: int16 (samples,), 16 kHz; each utterance begins elsewhere in it and goes round.
    """
    size = CHUNK_MS * ASR_SAMPLE_RATE // 1000
    made = []
    for number in range(UTTERANCES):
        start = len(audio) * number // UTTERANCES
        said = audio.take(range(start, start + UTTERANCE_CHUNKS * size), mode="wrap").astype("<i2")
        made.append([_step(said[at : at + size]) for at in range(0, len(said), size)])
    return made


def _step(samples: Samples) -> dict[str, Any]:
    return {"AUDIO": {"content": {"b64": base64.b64encode(samples.tobytes()).decode()}, "shape": [len(samples)]}}


def _chat(question: str, tokens: int) -> dict[str, Any]:
    """A chat whose reply has exactly so many tokens, and tells so in its last chunk."""
    messages = [{"role": "user", "content": question}]
    usage = {"include_usage": True}
    length = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {"messages": messages, "stream": True, "stream_options": usage, **length}


def command(bench: PerfAnalyzerBench, tool: Tool, url: str, load: float) -> list[str]:
    """Returns the command of one run.

    Args:
        bench: What is measured.
        tool: perf_analyzer.
        url: gRPC endpoint.
        load: Of `streams`, or of `rates`.
    """
    export = bench.folder / _name(bench, load)
    words = [str(tool.path), "-m", SPEAKS[bench.model], "-u", url, "-i", "grpc", "--streaming", "--async"]
    words.append(f"--input-data={bench.input}")
    if bench.model == "parakeet":
        words += _sequences(bench, round(load))
    elif bench.rates:
        words += [f"--request-rate-range={load:g}:{load:g}", f"--request-count={bench.requests}"]  # else it ends at 1
    else:
        words += [f"--concurrency-range={load:g}", f"--request-count={round(load) * bench.requests}"]
    if bench.model == "magpie" and bench.max_seconds is not None:
        words.append(f"--request-parameter=max_seconds:{bench.max_seconds}:int")
    return [*words, "--percentile=95", f"--profile-export-file={export}.json", "-f", f"{export}.csv"]


def _sequences(bench: PerfAnalyzerBench, streams: int) -> list[str]:
    if bench.realtime:
        rate = streams * 1000 / CHUNK_MS
        load = [f"--request-rate-range={rate:g}", f"--num-of-sequences={streams}", "--serial-sequences"]
    else:
        load = [f"--concurrency-range={streams}"]
    window = f"--measurement-interval={round(1000 * bench.seconds)}"
    return [*load, window, f"--stability-percentage={STABILITY_PERCENT}", f"--max-trials={MAX_WINDOWS}"]


def run(
    bench: PerfAnalyzerBench, tool: Tool, url: str, weights: str, on_command: Callable[[str], None] = lambda c: None
) -> Report:
    """Runs perf_analyzer once for each number of streams or rate; its exports stay in the folder.

    Args:
        bench: What is measured.
        tool: perf_analyzer.
        url: gRPC endpoint.
        weights: What is known of the server's weights.
        on_command: Told each command before it runs.

    Raises:
        TritonVoiceError: perf_analyzer failed; the message has its last words.
    """
    write_input(bench)
    settings: dict[str, Any] = {
        "model": bench.model,
        "mode": "request rate"
        if bench.rates
        else "realtime"
        if bench.model == "parakeet" and bench.realtime
        else "closed",
        "reading": perf_analyzer_export.READING,
    }
    if bench.model == "parakeet":
        settings |= {"latency_ms": CHUNK_MS, "window_s": bench.seconds}
    report = Report("perf-analyzer", weights, settings)
    for load in bench.rates or bench.streams:
        words = command(bench, tool, url, load)
        on_command(shlex.join(words))
        report.rows.append(_row(bench, tool, words, load))
    return report


def _row(bench: PerfAnalyzerBench, tool: Tool, words: list[str], load: float) -> Row:
    """Runs one command and reads its export."""
    export = bench.folder / f"{_name(bench, load)}.json"
    export.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            env=tool.environment(),
        )
    except subprocess.TimeoutExpired:
        raise TritonVoiceError(f"perf_analyzer was still at {' '.join(words)} after {TIMEOUT_S} s") from None
    export.with_suffix(".log").write_text(done.stdout)
    if not export.exists():
        raise TritonVoiceError(f"perf_analyzer failed: {_reason(done.stdout)}")
    (row,) = perf_analyzer_export.read(export)
    if bench.model == "parakeet":
        row["streams"] = round(load)
        row["requests_per_s_asked"] = round(load) * 1000 / CHUNK_MS if bench.realtime else None
        row["stable"] = "Failed to obtain stable measurement" not in done.stdout
    return row


def _reason(log: str) -> str:
    """What perf_analyzer complained of: the line that says so, which its help may follow, else its last lines."""
    lines = log.strip().splitlines()
    complaints = [line for line in lines if line.lower().startswith(("error", "failed", "perf_analyzer: error"))]
    return " ".join(complaints[:2] or lines[-3:])


def _name(bench: PerfAnalyzerBench, load: float) -> str:
    if bench.rates:
        return f"{bench.model}-rate-{load:g}"
    mode = ("realtime-" if bench.realtime else "closed-") if bench.model == "parakeet" else ""
    return f"{bench.model}-{mode}{load:g}"
