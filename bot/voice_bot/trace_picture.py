"""Draws one traced turn as a waterfall: `python -m voice_bot.trace_picture docs/images/trace.png`.

A question from a file goes through the whole bot, without a browser, to a server of its own; the spans of bot, SDK and
Triton are collected here and drawn as they came.
"""

from __future__ import annotations

import asyncio
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from pipecat.frames.frames import BotStoppedSpeakingFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed

from bot import Conversation
from triton_voice import read_audio
from triton_voice.cli import weights
from triton_voice.cli.serving import running
from triton_voice.server import ServerSettings, TritonServer
from voice_bot import logs, tracing
from voice_bot.loopback import LoopbackTransport
from voice_bot.memory import Memory
from voice_bot.settings import BotSettings, TurnTaking
from voice_bot.spans import Span, SpanReceiver, below

TURN_TIMEOUT_S = 120.0
SPANS_TIMEOUT_S = 30.0
"""Triton sends its spans some seconds after they have ended."""
MODELS = {"parakeet", "nemotron", "magpie"}
COLOURS = {
    "bot (Pipecat)": "#7f8fa6",
    "client SDK": "#e1a100",
    "Triton": "#76b900",
    "in the model's queue and execute()": "#3d6b00",
}
MOMENTS = {"first words": "first words", "first response": "first response", "GRPC_SEND_START": "first response sent"}
"""Events that are marked, each at its first time in a span."""


class _Silence(BaseObserver):
    """Notes when the bot has stopped to speak."""

    def __init__(self) -> None:
        super().__init__(observe_every_push=False)
        self.came = asyncio.Event()

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, BotStoppedSpeakingFrame):
            self.came.set()


async def converse(url: str, trace: str) -> str:
    """Asks one question and waits until the answer has been spoken; returns the conversation's label."""
    settings = BotSettings(server=url, trace=trace, greeting="", reply_tokens=40)
    memory, room, silence = Memory(settings.voice, settings.language), LoopbackTransport(), _Silence()
    conversation = await Conversation.create(room, settings, TurnTaking(), memory, observers=[silence])
    started = asyncio.Event()
    conversation.worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
    task = asyncio.create_task(conversation.run())
    try:
        await started.wait()
        await room.say(read_audio(str(files("triton_voice").joinpath("data/question.wav"))))
        await asyncio.wait_for(silence.came.wait(), TURN_TIMEOUT_S)
    finally:
        await conversation.end()
        await task
    return memory.label


def turn_of(spans: list[Span], label: str) -> list[Span]:
    """Returns the spans of the turn in which all three models worked; none as long as they are not all there."""
    for turn in [s for s in spans if s.name == "turn" and s.attributes.get("conversation.id") == label]:
        found = below(spans, turn)
        if {s.name for s in found if s.service == "triton"} >= MODELS:
            return found
    return []


def layer(span: Span) -> str:
    """Returns whose span it is, by the names in `COLOURS`."""
    bot, sdk, server, model = COLOURS
    if span.service == "triton":
        return server if span.name == "InferRequest" else model
    return sdk if span.name in MODELS else bot


def draw(spans: list[Span], path: Path) -> None:
    """Draws spans below each other, each indented below its parent.

    Args:
        spans: Parents before their children.
        path: PNG file.
    """
    shown = [span for span in spans if span.name != "compute"]  # a hundredth of a millisecond inside the model's span
    began = min(span.start_ns for span in shown)
    depth = {span.id: 0 for span in shown}
    for span in shown:
        depth[span.id] = depth.get(span.parent, -1) + 1
    end_ms = max((span.end_ns - began) / 1e6 for span in shown)
    figure, axes = plt.subplots(figsize=(13, 0.6 + 0.34 * len(shown)))
    for row, span in enumerate(shown):
        start_ms, length_ms = (span.start_ns - began) / 1e6, (span.end_ns - span.start_ns) / 1e6
        axes.barh(row, max(length_ms, end_ms / 500), left=start_ms, height=0.62, color=COLOURS[layer(span)])
        seen: set[str] = set()
        for name, at_ns in span.events:
            if name in MOMENTS and name not in seen:
                seen.add(name)
                axes.plot((at_ns - began) / 1e6, row, "|", color="black", markersize=11, markeredgewidth=1.6)
        said = f"{length_ms:,.0f} ms" if length_ms >= 10 else f"{length_ms:.1f} ms"
        right = start_ms + length_ms
        place: dict[str, Any] = {"x": right + end_ms / 150, "ha": "left"}
        if right > 0.93 * end_ms:
            place = {"x": right - end_ms / 150, "ha": "right"}
        axes.text(y=row, s=said, va="center", fontsize=8, **place)
    axes.set_yticks(range(len(shown)), [f"{'    ' * depth[span.id]}{span.name}" for span in shown], fontsize=9)
    for tick in axes.get_yticklabels():
        tick.set_horizontalalignment("left")
    axes.tick_params(axis="y", pad=165, length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, end_ms * 1.02)
    axes.set_xlabel("ms since the turn began; black marks: first words, first response")
    axes.set_title(f"One spoken turn, trace {shown[0].trace[:8]}...", loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()], fontsize=8, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Runs a server and one turn, and draws it."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logs.set_up("text", False, sys.stderr)
    receiver = SpanReceiver()
    provider = tracing.set_up(receiver.url, content=False)
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, trace=receiver.url)
    with running(TritonServer(settings, weights.resolve(None, False, None, None, None, None))) as server:
        label = asyncio.run(converse(server.grpc_url, receiver.url))
        provider.shutdown()
        deadline = time.monotonic() + SPANS_TIMEOUT_S
        while not (turn := turn_of(receiver.spans, label)) and time.monotonic() < deadline:
            time.sleep(0.2)
    receiver.close()
    if not turn:
        came = sorted({f"{span.service} {span.name}" for span in receiver.spans})
        sys.exit(f"the spans of the turn did not come within {SPANS_TIMEOUT_S:.0f} s, but {', '.join(came) or 'none'}")
    draw(turn, Path(sys.argv[1]))
    print(f"{len(turn)} spans of one trace: {sys.argv[1]}")


if __name__ == "__main__":
    main()
