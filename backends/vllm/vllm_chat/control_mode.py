"""Finds out whether Triton lets models be unloaded: its Python backend does not say."""

from __future__ import annotations

import itertools
from pathlib import Path

FLAG, EXPLICIT = "--model-control-mode", "explicit"


def unloads_on_request(server_pid: int) -> bool:
    """Tell whether a tritonserver was started with `--model-control-mode=explicit`.

    Asked to unload a model in another mode, Triton 2.51 crashes the process that asks, and later requests hang.

    Args:
        server_pid: Process id of the server, the parent of a model's process.
    """
    try:
        words = Path(f"/proc/{server_pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return f"{FLAG}={EXPLICIT}" in words or (FLAG, EXPLICIT) in itertools.pairwise(words)
