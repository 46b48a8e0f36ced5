"""`triton-voice bench tts`: a running synthesiser under a growing number of listeners."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_voice import TritonVoice
from triton_voice.errors import ServerGone, TritonVoiceError
from triton_voice_bench.observe import PUBLISH_S, CpuMeter, Metrics
from triton_voice_bench.report import Report, Row, percentiles

SENTENCES = (
    "Hello, how can I help you today?",
    "Your table for two is booked for seven this evening.",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "I have turned on the lights in the kitchen and started your music.",
    "It will be sunny this afternoon, with a light wind from the west.",
    "Could you please repeat that a little more slowly?",
    "The next train to the city leaves in twelve minutes from platform four.",
    "Thank you very much, and have a nice day.",
    "Your parcel has been delivered to the front door this morning.",
    "There are three new messages, and one of them is marked as urgent.",
    "Please take the second exit at the roundabout, then turn left.",
    "The meeting has been moved to ten o'clock on Thursday.",
    "I could not find a flight on that date, shall I look at the day after?",
    "Remember to take your umbrella, it may rain later on.",
    "The museum is open every day except Monday, from nine until six.",
    "Yes, of course, I will send you the address right away.",
    "Your order comes to forty two dollars and fifty cents in total.",
    "The recipe needs two eggs, a cup of flour, and a pinch of salt.",
    "I am sorry, I did not understand the last part of your question.",
    "All systems are working normally, and no action is needed.",
)
"""What every stream says, each beginning at another sentence; about the length of a spoken reply's sentences."""
ERROR_KINDS_SHOWN = 5
READING = {
    "method": "closed loop: each stream sends its next sentence when the one before has been received to its end",
    "first_audio_ms": "from sending a request to its first chunk of audio",
    "chunk_gap_ms": "between chunks of one request",
    "underruns": "times that a player which starts with the first chunk of a request ran dry before its last",
    "kept_up": "streams whose player never ran dry and whose requests all succeeded",
    "rtfx": "seconds of audio received by all streams for each second of the run",
    "cpu": "percent of one core; server: tritonserver and its stubs",
}
COLUMNS = (
    ("streams", "streams"),
    ("first audio p50 ms", "first_audio_ms.p50"),
    ("p90", "first_audio_ms.p90"),
    ("p95", "first_audio_ms.p95"),
    ("p99", "first_audio_ms.p99"),
    ("chunk gap p50 ms", "chunk_gap_ms.p50"),
    ("p95", "chunk_gap_ms.p95"),
    ("p99", "chunk_gap_ms.p99"),
    ("underruns", "underruns"),
    ("kept up", "kept_up"),
    ("x real time", "rtfx"),
    ("step ms", "step_ms"),
    ("streams a step", "step_streams"),
    ("server CPU %", "server_cpu_percent"),
    ("errors", "errors"),
)


@dataclass(frozen=True)
class TtsBench:
    """What is measured.

    Attributes:
        streams: Numbers of listeners at once, a row each.
        sentences: Requests of each stream.
        max_seconds: Length at which each answer is cut; None lets the model end it. Random weights never do.
        voice: Name of the voice; None is the server's default.
    """

    streams: Sequence[int]
    sentences: int = len(SENTENCES)
    max_seconds: float | None = None
    voice: str | None = None


@dataclass
class Player:
    """A listener's player: it starts with the first chunk and plays in real time.

    Attributes:
        underruns: How often it ran dry.
    """

    underruns: int = 0
    _dry_at: float | None = None

    def receive(self, seconds: float, now: float) -> None:
        """Takes a chunk.

        Args:
            seconds: Its length.
            now: When it came, in seconds by any monotonic clock.
        """
        if self._dry_at is not None and now > self._dry_at:
            self.underruns += 1
        self._dry_at = max(now, self._dry_at or now) + seconds


@dataclass
class Tally:
    """What the streams of one row saw."""

    first_audio_ms: list[float] = field(default_factory=list)
    chunk_gap_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    underruns: int = 0
    kept_up: int = 0


def run(
    bench: TtsBench,
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
        on_progress: Called with the row's streams, the sentences that are settled, and how many there are.

    Raises:
        TritonVoiceError: The server cannot be reached or refuses a first sentence.
    """
    settings = {
        "sentences": bench.sentences,
        "max_seconds": bench.max_seconds,
        "voice": bench.voice,
        "server": asyncio.run(_warm(bench, url)),
        "reading": READING,
    }
    report = Report("tts", weights, settings)
    for streams in bench.streams:
        report.rows.append(_row(bench, streams, url, metrics_url, on_progress))
    return report


def _row(
    bench: TtsBench, streams: int, url: str, metrics_url: str | None, on_progress: Callable[[int, int, int], None]
) -> Row:
    of = streams * bench.sentences
    on_progress(streams, 0, of)
    before, cpu = Metrics.scrape(metrics_url), CpuMeter(url)
    cpu.reset()
    began = time.monotonic()
    tally = asyncio.run(_listen(bench, streams, url, lambda settled: on_progress(streams, settled, of)))
    wall_s = time.monotonic() - began
    server_cpu = cpu.percent()
    time.sleep(PUBLISH_S)
    after = Metrics.scrape(metrics_url)
    step_s = after.mean_since(before, "magpie_step_seconds")
    step_streams = after.mean_since(before, "magpie_step_streams")
    return {
        "streams": streams,
        "first_audio_ms": percentiles(tally.first_audio_ms),
        "chunk_gap_ms": percentiles(tally.chunk_gap_ms),
        "underruns": tally.underruns,
        "kept_up": tally.kept_up,
        "rtfx": round(tally.audio_s / wall_s, 2),
        "step_ms": None if step_s is None else round(1000 * step_s, 3),
        "step_streams": None if step_streams is None else round(step_streams, 2),
        "server_cpu_percent": server_cpu,
        "audio_s": round(tally.audio_s, 2),
        "sentences": len(tally.first_audio_ms),
        "errors": tally.errors.total(),
        "error_messages": [f"{count} x {words}" for words, count in tally.errors.most_common(ERROR_KINDS_SHOWN)],
        "wall_s": round(wall_s, 2),
    }


async def _listen(bench: TtsBench, streams: int, url: str, on_progress: Callable[[int], None]) -> Tally:
    tally, settled = Tally(), 0
    async with TritonVoice(url) as voice:

        async def stream(number: int) -> None:
            nonlocal settled
            kept_up = True
            for turn in range(bench.sentences):
                player = Player()
                try:
                    await _sentence(bench, voice, number + turn, player, tally)
                except TritonVoiceError as error:
                    tally.errors[str(error)] += 1
                    kept_up = False
                tally.underruns += player.underruns
                kept_up = kept_up and not player.underruns
                settled += 1
                on_progress(settled)
            tally.kept_up += kept_up

        await asyncio.gather(*(stream(number) for number in range(streams)))
    return tally


async def _sentence(bench: TtsBench, voice: TritonVoice, number: int, player: Player, tally: Tally) -> None:
    options: dict[str, Any] = {} if bench.max_seconds is None else {"max_seconds": bench.max_seconds}
    began, last = time.monotonic(), None
    speech = voice.speak(SENTENCES[number % len(SENTENCES)], voice=bench.voice, seed=number, **options)
    async with contextlib.aclosing(speech) as chunks:
        async for chunk in chunks:
            now = time.monotonic()
            if not len(chunk.audio):
                continue
            if last is None:
                tally.first_audio_ms.append(1000 * (now - began))
            else:
                tally.chunk_gap_ms.append(1000 * (now - last))
            last = now
            player.receive(chunk.duration_s, now)
            tally.audio_s += chunk.duration_s


async def _warm(bench: TtsBench, url: str) -> str:
    """Speaks one sentence; returns the server's name and version."""
    async with TritonVoice(url) as voice:
        state = await voice.ready(("magpie",))
        if not state.live:
            raise ServerGone(f"no server at {url}")
        if not state.all_ready:
            raise ServerGone(f"the server at {url} runs, its model magpie is not ready")
        await _sentence(bench, voice, 0, Player(), Tally())
        about = await voice.client.get_server_metadata()
        return f"{about.name} {about.version}"
