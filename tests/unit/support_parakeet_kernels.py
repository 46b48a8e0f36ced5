"""What the tests of the recogniser's kernels share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triton_voice.checkpoints import parakeet as maker


def encoder_of(size: str, layers: int) -> Any:
    """NeMo's encoder with every constant random: what a fresh one leaves at 0 or 1 would hide a kernel's mistake."""
    from nemo.collections.asr.modules import ConformerEncoder

    settings = maker.config(Path("none"), replace(maker.SHAPES[size], layers=layers))["encoder"]
    settings.pop("_target_")
    torch.manual_seed(0)
    encoder = ConformerEncoder(**settings).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.3)
            torch.nn.init.normal_(module.bias, std=0.3)
    for layer in encoder.layers:
        torch.nn.init.normal_(layer.self_attn.pos_bias_u, std=0.3)
        torch.nn.init.normal_(layer.self_attn.pos_bias_v, std=0.3)
    return encoder
