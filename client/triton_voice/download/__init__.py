"""Gets the published checkpoints: what to get, from the hub or from a folder, verified and laid out for the server.

`manifest` says what there is, `lock` what was got, `hub` asks and fetches, `folder` finds files that are already here,
`layout` puts them where `triton-voice serve --models` looks, and `verify` compares bytes.
"""

from triton_voice.download.errors import DownloadError
from triton_voice.download.lock import LOCK_NAME, Lock, LockedSource
from triton_voice.download.manifest import PARTS, FileEntry, Manifest, Part, Source

__all__ = ["LOCK_NAME", "PARTS", "DownloadError", "FileEntry", "Lock", "LockedSource", "Manifest", "Part", "Source"]
