"""Magpie's tables of codes, learned by levels.

A code of the finite scalar quantiser is four levels, and neighbouring levels sound alike. NeMo's tables have a free row
for each of the 2016 codes; here a row is the sum of four, one for each level, and a code's probability the product of
four. That is learned from a fraction of the speech and in a fraction of the time. `fill` writes the sums into NeMo's
own tables, so what is served is an ordinary Magpie checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

#: Bias of a token that is never to be drawn.
NEVER = -100.0


class LevelTables(nn.Module):
    """Embeddings of codes and the heads that predict them.

    Each codebook has its own slice of the embedding's width, so that what a codebook says is not added to what another
    says. Zeros fill the rest of NeMo's tables; they compress to nothing.

    Args:
        groups: Codebooks.
        sizes: Levels of each value of a code.
        width: Of an embedding; a multiple of `groups`.
        local_width: Of the local transformer.
    """

    _base: Tensor
    _first: Tensor

    def __init__(self, groups: int, sizes: Sequence[int], width: int, local_width: int) -> None:
        super().__init__()
        self.groups, self.sizes, self.width = groups, tuple(sizes), width
        self.slice = width // groups
        rows = sum(sizes)
        #: Rows of levels, then of the tokens that begin and end speech.
        self.embedding = nn.Parameter(torch.randn(groups, rows + 2, self.slice))
        #: Rows of levels, then of the end.
        self.head = nn.Parameter(torch.randn(groups, rows + 1, local_width) * local_width**-0.5)
        self.bias = nn.Parameter(torch.zeros(groups, rows + 1))
        self.register_buffer("_first", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))]), persistent=False)
        bases = [1]
        for size in sizes[:-1]:
            bases.append(bases[-1] * size)
        self.register_buffer("_base", torch.tensor(bases), persistent=False)

    def embed(self, levels: Tensor) -> Tensor:
        """Levels (..., groups, 4) to what each codebook says, (..., groups, slice)."""
        rows = self.embedding.shape[1]
        codebook = torch.arange(self.groups, device=levels.device)[:, None]
        return F.embedding(levels + self._first + rows * codebook, self.embedding.flatten(0, 1)).sum(-2)

    @property
    def begin(self) -> Tensor:
        """What the begin token says, (groups, slice)."""
        return self.embedding[:, -2]

    @property
    def end(self) -> Tensor:
        """What the end token says, (groups, slice)."""
        return self.embedding[:, -1]

    def spread(self, said: Tensor) -> Tensor:
        """What codebooks say (..., groups, slice) as rows of NeMo's tables, (..., groups, width)."""
        apart = torch.eye(self.groups, device=said.device, dtype=said.dtype)
        return (said[..., None, :] * apart[..., None]).flatten(-2)

    def surprise(self, hidden: Tensor, levels: Tensor, is_end: Tensor) -> Tensor:
        """Negative log-likelihoods of codes.

        Args:
            hidden: Outputs of the local transformer, (n, groups, local width).
            levels: What should come, (n, groups, 4).
            is_end: Where the end should come instead, (n,).

        Returns:
            In nats, (n, groups).
        """
        logits = torch.einsum("ngw,grw->ngr", hidden, self.head) + self.bias
        *values, end = logits.split([*self.sizes, 1], dim=-1)
        all_codes = torch.stack([own.logsumexp(-1) for own in values], -1).sum(-1)
        chosen = torch.stack([own.gather(-1, levels[..., i : i + 1])[..., 0] for i, own in enumerate(values)], -1)
        end = end[..., 0]
        either = torch.logaddexp(all_codes, end)
        return either - torch.where(is_end[:, None], end, chosen.sum(-1))

    @torch.no_grad()
    def fill(self, model: MagpieTTSModel, end_weight: Tensor, end_bias: Tensor) -> None:
        """Writes NeMo's tables.

        The parallel heads, which serve to detect the end only, get a zero for every code and `end_weight` for the end.

        Args:
            model: To write to.
            end_weight: Of the logit of the end, (width,).
            end_bias: Likewise, ().
        """
        begin_id, end_id = model.audio_bos_id, model.audio_eos_id
        codes = torch.arange(model.codebook_size, device=self.head.device)
        levels = (codes[:, None] // self._base) % torch.tensor(self.sizes, device=codes.device)
        rows = self._first + levels
        heads: Any = model.local_transformer_out_projections
        for group in range(self.groups):
            own = slice(group * self.slice, (group + 1) * self.slice)
            table: Any = model.audio_embeddings[group].weight
            table.zero_()
            table[: len(codes), own] = self.embedding[group][rows].sum(1)
            table[begin_id, own], table[end_id, own] = self.begin[group], self.end[group]
            heads[group].weight.zero_()
            heads[group].bias.fill_(NEVER)
            heads[group].weight[: len(codes)] = self.head[group][rows].sum(1)
            heads[group].bias[: len(codes)] = self.bias[group][rows].sum(1)
            heads[group].weight[end_id], heads[group].bias[end_id] = self.head[group, -1], self.bias[group, -1]
        model.final_proj.weight.zero_()
        model.final_proj.bias.zero_()
        model.final_proj.weight.view(self.groups, -1, self.width)[:, end_id] = end_weight
        model.final_proj.bias.view(self.groups, -1)[:, end_id] = end_bias
