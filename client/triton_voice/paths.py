"""Where the project's parts lie: the checkout (or the image) and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """Returns the folder that holds `model_repository` and `backends`.

    Looked for in `TRITON_VOICE_HOME`, above this package (a checkout or an editable install), then in the working
    directory.

    Raises:
        FileNotFoundError: None of them has a model repository.
    """
    candidates = [Path(__file__).resolve().parents[2], Path.cwd()]
    if home := os.environ.get("TRITON_VOICE_HOME"):
        candidates = [Path(home).expanduser()]
    for candidate in candidates:
        if (candidate / "model_repository" / "parakeet" / "config.pbtxt").is_file():
            return candidate
    looked = ", ".join(str(c) for c in candidates)
    raise FileNotFoundError(f"no model_repository in {looked}; set TRITON_VOICE_HOME to the project's folder")


def cache_dir() -> Path:
    """Returns the cache folder: `TRITON_VOICE_CACHE`, else `triton-voice` in `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("TRITON_VOICE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "triton-voice"
