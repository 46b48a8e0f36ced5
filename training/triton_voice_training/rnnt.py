"""The transducer loss in plain torch: the same code on a processor and on a GPU, nothing to compile.

Graves 2012, "Sequence transduction with recurrent neural networks", sections 2.4 and 2.5. The lattice of T frames by
U + 1 predictor states is walked along its anti-diagonals, whose nodes do not depend on each other: T + U steps of one
vector operation over the whole batch. The gradient is written out, so nothing is recorded on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

#: Logarithm of an impossible path; finite, so that sums of two of them are numbers.
IMPOSSIBLE = -1e30


def rnnt_loss(
    logits: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor, blank: int
) -> torch.Tensor:
    """Returns -log P(targets) of each utterance.

    Args:
        logits: (batch, T, U + 1, classes), of the joint network, normalised or not.
        targets: (batch, U), int64.
        frames: (batch,), valid frames of each utterance, at least 1.
        tokens: (batch,), valid targets of each utterance, 0 allowed.
        blank: Class of the blank.

    Returns:
        (batch,), float.
    """
    total = torch.logsumexp(logits, -1)  # (batch, T, U + 1)
    batch, width = targets.shape
    expanded = targets[:, None, :, None].expand(batch, logits.shape[1], width, 1)
    emit = logits[:, :, :-1].gather(-1, expanded).squeeze(-1) - total[:, :, :-1]
    result: torch.Tensor = _Lattice.apply(logits[..., blank] - total, emit, frames, tokens)
    return result


class _Lattice(torch.autograd.Function):
    """Forward and backward variables over log-probabilities of blank (batch, T, U + 1) and of targets (batch, T, U)."""

    @staticmethod
    def forward(
        ctx: Any, blank: torch.Tensor, emit: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        batch, duration, states = blank.shape
        device = blank.device
        emit = F.pad(emit, (0, 1), value=IMPOSSIBLE)  # no target follows the last state
        diagonals = duration + states  # the last holds only the end, beyond the last frame
        state = torch.arange(states, device=device)
        time = torch.arange(diagonals, device=device)[:, None] - state  # (diagonals, states): frame of a node
        inside = (time >= 0) & (time < frames[:, None, None])  # (batch, diagonals, states)
        index = time.clamp(0, duration - 1)
        blank = torch.where(inside & (state <= tokens[:, None, None]), blank[:, index, state], IMPOSSIBLE)
        emit = torch.where(inside & (state < tokens[:, None, None]), emit[:, index, state], IMPOSSIBLE)
        alphas = [F.pad(torch.zeros(batch, 1, device=device, dtype=blank.dtype), (0, states - 1), value=IMPOSSIBLE)]
        for diagonal in range(diagonals - 1):
            before = alphas[-1]
            moved = F.pad((before + emit[:, diagonal])[:, :-1], (1, 0), value=IMPOSSIBLE)
            alphas.append(torch.logaddexp(before + blank[:, diagonal], moved))
        alpha = torch.stack(alphas, 1)
        likelihood = alpha[torch.arange(batch, device=device), frames + tokens, tokens]
        ctx.save_for_backward(blank, emit, alpha, likelihood, frames, tokens)
        ctx.duration = duration
        return -likelihood

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        blank, emit, alpha, likelihood, frames, tokens = ctx.saved_tensors
        batch, diagonals, states = blank.shape
        device = blank.device
        end = torch.full_like(blank, IMPOSSIBLE)
        end[torch.arange(batch, device=device), frames + tokens, tokens] = 0
        stays, moves = [end[:, -1]], [torch.full_like(end[:, -1], IMPOSSIBLE)]  # what follows a blank, a target
        beta = end[:, -1]
        for diagonal in range(diagonals - 2, -1, -1):
            stays.append(beta)
            moves.append(F.pad(beta[:, 1:], (0, 1), value=IMPOSSIBLE))
            beta = torch.logaddexp(beta + blank[:, diagonal], moves[-1] + emit[:, diagonal])
            beta = torch.maximum(beta, end[:, diagonal])
        scale = alpha - likelihood[:, None, None]
        of_blank = -torch.exp(scale + blank + torch.stack(stays[::-1], 1)) * gradient[:, None, None]
        of_emit = -torch.exp(scale + emit + torch.stack(moves[::-1], 1)) * gradient[:, None, None]
        state = torch.arange(states, device=device)
        diagonal_of = torch.arange(ctx.duration, device=device)[:, None] + state  # (T, U + 1)
        return of_blank[:, diagonal_of, state], of_emit[:, diagonal_of, state][:, :, :-1], None, None
