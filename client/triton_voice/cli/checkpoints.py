"""`triton-voice checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triton_voice.checkpoints import RANDOM_WEIGHTS_NOTE, Size
from triton_voice.cli.console import err, out
from triton_voice.cli.weights import make_with_progress


def checkpoints(
    size: Annotated[Size, typer.Option(help="tiny: a few MB; full: the published shapes, several GB.")] = "tiny",
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: the cache.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights: the same seed gives the same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Make them anew.")] = False,
) -> None:
    """Make checkpoints with random weights of the real classes, for trying and for measuring speed."""
    err.print(f"[yellow]{RANDOM_WEIGHTS_NOTE}[/]")
    made = make_with_progress(size, folder, force, seed)
    out.print(str(made), soft_wrap=True, highlight=False)
