"""CUDA graphs: a decoding step (decoder, alignment, local transformer, sampling) or a piece of audio in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Runs before the capture, in which libraries allocate their workspaces.
WARM_UPS = 3


class StepGraph:
    """The captured step of one batch size and one number of positions. It reads and writes the slots' own tensors.

    Args:
        step: Runs it; takes nothing, returns codes and numbers as `ModelRunner` does.
        live: Slots in it.
        longest: Most positions filled in any of them.
        width: Most text tokens.
        pool: Memory pool of graphs that never run at the same time.
    """

    def __init__(
        self, step: Callable[[], tuple[Tensor, Tensor]], live: int, longest: int, width: int, pool: Any
    ) -> None:
        self.live, self.longest, self._width = live, longest, width
        # Before the codec's, of which the listener has some in hand.
        self._graph, self._result = _capture(step, pool, priority=-1)

    def fits(self, live: int, longest: int, width: int) -> bool:
        """Whether a step of so many slots, positions and tokens is one of this graph."""
        return live <= self.live and longest <= self.longest and width <= self._width

    def run(self) -> tuple[Tensor, Tensor]:
        """Runs the step; the result is overwritten by the next run."""
        self._graph.replay()
        return self._result


class CodecGraph:
    """The captured codec decoder of one batch size and one number of frames, with the buffers that it reads.

    Args:
        decoder: From latent (n, width, frames) and state (n, state) to samples and state.
        latent: Zeros of the shape of its input.
        state: Zeros of the shape of its state.
        pool: Memory pool of graphs that never run at the same time.
    """

    def __init__(
        self, decoder: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], latent: Tensor, state: Tensor, pool: Any
    ) -> None:
        self._latent, self._state = latent, state
        self._graph, self._result = _capture(lambda: decoder(latent, state), pool)

    def run(self, latent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes up to as many utterances as there is room for; the state is overwritten by the next run."""
        live = len(latent)
        self._latent[:live] = latent
        self._state[:live] = state
        self._graph.replay()
        samples, after = self._result
        return samples[:live].clone(), after[:live]


def _capture(
    work: Callable[[], tuple[Tensor, Tensor]], pool: Any, priority: int = 0
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
    side = torch.cuda.Stream(priority=priority)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side):
        result = work()
    return graph, result


def batch_sizes(largest: int) -> list[int]:
    """Batch sizes that graphs are captured for: powers of two up to the largest batch."""
    return [*(1 << power for power in range(largest.bit_length()) if 1 << power < largest), largest]
