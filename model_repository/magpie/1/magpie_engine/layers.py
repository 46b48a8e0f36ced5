"""The parts of NeMo's `transformer_2501.TransformerLayer` that an incremental step needs, on its weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

# A "layer" is a `TransformerLayer` of NeMo; it is typed Any because NeMo is not typed.


def project_qkv(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projects normalised input to queries, keys and values of self-attention.

    Args:
        layer: The transformer layer.
        x: (rows, steps, width).

    Returns:
        Three tensors (rows, heads, steps, head width).
    """
    attention = layer.self_attention
    rows, steps, _ = x.shape
    qkv = attention.qkv_net(layer.norm_self(x)).view(rows, steps, 3, attention.n_heads, attention.d_head)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, **mask: Any) -> Tensor:
    """Self-attention over cached keys and values, with the output projection.

    Args:
        layer: The transformer layer.
        query: (rows, heads, steps, head width).
        key: (rows, heads, keys, head width).
        value: Like `key`.
        mask: `attn_mask` or `is_causal` of `scaled_dot_product_attention`.

    Returns:
        (rows, steps, width), to be added to the residual stream.
    """
    attention = layer.self_attention
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale, **mask)
    return attention.o_net(mixed.transpose(1, 2).flatten(2))


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """The feed-forward block, whose convolutions of kernel size 1 are run as matrix products.

    Args:
        layer: The transformer layer.
        x: (rows, steps, width).

    Returns:
        (rows, steps, width), to be added to the residual stream.
    """
    block = layer.pos_ff
    first, second = block.proj.conv, block.o_net.conv
    hidden = block.non_linearity(F.linear(layer.norm_pos_ff(x), first.weight[:, :, 0], first.bias))
    return F.linear(hidden, second.weight[:, :, 0], second.bias)
