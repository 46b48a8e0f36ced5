"""Which checkpoints a server loads: the options of `serve`, `demo` and others, and making the random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triton_voice import checkpoints
from triton_voice.cli.console import err
from triton_voice.errors import InvalidInput
from triton_voice.server.settings import Weights

#: Said instead of a folder.
RANDOM = Path("random")

ModelsDir = Annotated[
    Path | None,
    typer.Option(
        "--models",
        envvar="TRITON_VOICE_MODELS",
        help="Folder with parakeet.nemo, magpie.nemo, codec.nemo and llm/, or `random`: tiny ones, random weights. "
        "Default: the small trained checkpoints.",
    ),
]
Hub = Annotated[bool, typer.Option("--hub", help="Load the published checkpoints by their hub names.")]
Parakeet = Annotated[str | None, typer.Option(help="Recogniser: a .nemo file or hub name.")]
Magpie = Annotated[str | None, typer.Option(help="Synthesiser: a .nemo file or hub name.")]
Codec = Annotated[str | None, typer.Option(help="The synthesiser's codec: a .nemo file or hub name.")]
Llm = Annotated[
    str | None, typer.Option(help="Language model: a folder, hub name, profile (spark-fp8, laptop, ...) or model.json.")
]


def make_with_progress(size: checkpoints.Size, out: Path | None = None, force: bool = False, seed: int = 0) -> Path:
    """Makes the checkpoints of a size that are missing, showing which one is at work; returns their folder."""
    with err.status("checkpoints ...") as status:

        def on_part(part: str) -> None:
            status.update(f"making the {size} {part} checkpoint (random weights) ...")

        made = checkpoints.make(size, out=out, seed=seed, force=force, on_part=on_part)
    return made.parakeet.parent


def resolve(
    models: Path | None, hub: bool, parakeet: str | None, magpie: str | None, codec: str | None, llm: str | None
) -> Weights:
    """Decides what is loaded.

    Raises:
        InvalidInput: `--models` lacks a checkpoint or contradicts `--hub`, or the trained ones are missing.
    """
    if models is not None and hub:
        raise InvalidInput("--models and --hub exclude each other")
    if hub:
        base = Weights()
    elif models == RANDOM:
        make_with_progress("tiny")
        base = checkpoints.Checkpoints.in_folder(checkpoints.folder_of("tiny")).weights()
    elif models is not None:
        found = checkpoints.Checkpoints.in_folder(models)
        missing = [str(p) for p in (found.parakeet, found.magpie, found.codec, found.llm) if not p.exists()]
        if missing:
            raise InvalidInput(f"--models {models} lacks {', '.join(missing)}")
        base = found.weights().model_copy(update={"label": f"checkpoints in {models}"})
    else:
        try:
            base = checkpoints.trained()
        except FileNotFoundError as error:
            raise InvalidInput(str(error)) from None
    chosen = {"parakeet": parakeet, "magpie": magpie, "codec": codec, "llm": llm}
    return base.model_copy(update={name: value for name, value in chosen.items() if value is not None})
