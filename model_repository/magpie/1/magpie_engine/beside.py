"""Work that a step needs later, beside the work that it needs next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Beside:
    """A second CUDA stream, in CUDA graphs a second branch; on a CPU everything is done where it is begun.

    Args:
        device: Of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, work: Callable[[], T]) -> Callable[[], T]:
        """Gives work to the device, to be done after all that the current stream was given so far.

        What it reads and returns must be kept until the current stream has waited for the last work of a step: streams
        do not know of each other's use of memory.

        Args:
            work: Gives the work.

        Returns:
            Makes the current stream wait for it; returns its result.
        """
        if self._stream is None:
            result = work()
            return lambda: result
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
            done = torch.cuda.Event()
            done.record()

        def wait() -> T:
            torch.cuda.current_stream().wait_event(done)
            return result

        return wait
