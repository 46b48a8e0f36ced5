"""Ends the engine's process when Triton's stub dies without a goodbye (killed, crashed, out of memory).

vLLM's engine process does not watch its parent: it would live on with its GPU memory, and the next start would fail.
vLLM imports the class named by the engine argument `worker_extension_cls` in the process that runs the model; importing
this module there ties that process to its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


class Lifeline:
    """Extends vLLM's worker by nothing; it is there to be imported."""


def _tie_to_parent() -> None:
    """Ask the kernel for SIGKILL when the parent goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if multiprocessing.parent_process() is not None:  # only in a child: not in the stub itself, nor in a test
    _tie_to_parent()
