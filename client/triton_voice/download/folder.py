"""Finds files that are already on this machine: fetched elsewhere, by another tool, or by this command."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from triton_voice.download.errors import DownloadError
from triton_voice.download.layout import place_of
from triton_voice.download.lock import Lock
from triton_voice.download.manifest import FileEntry, Source
from triton_voice.download.verify import difference, measure, missing_of_llm

_NOT_WEIGHTS = (".cache", ".git", ".gitattributes")


def find(source: Source, folder: Path) -> dict[str, Path]:
    """Returns a source's files in a folder, by their path in the repository.

    Looked for in this order: as this command lays them out (`parakeet.nemo`, `llm/`), in a folder of the repository's
    name (`hf download --local-dir`), in the folder itself, and in a cache of the hub
    (`models--owner--name/snapshots/REVISION`).

    Raises:
        DownloadError: They are not there, or not all.
    """
    looked = []
    for root in _roots(source, folder):
        looked.append(root)
        if source.part == "nemotron":
            if (root / "config.json").is_file():
                return _whole_folder(source, root)
        else:
            (name,) = source.files or {}
            if (root / name).is_file():
                return {name: root / name}
    if source.part != "nemotron" and place_of(folder, source.part).is_file():
        (name,) = source.files or {}
        return {name: place_of(folder, source.part)}
    raise DownloadError(
        f"{source.repository} is not in {folder}; looked for "
        + ("config.json" if source.part == "nemotron" else f"{source.part}.nemo and {next(iter(source.files or {}))}")
        + f" in {', '.join(str(path) for path in [folder, *looked])}"
    )


def _roots(source: Source, folder: Path) -> Iterator[Path]:
    if source.part == "nemotron":
        yield place_of(folder, source.part)
    yield folder / source.repository
    yield folder / source.name
    yield folder
    for cache in (folder, folder / "hub"):
        snapshots = cache / f"models--{source.repository.replace('/', '--')}" / "snapshots"
        if source.revision is not None:
            yield snapshots / source.revision
        elif snapshots.is_dir():
            yield from sorted(snapshots.iterdir())


def _whole_folder(source: Source, root: Path) -> dict[str, Path]:
    files = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in _NOT_WEIGHTS
    }
    if missing := missing_of_llm(root, files):
        raise DownloadError(f"{source.repository} in {root} is not whole: it lacks {', '.join(missing)}")
    return files


def check(source: Source, files: dict[str, Path], lock: Lock) -> tuple[dict[str, FileEntry], bool]:
    """Measures files and compares them with the manifest, and with the lock that came with them.

    Args:
        source: What they should be.
        files: By path in the repository.
        lock: The lock of the folder that they lie in; may be empty.

    Returns:
        Size and checksum of each file, and whether there was a checksum to compare each with.

    Raises:
        DownloadError: A file is another one.
    """
    expected: dict[str, FileEntry] = {}
    locked = lock.parts.get(source.part)
    if locked is not None and locked.repository == source.repository:
        expected |= locked.files
        if absent := sorted(set(locked.files) - set(files)):
            raise DownloadError(f"{source.repository} is not whole: {', '.join(absent)} is missing")
    expected |= {path: entry for path, entry in (source.files or {}).items() if entry.sha256 is not None}
    measured = {}
    for path, file in files.items():
        measured[path] = found = measure(file)
        if path in expected and (wrong := difference(found, expected[path])):
            raise DownloadError(f"{file} {wrong}: it is damaged, or not {source.repository} at the pinned revision")
    return measured, all(path in expected and expected[path].sha256 is not None for path in files)


def revision_of(source: Source, files: dict[str, Path], lock: Lock, compared: bool) -> str | None:
    """Returns the commit that files are of, if anything tells: the lock, equal checksums, or a cache's folder."""
    locked = lock.parts.get(source.part)
    if locked is not None and locked.repository == source.repository:
        return locked.revision
    if compared:
        return source.revision
    file = next(iter(files.values()))
    parents = [parent.name for parent in file.parents]
    return next((name for name, above in itertools.pairwise(parents) if above == "snapshots"), None)


def place(files: dict[str, Path], staged: Path) -> None:
    """Brings files into a staging folder: as hard links on the same disk, which takes no room, else as copies.

    Raises:
        DownloadError: There is not enough room.
    """
    staged.mkdir(parents=True, exist_ok=True)
    for path, file in files.items():
        target = staged / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:
            try:
                shutil.copyfile(file, target)
            except OSError as error:
                target.unlink(missing_ok=True)
                raise DownloadError(f"{file} cannot be copied to {target}: {error}") from None
