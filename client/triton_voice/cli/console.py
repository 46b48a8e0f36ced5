"""What the commands share: the console, the options that recur, and how they end."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from triton_voice.client import DEFAULT_URL

out = Console()
"""For results."""
err = Console(stderr=True)
"""For progress and errors, so that results can be piped."""

Url = Annotated[str, typer.Option("--server", envvar="TRITON_VOICE_URL", help="gRPC endpoint of the server.")]
URL: str = DEFAULT_URL


def fail(message: str, *more: str | None) -> NoReturn:
    """Says what went wrong and exits with code 1."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    for line in more:
        if line:
            err.print(f"       {escape(line)}", highlight=False, soft_wrap=True)
    sys.exit(1)
