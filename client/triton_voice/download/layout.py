"""Where the parts lie in the folder that `triton-voice serve --models` reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from triton_voice.download.errors import DownloadError
from triton_voice.download.lock import LOCK_NAME, Lock
from triton_voice.download.manifest import Part
from triton_voice.download.verify import difference, measure
from triton_voice.paths import cache_dir

STAGING = ".partial"
"""Folder beside the parts in which they come together: the same disk, so that the last step is a rename."""
LLM_FOLDER = "llm"


def default_folder() -> Path:
    """Returns the folder that is taken where none is named."""
    return cache_dir() / "published"


def place_of(folder: Path, part: Part) -> Path:
    """Returns the path of a part: a `.nemo` file, or the language model's folder."""
    return folder / (LLM_FOLDER if part == "nemotron" else f"{part}.nemo")


def file_of(folder: Path, part: Part, path: str) -> Path:
    """Returns where a repository's file lies in the folder."""
    return place_of(folder, part) / path if part == "nemotron" else place_of(folder, part)


def staging_of(folder: Path, part: Part, revision: str | None) -> Path:
    """Returns the folder in which a part comes together. It has the revision's name: another one begins anew."""
    return folder / STAGING / f"{part}-{(revision or 'local')[:12]}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second download out of a folder: both would append to the same partial files.

    Raises:
        DownloadError: Another one is at work there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another `triton-voice download` is at work in {folder}") from None
        yield
    finally:
        os.close(handle)


def present(folder: Path, lock: Lock, parts: Iterable[Part]) -> dict[Part, bool]:
    """Tells which parts are there: whole in size, by the lock.

    Raises:
        DownloadError: A part is there that no download has recorded.
    """
    there = {}
    for part in parts:
        locked = lock.parts.get(part)
        if locked is None and place_of(folder, part).exists():
            raise DownloadError(
                f"{place_of(folder, part)} is there, but {LOCK_NAME} does not know of it: move it away, or record it "
                f"with `triton-voice download --from {folder} --to {folder}`"
            )
        there[part] = locked is not None and all(
            (file := file_of(folder, part, path)).is_file() and file.stat().st_size == entry.size
            for path, entry in locked.files.items()
        )
    return there


def install(staged: Path, folder: Path, part: Part) -> None:
    """Moves a whole part from its staging folder to its place; an older one there is replaced.

    Args:
        staged: Folder with the repository's files; of a speech model the one `.nemo` file.
        folder: The folder of all parts.
        part: Which part.
    """
    place = place_of(folder, part)
    if part != "nemotron":
        (file,) = (path for path in staged.rglob("*") if path.is_file())
        file.replace(place)
    else:
        old = staged.with_name(staged.name + "-old")
        if place.exists():
            place.replace(old)
        staged.replace(place)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(staged, ignore_errors=True)
    staging = folder / STAGING
    if staging.is_dir() and not any(staging.iterdir()):
        staging.rmdir()


def damage(folder: Path, part: Part, lock: Lock) -> list[str]:
    """Compares every byte of a part with the lock; returns what is wrong, in words."""
    problems = []
    for path, entry in lock.parts[part].files.items():
        file = file_of(folder, part, path)
        if not file.is_file():
            problems.append(f"{file} is missing")
        elif wrong := difference(measure(file), entry):
            problems.append(f"{file} {wrong}")
    return problems
