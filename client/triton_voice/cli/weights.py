"""Which checkpoints a server loads: the options of `serve`, `demo` and others, and making the random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from triton_voice import checkpoints
from triton_voice.cli.console import err
from triton_voice.download.lock import Lock
from triton_voice.download.manifest import repository_of
from triton_voice.errors import InvalidInput
from triton_voice.server.settings import MODELS, Weights, is_llm_profile

#: Said instead of a folder.
RANDOM = Path("random")

ModelsDir = Annotated[
    Path | None,
    typer.Option(
        "--models",
        envvar="TRITON_VOICE_MODELS",
        help="Folder with parakeet.nemo, magpie.nemo, codec.nemo and llm/ (`triton-voice download` makes it), or "
        "`random`: tiny ones, random weights. Default: the small trained checkpoints.",
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
    models: Path | None,
    hub: bool,
    parakeet: str | None,
    magpie: str | None,
    codec: str | None,
    llm: str | None,
    only: Sequence[str] = MODELS,
) -> Weights:
    """Decides what is loaded.

    Args:
        models: A folder of all parts, `random`, or None for the trained ones.
        hub: The published checkpoints by their hub names.
        parakeet: Instead of the folder's.
        magpie: Instead of the folder's.
        codec: Instead of the folder's.
        llm: Instead of the folder's. Of a profile only the engine arguments: the folder's weights stay, and must be its
            own.
        only: The models that will be loaded; what the others need may be missing.

    Raises:
        InvalidInput: `--models` lacks a checkpoint or contradicts another option, or the trained ones are missing.
    """
    if models is not None and hub:
        raise InvalidInput("--models and --hub exclude each other")
    chosen = {"parakeet": parakeet, "magpie": magpie, "codec": codec, "llm": llm}
    if hub:
        base = Weights()
    elif models == RANDOM:
        make_with_progress("tiny")
        base = checkpoints.Checkpoints.in_folder(checkpoints.folder_of("tiny")).weights()
    elif models is not None:
        base, chosen["llm"] = _in_folder(models, chosen, only)
    else:
        try:
            base = checkpoints.trained()
        except FileNotFoundError as error:
            raise InvalidInput(str(error)) from None
    return base.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _in_folder(models: Path, chosen: dict[str, str | None], only: Sequence[str]) -> tuple[Weights, str | None]:
    """Returns a folder's checkpoints, and what of `--llm` remains to replace the folder's language model."""
    found = checkpoints.Checkpoints.in_folder(models)
    locked = Lock.read(models).parts.get("nemotron")
    llm = chosen["llm"]
    profile = locked.profile if locked is not None else None
    if is_llm_profile(llm) and found.llm.exists():
        profile, llm = llm, None
        if locked is not None and (wanted := repository_of(str(profile))) != locked.repository:
            raise InvalidInput(
                f"the profile {profile} is for {wanted}, and {found.llm} is {locked.repository}: get the other with "
                f"`triton-voice download --only nemotron --llm {profile} --to {models}`"
            )
    needed = {
        "parakeet": [("parakeet", found.parakeet)],
        "magpie": [("magpie", found.magpie), ("codec", found.codec)],
        "nemotron": [("llm", found.llm)],
    }
    missing = [
        str(path)
        for model in only
        for name, path in needed[model]
        if not path.exists() and (llm if name == "llm" else chosen[name]) is None
    ]
    if missing:
        raise InvalidInput(f"--models {models} lacks {', '.join(missing)}")
    label = f"checkpoints in {models}"
    return found.weights().model_copy(update={"label": label, "llm_profile": profile if llm is None else None}), llm
