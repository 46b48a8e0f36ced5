"""Rewrites a `.nemo` archive so that the same weights give the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

_ARTIFACT = re.compile(r"^[0-9a-f]{32}_")


def repack(path: Path, replace: Mapping[str, str] | None = None, *, compress: bool = False) -> Path:
    """Makes a saved `.nemo` reproducible, in place.

    NeMo prefixes every packed artifact with a random UUID, records where it came from, and stamps members with the
    time. Here the prefix becomes the hash of the content, members are sorted, and owners and times are zero.

    Args:
        path: The archive that `save_to` wrote.
        replace: Strings in the model's configuration to replace, e.g. a temporary folder's name.
        compress: Compresses the archive; NeMo reads it all the same, a little later.

    Returns:
        The same path.
    """
    with tarfile.open(path) as archive:
        members = {
            Path(m.name).name: archive.extractfile(m).read()  # type: ignore[union-attr]
            for m in archive.getmembers()
            if m.isfile()
        }
    renames = {
        name: hashlib.md5(data, usedforsecurity=False).hexdigest() + name[32:]
        for name, data in members.items()
        if _ARTIFACT.match(name)
    }
    config = members["model_config.yaml"].decode()
    for old, new in {**(replace or {}), **renames}.items():
        config = config.replace(old, new)
    members["model_config.yaml"] = config.encode()
    temporary = path.with_suffix(".partial")
    with (
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) if compress else contextlib.nullcontext(file) as sink,
        tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, data in sorted((renames.get(name, name), data) for name, data in members.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(data))
    temporary.replace(path)
    return path
