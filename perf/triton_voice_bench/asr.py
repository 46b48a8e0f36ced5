"""`triton-voice bench asr`: a running recogniser under a growing number of callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from triton_voice import TritonVoice
from triton_voice.audio import Samples, read_audio
from triton_voice.errors import InvalidInput, ServerGone
from triton_voice_bench.asr_callers import Plan, call
from triton_voice_bench.observe import PUBLISH_S, CpuMeter, Metrics
from triton_voice_bench.report import Report, Row, percentiles

QUESTION = "data/question.wav"
UTTERANCE_S = 3.0
"""Every so often a stream ends its utterance and begins another: as a caller in a conversation does."""
ERROR_KINDS_SHOWN = 5
READING = {
    "chunk_ms": "paced: from a chunk's last sample to its answer, open loop; unpaced: from sending it",
    "final_ms": "from an utterance's last sample to its final transcript; the last chunk carries END",
    "kept_up": "streams that sent no chunk later than one chunk after it was spoken, and failed none",
    "step_ms": "mean over the run, of the server's own metrics",
    "cpu": "percent of one core; server: tritonserver and its stubs; client: the callers' processes",
}
COLUMNS = (
    ("streams", "streams"),
    ("chunk ms\np50 90 95 99", "chunk_ms"),
    ("final ms\np50 90 95 99", "final_ms"),
    ("kept\nup", "kept_up"),
    ("x real\ntime", "rtfx"),
    ("step\nms", "step_ms"),
    ("its\nstreams", "step_streams"),
    ("CPU %\nserver", "server_cpu_percent"),
    ("\ncallers", "client_cpu_percent"),
    ("errors", "errors"),
)


@dataclass(frozen=True)
class AsrBench:
    """What is measured.

    Attributes:
        streams: Numbers of streams, a row each.
        latency_ms: Lookahead of every stream, and the length of a chunk.
        seconds: Audio of each stream.
        paced: At the speed of speech; else each stream as fast as it is answered.
        wav: What the streams say; None is the recorded question that comes with the package.
        processes: Client processes; None takes one for each 16 streams, two at least.
    """

    streams: Sequence[int]
    latency_ms: int = 160
    seconds: float = 20.0
    paced: bool = True
    wav: Path | None = None
    processes: int | None = None

    def plan(self, url: str, audio: Samples, streams: int) -> Plan:
        """Returns what one row's callers do."""
        period_s = self.latency_ms / 1000
        return Plan(
            url=url,
            audio=audio,
            streams=streams,
            latency_ms=self.latency_ms,
            chunks=max(1, round(self.seconds / period_s)),
            utterance_chunks=max(1, round(UTTERANCE_S / period_s)),
            paced=self.paced,
        )


def run(
    bench: AsrBench,
    url: str,
    metrics_url: str | None,
    weights: str,
    on_progress: Callable[[int, int, int], None] = lambda streams, settled, of: None,
) -> Report:
    """Measures a running server, one row after the other.

    Args:
        bench: What is measured.
        url: gRPC endpoint.
        metrics_url: The server's Prometheus metrics; without them a row has no `step_ms` and `step_streams`.
        weights: What is known of the server's weights.
        on_progress: Called with the row's streams, the chunks that are settled, and how many there are.

    Raises:
        InvalidInput: The audio cannot be read.
        TritonVoiceError: The server cannot be reached or refuses the first piece of audio.
    """
    audio = read_audio(bench.wav or Path(str(files("triton_voice").joinpath(QUESTION))))
    if not len(audio):
        raise InvalidInput(f"{bench.wav} is empty")
    server = asyncio.run(_server(url))
    settings = {
        "mode": "paced" if bench.paced else "unpaced",
        "latency_ms": bench.latency_ms,
        "seconds": bench.seconds,
        "utterance_s": UTTERANCE_S,
        "audio": bench.wav.name if bench.wav else "question.wav",
        "server": server,
        "reading": READING,
    }
    report = Report("asr", weights, settings)
    for streams in bench.streams:
        plan = bench.plan(url, audio, streams)
        of = plan.streams * plan.chunks

        def progress(settled: int, streams: int = streams, of: int = of) -> None:
            on_progress(streams, settled, of)

        progress(0)
        report.rows.append(_row(plan, metrics_url, bench.processes, progress))
    return report


def _row(plan: Plan, metrics_url: str | None, processes: int | None, on_progress: Callable[[int], None]) -> Row:
    before, cpu = Metrics.scrape(metrics_url), CpuMeter(plan.url)
    tally = call(plan, processes, cpu.reset, on_progress)
    server_cpu = cpu.percent()
    time.sleep(PUBLISH_S)
    after = Metrics.scrape(metrics_url)
    step_s = after.mean_since(before, "parakeet_step_seconds")
    step_streams = after.mean_since(before, "parakeet_step_streams")
    answered = len(tally.chunk_ms) + len(tally.final_ms)
    return {
        "streams": plan.streams,
        "chunk_ms": percentiles(tally.chunk_ms),
        "final_ms": percentiles(tally.final_ms),
        "kept_up": tally.kept_up if plan.paced else None,
        "rtfx": None if plan.paced or not tally.ended else round(answered * plan.period_s / tally.ended, 2),
        "step_ms": None if step_s is None else round(1000 * step_s, 3),
        "step_streams": None if step_streams is None else round(step_streams, 2),
        "server_cpu_percent": server_cpu,
        "client_cpu_percent": round(100 * tally.cpu_s / tally.ended, 1) if tally.ended else None,
        "chunks": len(tally.chunk_ms),
        "finals": len(tally.final_ms),
        "errors": tally.errors.total(),
        "error_messages": [f"{count} x {words}" for words, count in tally.errors.most_common(ERROR_KINDS_SHOWN)],
        "unsent": tally.unsent,
        "wall_s": round(tally.ended, 2),
    }


async def _server(url: str) -> str:
    """Name and version of the server at `url`, once it and its recogniser are ready."""
    async with TritonVoice(url) as voice:
        state = await voice.ready(("parakeet",))
        if not state.live:
            raise ServerGone(f"no server at {url}")
        if not state.all_ready:
            raise ServerGone(f"the server at {url} runs, its model parakeet is not ready")
        about = await voice.client.get_server_metadata()
        return f"{about.name} {about.version}"
