"""Draws the pictures of this folder: `python docs/pictures.py` writes architecture.svg and turn.svg.

Plain SVG without scripts, fonts or outside references, so that it looks the same on every page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, SOFT, LINE, PAPER = "#1d2430", "#5b6577", "#c9d0db", "#ffffff"
AUDIO, TEXT = "#2563eb", "#c2410c"
HEAR, THINK, SPEAK, GREEN, VIOLET, GREY = "#e7f0ff", "#fff1e0", "#e3f6f1", "#f2f8ea", "#f3eefe", "#f4f6f9"
HEAR_LINE, THINK_LINE, SPEAK_LINE, GREEN_LINE, VIOLET_LINE = "#8db4f5", "#f0b775", "#7fcfba", "#a3c873", "#b9a3ec"


@dataclass
class Picture:
    """An SVG that grows from back to front.

    Attributes:
        width: Pixels.
        height: Pixels.
        title: What a screen reader says.
    """

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, fill: str, line: str = LINE, radius: float = 10) -> None:
        """A rounded rectangle."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" fill="{fill}" stroke="{line}" '
            'stroke-width="1.4"/>'
        )

    def text(
        self, x: float, y: float, words: str, size: float = 13, color: str = INK, bold: bool = False, at: str = "start"
    ) -> None:
        """One line; `at` is start, middle or end."""
        weight = ' font-weight="650"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{at}"{weight}>{escape(words)}</text>'
        )

    def card(self, x: float, y: float, w: float, h: float, fill: str, line: str, title: str, *lines: str) -> None:
        """A box with a heading and lines below it."""
        self.box(x, y, w, h, fill, line, 8)
        self.text(x + 12, y + 21, title, 13, bold=True)
        for i, words in enumerate(lines):
            self.text(x + 12, y + 39 + 16.5 * i, words, 11.5, SOFT)

    def arrow(self, points: list[tuple[float, float]], color: str, dashed: bool = False, both: bool = False) -> None:
        """A line through points with a head at its end."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        start = f' marker-start="url(#{_marker(color)}-back)"' if both else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.2" stroke-linejoin="round"{dash}{start} '
            f'marker-end="url(#{_marker(color)})"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        heads = "".join(
            f'<marker id="{_marker(c)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{c}"/></marker>'
            f'<marker id="{_marker(c)}-back" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{c}"/></marker>'
            for c in (AUDIO, TEXT, SOFT)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{FONT}" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<defs>{heads}</defs>\n"
            f'<rect x="0.7" y="0.7" width="{self.width - 1.4}" height="{self.height - 1.4}" rx="14" fill="{PAPER}" '
            f'stroke="{LINE}"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def _marker(color: str) -> str:
    return f"head{color[1:]}"


def architecture() -> Picture:
    """Who runs where, and what flows between them."""
    p = Picture(1200, 650, "The parts of triton-voice: page, bot, SDK, and three models in one tritonserver")
    p.text(28, 38, "Who talks", 12, SOFT, bold=True)
    p.card(
        24,
        50,
        196,
        100,
        GREY,
        LINE,
        "Browser",
        "the bot's own page: WebRTC,",
        "microphone, loudspeaker,",
        "no request to the outside",
    )
    p.card(24, 196, 196, 84, GREY, LINE, "This machine", "microphone and loudspeaker", "(triton-voice talk)")
    p.card(24, 416, 196, 84, GREY, LINE, "Terminal", "transcribe, speak, chat,", "demo, eval, bench")
    p.card(
        24, 524, 196, 84, GREY, LINE, "Any KServe client", "tritonclient, perf_analyzer,", "Node, Go, ... by the schema"
    )
    # The bot
    p.box(264, 24, 292, 372, VIOLET, VIOLET_LINE, 12)
    p.text(280, 48, "Bot", 15, bold=True)
    p.text(316, 48, "one process, a pipeline per person", 11.5, SOFT)
    p.card(
        278,
        60,
        264,
        72,
        PAPER,
        VIOLET_LINE,
        "Turn-taking",
        "Silero VAD, Smart Turn v3, real words;",
        "begins an answer early, holds it back",
    )
    p.card(278, 142, 264, 52, PAPER, HEAR_LINE, "TritonSTTService", "a stream per segment, 160 ms pieces")
    p.card(278, 204, 264, 52, PAPER, THINK_LINE, "TritonLLMService", "tools, history, sentence by sentence")
    p.card(278, 266, 264, 52, PAPER, SPEAK_LINE, "TritonTTSService", "sentences as pieces of one utterance")
    p.card(278, 328, 264, 56, PAPER, VIOLET_LINE, "Memory", "only the words that were heard")
    # The SDK
    p.box(590, 24, 72, 476, GREY, LINE, 12)
    p.text(626, 240, "SDK", 15, bold=True, at="middle")
    for i, words in enumerate(("asyncio,", "typed,", "cancels")):
        p.text(626, 260 + 16 * i, words, 11.5, SOFT, at="middle")
    # Triton
    p.box(738, 24, 440, 584, GREEN, GREEN_LINE, 12)
    p.text(754, 49, "tritonserver", 15, bold=True)
    p.text(868, 49, "gRPC 8001, HTTP 8000, metrics 8002", 11.5, SOFT)
    lanes: tuple[tuple[Any, ...], ...] = (
        (
            (62, HEAR, HEAR_LINE, "parakeet", "hears: sequence batcher, one stub process"),
            ("Triton", "checks each", "request"),
            (
                "Engine thread",
                "log-mel, conformer,",
                "RNN-T: all callers'",
                "chunks in a step,",
                "states in slots (GPU)",
            ),
            ("Delivery", "words, times,", "one answer", "per request"),
        ),
        (
            (244, THINK, THINK_LINE, "nemotron", "thinks: backend vllm, decoupled"),
            ("Event loop", "chat template,", "tool calls,", "thoughts"),
            ("vLLM's engine", "its own process:", "continuous batching,", "paged and prefix", "cache (GPU)"),
            ("Courier", "sends deltas,", "sees who", "went away"),
        ),
        (
            (426, SPEAK, SPEAK_LINE, "magpie", "speaks: decoupled, one stub process"),
            ("Triton", "checks,", "queues"),
            ("Engine thread", "slots: decoder steps", "for all; codec with", "carried state beside", "them (GPU)"),
            ("Sender", "chunks by the", "playout buffer,", "sees who went"),
        ),
    )
    for (y, fill, line, name, how), first, engine, last in lanes:
        p.box(752, y, 412, 168, fill, line, 10)
        p.text(766, y + 24, name, 14, bold=True)
        p.text(774 + 10.2 * len(name), y + 24, how, 11.5, SOFT)
        p.card(764, y + 38, 108, 118, PAPER, line, *first)
        p.card(888, y + 38, 142, 118, PAPER, line, *engine)
        p.card(1046, y + 38, 108, 118, PAPER, line, *last)
        p.arrow([(872, y + 134), (887, y + 134)], SOFT)
        p.arrow([(1030, y + 134), (1045, y + 134)], SOFT)
    # What flows
    p.arrow([(220, 96), (278, 96)], AUDIO, both=True)
    p.arrow([(220, 238), (242, 238), (242, 116), (278, 116)], AUDIO, both=True)
    for y, color in ((168, AUDIO), (230, TEXT), (292, TEXT)):
        p.arrow([(542, y), (590, y)], color, both=True)
    p.arrow([(220, 458), (590, 458)], TEXT, both=True)
    p.text(300, 450, "files, prompts, texts", 11, SOFT)
    p.arrow([(220, 566), (752, 566)], SOFT, both=True)
    p.text(300, 558, "gRPC, KServe v2: no package of ours needed", 11, SOFT)
    for y, there, what, back, comes in (
        (118, AUDIO, "PCM 16 kHz", TEXT, "transcripts"),
        (300, TEXT, "messages", TEXT, "tokens"),
        (464, TEXT, "sentences", AUDIO, "22.05 kHz"),
    ):
        p.arrow([(662, y), (752, y)], there)
        p.text(699, y - 7, what, 10.5, there, at="middle")
        p.arrow([(752, y + 30), (662, y + 30)], back, dashed=True)
        p.text(699, y + 47, comes, 10.5, back, at="middle")
    for x, color, words in ((28, AUDIO, "audio"), (110, TEXT, "text"), (182, SOFT, "either")):
        p.arrow([(x, 631), (x + 26, 631)], color)
        p.text(x + 32, 635, words, 11, SOFT)
    p.text(1176, 635, "Prometheus reads 8002; spans of bot, SDK and Triton join in one trace", 11, SOFT, at="end")
    return p


def turn() -> Picture:
    """One turn from the user's last sounds to the bot's first, not to scale."""
    p = Picture(1200, 470, "The timeline of one turn")
    rows = ("user", "parakeet", "turn-taking", "nemotron", "magpie", "loudspeaker")
    top, step, left = 70, 58, 130
    for i, name in enumerate(rows):
        y = top + step * i
        p.text(118, y + 25, name, 13, bold=True, at="end")
        p.parts.append(f'<line x1="{left}" y1="{y + 46}" x2="1176" y2="{y + 46}" stroke="{LINE}" stroke-width="1"/>')

    def bar(row: int, start: float, end: float, fill: str, line: str, words: str, color: str = INK) -> None:
        y = top + step * row
        p.box(start, y + 4, end - start, 34, fill, line, 7)
        p.text((start + end) / 2, y + 25.5, words, 11.5, color, at="middle")

    for x, words in ((430, "last sound"), (862, "first sound")):
        p.parts.append(
            f'<line x1="{x}" y1="52" x2="{x}" y2="{top + step * 6 - 8}" stroke="{TEXT}" stroke-width="1.6" '
            'stroke-dasharray="3 4"/>'
        )
        p.text(x, 44, words, 12, TEXT, bold=True, at="middle")
    bar(0, 136, 430, GREY, LINE, '"... the weather in Paris tomorrow?"')
    for i in range(5):
        bar(1, 176 + 58 * i, 224 + 58 * i, HEAR, HEAR_LINE, "160 ms")
    bar(1, 636, 716, HEAR, HEAR_LINE, "final")
    bar(2, 430, 620, VIOLET, VIOLET_LINE, "silence 0.2 s (VAD)")
    bar(2, 636, 770, VIOLET, VIOLET_LINE, "Smart Turn: finished?")
    bar(3, 640, 724, THINK, THINK_LINE, "prefill")
    bar(3, 728, 1030, THINK, THINK_LINE, "tokens, sentence by sentence; tools")
    bar(4, 792, 846, SPEAK, SPEAK_LINE, "first")
    bar(4, 850, 1130, SPEAK, SPEAK_LINE, "larger chunks while the playout buffer allows")
    bar(5, 862, 1172, GREY, LINE, '"Tomorrow it will be sunny in Paris ..."')
    p.arrow([(438, 60), (854, 60)], TEXT, both=True)
    p.text(646, 53, "voice to voice: what a person waits", 12, TEXT, bold=True, at="middle")
    p.text(28, 30, "One turn, not to scale", 15, bold=True)
    for y, words in (
        (
            446,
            "The answer begins at the pause, with the words so far, while the final transcript and Smart Turn are on "
            "their way;",
        ),
        (
            462,
            "it is held back until the turn is over, and asked for again if the words have changed. Whoever goes on "
            "talking or interrupts cancels it in every model at its next step.",
        ),
    ):
        p.text(28, y, words, 11.5, SOFT)
    return p


PICTURES = {"architecture.svg": architecture, "turn.svg": turn}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg())
        print(FOLDER / name)
