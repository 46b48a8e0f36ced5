"""The codec's network as training runs it: NeMo's modules and weights, without masks, types and waiting.

NeMo's `forward` masks after every convolution, for which it reads lengths from the device and stops it. Crops of equal
length need no mask; the results are the same (tests/unit/test_training_codec.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from nemo.collections.tts.models import AudioCodecModel

#: Standard deviation that the fresh encoder's output is scaled to: its range then covers the quantiser's levels.
#: Untouched it is 0.02, and all codes are equal.
LATENT_SCALE = 0.8


def encode(codec: AudioCodecModel, audio: Tensor) -> Tensor:
    """Encodes whole frames of audio, (batch, samples) to (batch, 32, frames), before quantisation."""
    encoder: Any = codec.audio_encoder
    features = encoder.pre_spec_processor
    edge = features.stft_pad_amount
    padded = F.pad(audio[:, None], (edge, edge), features.pad_mode)[:, 0]
    spectrum = torch.stft(padded, features.n_fft, features.hop_length, features.win_length, features.window,
                          center=False, return_complex=True)  # fmt: skip
    magnitude = (torch.view_as_real(spectrum).square().sum(-1) + 1e-12).sqrt()
    x = _residual(encoder.pre_res_block, _conv(encoder.pre_conv, torch.log(magnitude + features.log_guard)))
    for block in encoder.down_sample_blocks:
        x = _residual(block.res_block, _conv(block.down_sample_conv, x))
    return _conv(encoder.post_conv, x)


def decode(decoder: Any, latent: Tensor) -> Tensor:
    """Decodes (batch, 32, frames) to audio (batch, samples), as NeMo's `CausalHiFiGANDecoder` does."""
    x = _causal(decoder.pre_conv, latent)
    for activate, enlarge, layer in zip(
        decoder.activations, decoder.up_sample_conv_layers, decoder.res_layers, strict=True
    ):
        x = enlarge.conv(_activate(activate, x))
        x = x[..., : x.shape[2] - enlarge.padding_right]
        branches = []
        for branch in layer.res_blocks:
            y = x
            for block in branch.res_blocks:
                y = y + _causal(block.skip_conv, _activate(
                    block.skip_activation, _causal(block.input_conv, _activate(block.input_activation, y))
                ))  # fmt: skip
            branches.append(y)
        x = sum(branches[1:], branches[0]) / len(branches)
    return decoder.out_activation(_causal(decoder.post_conv, _activate(decoder.post_activation, x)))[:, 0]


class Decoder(nn.Module):
    """`decode` as a module, for CUDA graphs."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latent: Tensor) -> Tensor:
        """See `decode`."""
        return decode(self.decoder, latent)


class Quantizer:
    """NeMo's group finite scalar quantiser, all groups at once, in levels.

    A code of a group of four values is their levels as digits of a number; a level is a whole number from 0.

    Args:
        codec: For its quantiser.
        device: Of all tensors.
    """

    def __init__(self, codec: AudioCodecModel, device: torch.device) -> None:
        quantizer: Any = codec.vector_quantizer
        one = quantizer.fsqs[0]
        self.groups: int = quantizer.num_groups
        #: Number of levels of each value of a group.
        self.sizes: list[int] = one.num_levels.flatten().tolist()
        self._each = torch.tensor(self.sizes * self.groups, device=device)[:, None]
        self._half = self._each // 2
        self._base = one.dim_base_index.flatten().to(device)
        self._eps: float = one.eps

    def round(self, latent: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantises with a straight-through gradient.

        Args:
            latent: Encoder output, (batch, 32, frames).
            noise: Added before rounding, in levels, likewise.

        Returns:
            The decoder's input (batch, 32, frames), and levels likewise, int64.
        """
        scale = (self._each - 1) / 2 * (1 - self._eps)
        offset = torch.where(self._each % 2 == 0, 0.5, 0.0)
        squeezed = scale * (latent + (offset / scale).tan()).tanh() - offset
        noisy = squeezed if noise is None else squeezed + noise
        levels = (noisy.detach().round() + self._half).clamp(min=0).minimum(self._each - 1)
        through = squeezed + (levels - self._half - squeezed).detach()
        return through / self._half, levels.long()

    def latent(self, levels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Levels (batch, 32, frames), with noise before rounding if given, to the decoder's input."""
        moved = levels if noise is None else (levels + noise).round().clamp(min=0).minimum(self._each - 1)
        return (moved - self._half) / self._half

    def codes(self, levels: Tensor) -> Tensor:
        """Levels (batch, 32, frames) to codes (batch, 8, frames)."""
        return (levels.unflatten(1, (self.groups, -1)) * self._base[:, None]).sum(2)

    def levels(self, codes: Tensor) -> Tensor:
        """Codes (batch, 8, frames) to levels (batch, 32, frames)."""
        sizes = self._each[: len(self.sizes)]
        return ((codes[:, :, None] // self._base[:, None]) % sizes).flatten(1, 2)


@torch.no_grad()
def scale_latent(codec: AudioCodecModel, audio: Tensor) -> None:
    """Shifts and scales the fresh encoder's output so that each value has mean 0 and deviation `LATENT_SCALE`."""
    measured = encode(codec, audio)
    encoder: Any = codec.audio_encoder
    convolution = encoder.post_conv.conv
    factor = LATENT_SCALE / (measured.std((0, 2)) + 1e-6)
    convolution.parametrizations.weight.original0.mul_(factor[:, None, None])
    convolution.bias.copy_((convolution.bias - measured.mean((0, 2))) * factor)


def _conv(module: Any, x: Tensor) -> Tensor:
    return module.activation(module.conv(x))


def _residual(block: Any, x: Tensor) -> Tensor:
    return block.output_activation(x + _conv(block.skip_conv, _conv(block.input_conv, x)))


def _causal(module: Any, x: Tensor) -> Tensor:
    past = (module.conv.kernel_size[0] - 1) * module.conv.dilation[0]
    return module.activation(module.conv(F.pad(x, (past, 0))))


def _activate(module: Any, x: Tensor) -> Tensor:
    """NeMo's half snake without TorchScript, which a CUDA graph does not take."""
    half = module.activation
    channels = half.snake_channels
    alpha = half.snake_act.alpha
    left, right = x[:, :channels], x[:, channels:]
    return torch.cat([left + (alpha * left).sin().square() / (alpha + 1e-9), half.lrelu(right)], dim=1)
