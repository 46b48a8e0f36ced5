"""How exactly convolutions are computed on CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def convolutions(*, tf32: bool) -> Iterator[None]:
    """Allows or forbids cuDNN's convolutions of float32 to round to TF32 (10 bits), for a while.

    PyTorch allows it by default, in a flag of the process, which others may read: it is put back. A CUDA graph keeps
    the kernels that were chosen when it was captured, so what is captured inside stays as exact when it is replayed.

    Args:
        tf32: Whether they may.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
