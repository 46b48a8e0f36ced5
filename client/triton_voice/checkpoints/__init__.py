"""Checkpoints that need no download: the small trained ones of the default run, and random ones of the real classes.

The trained ones lie in the project's folder `checkpoints` and know one small world. Those with random weights are made
by a command: `tiny` for tests and CI, `full` with the published shapes for measuring speed. What random ones hear,
think and say is nonsense, and every place that shows it says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triton_voice.paths import cache_dir, project_root
from triton_voice.server.settings import Weights

Size = Literal["tiny", "full"]
PARTS = ("parakeet", "magpie", "llm")
TRAINED_NOTE = "small trained checkpoints: they know one small household world and nothing else"
RANDOM_WEIGHTS_NOTE = "random weights: what it hears, thinks and says is nonsense"


@dataclass(frozen=True)
class Checkpoints:
    """Paths of one set of checkpoints.

    Attributes:
        parakeet: `.nemo` of the recogniser.
        magpie: `.nemo` of the synthesiser.
        codec: `.nemo` of the synthesiser's codec.
        llm: Hugging Face folder of the language model.
        size: `tiny` or `full`.
    """

    parakeet: Path
    magpie: Path
    codec: Path
    llm: Path
    size: Size

    @classmethod
    def in_folder(cls, folder: Path, size: Size = "tiny") -> Checkpoints:
        """Returns the paths as `make` lays them out."""
        return cls(folder / "parakeet.nemo", folder / "magpie.nemo", folder / "codec.nemo", folder / "llm", size)

    def weights(self) -> Weights:
        """Returns them as what the server loads."""
        return Weights(
            parakeet=str(self.parakeet),
            magpie=str(self.magpie),
            codec=str(self.codec),
            llm=str(self.llm),
            label=f"{self.size} checkpoints, {RANDOM_WEIGHTS_NOTE}",
        )


def trained() -> Weights:
    """Returns the small trained checkpoints of the project's folder `checkpoints`.

    Raises:
        FileNotFoundError: They are not there, as in an installation without the checkout.
    """
    folder = project_root() / "checkpoints"
    paths = {
        "parakeet": folder / "parakeet-tiny" / "parakeet.nemo",
        "magpie": folder / "magpie-tiny" / "magpie.nemo",
        "codec": folder / "magpie-tiny" / "codec.nemo",
        "llm": folder / "nemotron-tiny",
    }
    if missing := [str(path) for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(
            f"the trained checkpoints {', '.join(missing)} are missing; `--models random` needs none"
        )
    return Weights(**{part: str(path) for part, path in paths.items()}, label=TRAINED_NOTE)


def folder_of(size: Size, seed: int = 0) -> Path:
    """Returns the cache folder of one size; its name has a hash of the makers, so that changed ones make anew."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(sources).hexdigest()[:8]
    return cache_dir() / "checkpoints" / f"{size}-{digest}-seed{seed}"


@contextlib.contextmanager
def _quiet_nemo() -> Iterator[None]:
    """Silences NeMo's and Lightning's banners, which are not for the person who asked for a checkpoint."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # before the import, which warns of its own telemetry
    try:
        from nemo.utils import logging as nemo_logging

        level = nemo_logging.get_verbosity()
        nemo_logging.set_verbosity(nemo_logging.ERROR)
        try:
            with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
                yield
        finally:
            nemo_logging.set_verbosity(level)
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: with more threads the same seed gives other last bits on another machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make(
    size: Size = "tiny",
    out: Path | None = None,
    seed: int = 0,
    parts: tuple[str, ...] = PARTS,
    force: bool = False,
    on_part: Callable[[str], None] = lambda part: None,
) -> Checkpoints:
    """Makes the checkpoints that are not there yet.

    Args:
        size: `tiny` or `full`.
        out: Folder for them; None is the cache folder.
        seed: Seed of the weights: the same seed gives the same bytes.
        parts: Which of `parakeet`, `magpie` (with its codec) and `llm`.
        force: Makes them anew.
        on_part: Called with the name of each part before it is made.

    Returns:
        Their paths.
    """
    folder = out or folder_of(size, seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = Checkpoints.in_folder(folder, size)
    needed = {"parakeet": [found.parakeet], "magpie": [found.magpie, found.codec], "llm": [found.llm]}
    for part in parts:
        if not force and all(p.exists() for p in needed[part]):
            continue
        on_part(part)
        # Made beside its place and moved in, so that an interrupted run leaves nothing that looks whole.
        work = folder / f".making-{part}-{os.getpid()}"
        work.mkdir()
        try:
            with _quiet_nemo(), _one_thread():
                maker = importlib.import_module(f"triton_voice.checkpoints.{part}")
                maker.make(work / "llm" if part == "llm" else work, size, seed)
            for made in work.iterdir():
                target = folder / made.name
                if target.is_dir():
                    shutil.rmtree(target)
                made.replace(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return found
