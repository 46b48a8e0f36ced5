"""Compares bytes with checksums, and folders of language models with their own index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from triton_voice.download.errors import DownloadError
from triton_voice.download.manifest import FileEntry

READ_BYTES = 8 * 2**20


def measure(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> FileEntry:
    """Returns a file's size and sha256.

    Args:
        path: The file.
        on_bytes: Called with the number of bytes after each piece.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            size += len(piece)
            on_bytes(len(piece))
    return FileEntry(size=size, sha256=digest.hexdigest())


def git_blob_id(path: Path) -> str:
    """Returns git's own id of a file's content, the only checksum that the hub tells of small files."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def difference(found: FileEntry, expected: FileEntry) -> str | None:
    """Says how a file differs from what is expected; None: it does not, as far as is known."""
    if expected.size is not None and found.size != expected.size:
        return f"has {found.size} bytes instead of {expected.size}"
    if expected.sha256 is not None and found.sha256 != expected.sha256:
        return f"has the checksum {found.sha256} instead of {expected.sha256}"
    return None


def missing_of_llm(folder: Path, files: Iterable[str] | None = None) -> list[str]:
    """Returns what a Hugging Face folder lacks, by its own index of shards.

    Args:
        folder: The folder.
        files: The names that it has; None: look.

    Raises:
        DownloadError: The index is broken.
    """
    names = set(files) if files is not None else {path.name for path in folder.iterdir()}
    missing = [name for name in ("config.json", "tokenizer_config.json") if name not in names]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DownloadError(f"{index} is broken ({error}): get it again") from None
        missing += [shard for shard in shards if shard not in names]
    elif not any(name.endswith((".safetensors", ".bin")) for name in names):
        missing.append("model.safetensors")
    return missing
