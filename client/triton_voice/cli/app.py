"""`triton-voice`: the commands and what happens when one fails."""

from __future__ import annotations

import typer
from pydantic import ValidationError

from triton_voice.cli import bench, bot, chat, checkpoints, demo, doctor, download, serve, speak, transcribe
from triton_voice.cli import eval as evaluation
from triton_voice.cli.console import fail
from triton_voice.errors import TritonVoiceError
from triton_voice.server.process import ServerError

app = typer.Typer(
    name="triton-voice",
    help="A local voice agent served by NVIDIA Triton: Parakeet hears, an LLM on vLLM thinks, Magpie speaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("transcribe")(transcribe.transcribe)
app.command("speak")(speak.speak)
app.command("chat")(chat.chat)
app.command("bot")(bot.bot)
app.command("talk")(bot.talk)
app.command("doctor")(doctor.doctor)
app.command("download")(download.download)
app.command("checkpoints")(checkpoints.checkpoints)
app.command("eval")(evaluation.evaluate)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command line; errors become one sentence and exit code 1, Ctrl-C exit code 130."""
    try:
        app()
    except ServerError as error:
        fail(str(error), f"Log: {error.log_file}" if error.log_file else None)
    except ValidationError as error:
        fail(*(f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()))
    except (TritonVoiceError, FileNotFoundError) as error:
        fail(f"{type(error).__name__}: {error}")
