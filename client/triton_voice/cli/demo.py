"""`triton-voice demo`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import soundfile
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from triton_voice.audio import read_audio
from triton_voice.cli import weights as weight_options
from triton_voice.cli.console import err, out
from triton_voice.cli.serving import running
from triton_voice.client import TritonVoice
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.turn import TurnResult, run_turn
from triton_voice.types import ASR_SAMPLE_RATE

QUESTION = "data/question.wav"
STAGES = {
    "first_partial": "first partial transcript, from the first sample",
    "final_transcript": "final transcript, from the last sample",
    "first_token": "first token of the reply, from the last sample",
    "first_audio": "first audio of the reply, from the last sample",
    "total": "whole reply spoken, from the last sample",
}


def _screen(result: TurnResult) -> Group:
    """The turn so far."""
    heard = result.transcript or (result.partials[-1] if result.partials else "...")
    spoken = f"{result.audio_seconds:.2f} s" if result.audio_seconds else "..."
    return Group(
        Text.assemble(("heard   ", "bold cyan"), heard),
        Text.assemble(("reply   ", "bold magenta"), result.reply or "..."),
        Text.assemble(("speech  ", "bold green"), spoken),
    )


@contextlib.contextmanager
def _endpoint(url: str | None, models: Path | None) -> Iterator[tuple[str, str]]:
    """The given server, or one of our own on free ports; with what is known of its weights."""
    if url is not None:
        yield url, ""
        return
    weights = weight_options.resolve(models, False, None, None, None, None)
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0)
    with running(TritonServer(settings, weights)) as server:
        yield server.grpc_url, weights.label


def demo(
    wav: Annotated[Path | None, typer.Argument(help="The question; default: a recorded one.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the reply's speech goes.")] = Path("reply.wav"),
    server: Annotated[
        str | None, typer.Option("--server", envvar="TRITON_VOICE_URL", help="Use a running server.")
    ] = None,
    models: weight_options.ModelsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Send the question at once, not as it is spoken.")] = False,
) -> None:
    """Speak one question to the server and show what happens; starts a server of its own unless given one."""
    path = wav or Path(str(files("triton_voice").joinpath(QUESTION)))
    question = read_audio(path)
    with _endpoint(server, models) as (url, label):

        async def turn() -> TurnResult:
            async with TritonVoice(url) as voice:
                with Live(_screen(TurnResult()), console=err, refresh_per_second=12, transient=as_json) as live:
                    return await run_turn(
                        voice, question, realtime=not fast, seed=0, on_change=lambda r: live.update(_screen(r))
                    )

        err.print(f"question: {path} ({len(question) / ASR_SAMPLE_RATE:.2f} s)", soft_wrap=True)
        result = asyncio.run(turn())
        if not err.is_terminal:
            err.print()  # rich's Live ends without a newline there
    soundfile.write(output, result.audio, result.sample_rate, subtype="PCM_16")
    if as_json:
        shown = {
            "transcript": result.transcript,
            "partials": result.partials,
            "reply": result.reply,
            "audio_seconds": round(result.audio_seconds, 3),
            "sample_rate": result.sample_rate,
            "latency_ms": result.latency_ms,
            "audio_file": str(output),
            "weights": label,
        }
        print(json.dumps(shown, ensure_ascii=False))
        return
    table = Table(title="one turn", title_justify="left")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for name, words in STAGES.items():
        if name in result.latency_ms:
            table.add_row(words, f"{result.latency_ms[name]:.0f}")
    out.print(table)
    out.print(f"{result.audio_seconds:.2f} s of speech at {result.sample_rate} Hz in {output}", soft_wrap=True)
    if label:
        out.print(f"[yellow]{label}[/]", soft_wrap=True)
