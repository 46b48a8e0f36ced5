"""Matrix products of few rows, which read their matrix once, and what the fused kernels have in common."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

from parakeet_engine import kernels

FEW_ROWS = 4
"""Rows up to which a matrix product is a sum of products, one pass over the matrix; beyond, tensor cores are faster."""
TILE = 8192
"""Weights that a program of such a product holds, and multiplies with every row."""
WARPS = 4
"""Of a program, as a rule."""
WARP_INPUTS = 256
"""Inputs for which a program of a product has a warp, up to `WARPS`."""
EARLY_CAPABILITY = 9, 0
"""Compute capability from which on a kernel can start before the one ahead of it is over."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""Relative difference from PyTorch's kernels, one after the other, that rounding explains."""


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel can start before the one ahead of it is over."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= EARLY_CAPABILITY


def _tiling(inputs: int) -> tuple[int, int]:
    """Returns how many outputs of a product of few rows a program computes, and with how many warps."""
    padded = triton.next_power_of_2(inputs)
    return max(1, min(8, TILE // padded)), max(1, min(WARPS, padded // WARP_INPUTS))


def few_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    norm: torch.nn.LayerNorm | None = None,
    silu: bool = False,
    added: torch.Tensor | None = None,
    factor: float = 1.0,
    before: torch.nn.LayerNorm | None = None,
    renewed: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[added + factor *] [silu] ([norm](x) @ weight.T + bias) for at most `FEW_ROWS` rows, (.., inputs).

    With `before`, another norm, x is that norm of x, and goes into `renewed`.
    """
    outputs, inputs = weight.shape[:2]
    rows = x.numel() // inputs
    if out is None:
        out = x.new_empty(*x.shape[:-1], outputs)
    (block, warps), early = _tiling(inputs), starts_early(x.device)
    kernels.few_rows[(triton.cdiv(outputs, block),)](
        x, weight, bias, added, out, norm and norm.weight, norm and norm.bias, norm.eps if norm else 0.0,
        before and before.weight, before and before.bias, before.eps if before else 0.0, renewed, factor,
        outputs, inputs,
        NORM=norm is not None, TWICE=before is not None, HAS_BIAS=bias is not None, SILU=silu, ADD=added is not None,
        ROWS=rows, ROWS_PADDED=triton.next_power_of_2(rows), OUTPUTS=block, INPUTS=triton.next_power_of_2(inputs),
        EARLY=early, num_warps=warps, launch_pdl=early,
    )  # fmt: skip
    return out


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    added: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns x @ weight.T + bias [+ added] for x of (rows, inputs), which goes into `out` if that is given."""
    if len(x) <= FEW_ROWS:
        return few_rows(x, weight, bias, added=added, out=out)
    product = F.linear(x, weight, bias)
    product = product if added is None else product.add_(added)
    return product if out is None else out.copy_(product)


def compare(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compares a fused kernel's result with PyTorch's.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not difference < TOLERANCE[ours.dtype]:
        raise RuntimeError(f"the fused kernels of {what} differ from PyTorch's by {difference:.1e}")
