"""Codes to audio, piece by piece, with the state of every convolution carried along.

The codec's decoder is strictly causal. Each convolution keeps the inputs that its next output still needs, so a piece
costs what its own frames cost, and the samples are those of decoding the whole (NeMo's `CausalHiFiGANDecoder`).

On CUDA the codec has a stream of its own beside the engine's. What goes between them, and what keeps it in order:

- codes: made on the engine's stream, for which the codec's waits; `record_stream` keeps their memory until it has read.
- a row's state: written by `open` on the engine's stream before that wait, from then on by the codec's stream alone;
  `close` copies it only after the row's last audio has been waited for on the host.
- samples: copied to pinned memory of their own, no buffer that a next piece would use; an event follows the copy, the
  host waits for it, and the array that the client gets keeps the memory.
- CUDA graphs: steps are replayed on the engine's stream, pieces on the codec's, and each kind has a memory pool of its
  own. One stream's replays follow each other, so that one pool does for all graphs of a kind; what a replay leaves is
  cloned on the same stream before the next one.

When a piece is decoded depends on the clock, so that its size differs from run to run: codes are the same then, samples
only within rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magpie_engine.errors import CheckpointError
from magpie_engine.graphs import CodecGraph, batch_sizes
from magpie_engine.precision import convolutions

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

_log = logging.getLogger(__name__)

INT16_FULL_SCALE = 32767
#: Values up to which a convolution's inputs are repeated for each output, to make a matrix product of it.
MAX_COLUMNS = 1 << 27


@dataclass(frozen=True)
class PendingAudio:
    """Audio that is being decoded.

    Attributes:
        is_ready: Whether `wait` returns at once.
        wait: Waits for it; returns the samples of each utterance.
    """

    is_ready: Callable[[], bool]
    wait: Callable[[], list[np.ndarray]]


class StreamingCodec:
    """Decodes the next frames of many utterances at once. Memory is by row: an utterance has one while it speaks.

    Args:
        model: The restored model, for its codec and its index converter.
        rows: Utterances at the same time.
        tf32: Whether convolutions may round to TF32 on CUDA: half the time, and 3e-4 from whole decoding instead of
            1e-4.

    Raises:
        CheckpointError: The codec's decoder is not the causal HiFi-GAN that this class knows.
    """

    def __init__(self, model: MagpieTTSModel, rows: int, *, tf32: bool = False) -> None:
        self._tf32 = tf32
        self._codec = model._codec_model
        self._converter = model._codec_converter
        self._last_code: int = model.codebook_size - 1
        decoder = StatefulDecoder(self._codec.audio_decoder)
        self._state = torch.zeros(rows, decoder.state_size, device=model.device)
        self._width = decoder.input_width
        self._decoder: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = decoder
        if model.device.type == "cpu":
            # A thousand small operations, of which Python would take half the time.
            example = torch.zeros(1, self._width, 2), self._state[:1]
            with torch.inference_mode():
                self._decoder = torch.jit.trace(decoder.__call__, example, check_trace=False)
        #: By frames, then by batch size, the smallest first.
        self._graphs: dict[int, list[tuple[int, CodecGraph]]] = {}
        self._free = list(reversed(range(rows)))
        #: Audio is decoded beside the next step, not before it.
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    def open(self, state: Tensor | None = None) -> int:
        """Takes a free row, for a new utterance or for one that goes on.

        Args:
            state: What `close` returned, (state,); None begins with silence.
        """
        row = self._free.pop()
        self._state[row] = 0 if state is None else state
        return row

    def close(self, row: int) -> Tensor:
        """Gives a row back; returns its state, from which `open` goes on."""
        self._free.append(row)
        return self._state[row].clone()

    @property
    def free(self) -> int:
        """Number of free rows."""
        return len(self._free)

    @torch.inference_mode()
    def start(self, rows: Sequence[int], codes: Sequence[Tensor]) -> PendingAudio:
        """Begins to decode the next frames of several utterances, on a GPU beside what else it is given to do.

        Args:
            rows: Their rows, each once.
            codes: For each of them its next codes, (codebooks, frames).

        Returns:
            The samples, int16 for each utterance. Rows may be closed once they have been waited for.
        """
        if self._stream is None:
            audio = [to_int16(own).numpy() for own in self.decode(rows, codes)]
            return PendingAudio(is_ready=lambda: True, wait=lambda: audio)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for own in codes:
                own.record_stream(self._stream)
            decoded = self.decode(rows, codes)
            samples = to_int16(torch.cat(decoded))
            host = torch.empty(samples.shape, dtype=samples.dtype, pin_memory=True)
            host.copy_(samples, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        ends = np.cumsum([len(own) for own in decoded])[:-1]

        def wait() -> list[np.ndarray]:
            done.synchronize()
            return np.split(host.numpy(), ends)

        return PendingAudio(is_ready=done.query, wait=wait)

    @torch.inference_mode()
    def decode(self, rows: Sequence[int], codes: Sequence[Tensor]) -> list[Tensor]:
        """Decodes the next frames of several utterances.

        Args:
            rows: Their rows, each once.
            codes: For each of them its next codes, (codebooks, frames).

        Returns:
            For each utterance float32 samples in [-1, 1], on the model's device.
        """
        audio: list[Tensor] = [torch.empty(0)] * len(rows)
        lengths = [own.shape[1] for own in codes]
        for length in set(lengths):  # padding would enter the state, so a batch has one length
            members = [index for index, own in enumerate(lengths) if own == length]
            index = torch.tensor([rows[member] for member in members], device=self._state.device)
            latent = self._dequantize(torch.stack([codes[member] for member in members]))
            with convolutions(tf32=self._tf32):
                samples, state = self._run(latent, self._state[index])
            self._state[index] = state
            for member, own in zip(members, samples, strict=True):
                audio[member] = own
        return audio

    @torch.inference_mode()
    def capture(self, lengths: Sequence[int]) -> None:
        """Captures CUDA graphs for pieces of so many frames; other pieces, and all if capturing fails, run eagerly."""
        pool, device = torch.cuda.graph_pool_handle(), self._state.device
        try:
            for length in lengths:
                graphs = []
                for batch in batch_sizes(len(self._state)):
                    latent = torch.zeros(batch, self._width, length, device=device)
                    state = torch.zeros_like(self._state[:batch])
                    with convolutions(tf32=self._tf32):
                        graphs.append((batch, CodecGraph(self._decoder, latent, state, pool)))
                self._graphs[length] = graphs
        except RuntimeError:
            _log.exception("CUDA graphs of the codec could not be captured; it runs eagerly, at a higher latency")
            self._graphs.clear()

    def _run(self, latent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        for batch, graph in self._graphs.get(latent.shape[2], ()):
            if batch >= len(latent):
                return graph.run(latent, state)
        return self._decoder(latent, state)

    def _dequantize(self, codes: Tensor) -> Tensor:
        """Codes (n, codebooks, frames) to the decoder's input (n, width, frames)."""
        # Detection by argmax alone can leave a drawn end token in a frame that is kept; the codec has no such entry.
        codes = codes.clamp(max=self._last_code)
        lengths = torch.full((len(codes),), codes.shape[2], device=codes.device)
        if self._converter is not None:
            codes = self._converter.convert_new_to_original(audio_tokens=codes, audio_lens=lengths)
        return self._codec.dequantize(tokens=codes, tokens_len=lengths)


class StatefulDecoder:
    """NeMo's `CausalHiFiGANDecoder` as a function of a piece and a state, on the same weights.

    Args:
        decoder: NeMo's module, in evaluation mode.

    Raises:
        CheckpointError: It is another kind of decoder, or one of its convolutions looks ahead.
    """

    def __init__(self, decoder: Any) -> None:
        from nemo.collections.tts.modules.audio_codec_modules import CausalHiFiGANDecoder

        if not isinstance(decoder, CausalHiFiGANDecoder):
            raise CheckpointError(
                f"the codec's decoder is a {type(decoder).__name__}; only CausalHiFiGANDecoder can be streamed"
            )
        #: Channels of its input.
        self.input_width: int = decoder.pre_conv.conv.in_channels
        #: Values of state of one utterance.
        self.state_size = 0
        self._activate_in: list[nn.Module] = list(decoder.activations)
        self._enter = self._causal(decoder.pre_conv)
        self._stages = []
        for upsample, layer in zip(decoder.up_sample_conv_layers, decoder.res_layers, strict=True):
            enlarge = self._transposed(upsample)
            branches = [[self._residual(block) for block in branch.res_blocks] for branch in layer.res_blocks]
            self._stages.append((enlarge, branches))
        self._activate_out: nn.Module = decoder.post_activation
        self._leave = self._causal(decoder.post_conv)
        self._limit: nn.Module = decoder.out_activation

    def __call__(self, latent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes the next frames.

        Args:
            latent: (n, width, frames).
            state: (n, state size), zeros at the beginning.

        Returns:
            Samples (n, frames x samples per frame), and the state after them.
        """
        kept: list[Tensor] = []
        # The order of the convolutions below is that of their construction: `kept` lines up with their places.
        x = self._enter(latent, state, kept)
        for activate, (upsample, branches) in zip(self._activate_in, self._stages, strict=True):
            x = upsample(activate(x), state, kept)
            mixed = torch.zeros_like(x)
            for branch in branches:
                y = x
                for activate_first, first, activate_second, second in branch:
                    y = y + second(activate_second(first(activate_first(y), state, kept)), state, kept)
                mixed = mixed + y
            x = mixed / len(branches)
        samples = self._limit(self._leave(self._activate_out(x), state, kept))
        return samples[:, 0], torch.cat(kept, dim=1)

    def _residual(self, block: Any) -> tuple[nn.Module, _CausalConv, nn.Module, _CausalConv]:
        first = self._causal(block.input_conv)
        return block.input_activation, first, block.skip_activation, self._causal(block.skip_conv)

    def _causal(self, module: Any) -> _CausalConv:
        conv = _CausalConv(module, self.state_size)
        self.state_size += conv.width
        return conv

    def _transposed(self, module: Any) -> _CausalUpsampling:
        conv = _CausalUpsampling(module, self.state_size)
        self.state_size += conv.width
        return conv


class _CausalConv:
    """A `CausalConv1dNorm` with its weight normalisation applied once and for all.

    Args:
        module: NeMo's module.
        begin: Where its state begins.
    """

    def __init__(self, module: Any, begin: int) -> None:
        conv = module.conv
        if conv.stride[0] != 1 or module.extra_pad_mode != "constant":
            raise CheckpointError(
                "the codec's decoder has a convolution with a stride or with padding other than zeros"
            )
        self._weight, self._bias = conv.weight.detach().clone(), conv.bias
        self._dilation, self._groups = conv.dilation[0], conv.groups
        self._activate: nn.Module = module.activation
        self._past = (conv.kernel_size[0] - 1) * self._dilation
        self._channels = conv.in_channels
        self._begin, self.width = begin, self._past * self._channels

    def __call__(self, x: Tensor, state: Tensor, kept: list[Tensor]) -> Tensor:
        """Convolves (n, channels, time), appending what the next call needs to `kept`."""
        past = state[:, self._begin : self._begin + self.width].unflatten(1, (self._channels, self._past))
        x = torch.cat([past, x], dim=2)
        kept.append(x[:, :, x.shape[2] - self._past :].flatten(1))
        return self._activate(self._convolve(x))

    def _convolve(self, x: Tensor) -> Tensor:
        if x.is_cuda and self._groups == 1 and not torch.backends.cudnn.allow_tf32:
            # For short pieces in float32 cuDNN chooses algorithms that take up to 0.3 s (216 channels, 11 wide, 128
            # samples on an H200); a matrix product is never slower, and half a thousand times faster there.
            length = x.shape[2] - self._past
            shape = len(x), self._channels, self._weight.shape[2], length
            if math.prod(shape) <= MAX_COLUMNS:
                columns = x.as_strided(shape, (x.stride(0), x.stride(1), self._dilation, 1)).flatten(1, 2)
                return torch.matmul(self._weight.flatten(1), columns) + self._bias[:, None]
        return F.conv1d(x, self._weight, self._bias, dilation=self._dilation, groups=self._groups)


class _CausalUpsampling:
    """A `CausalConvTranspose1dNorm` that trims everything on the right, likewise."""

    def __init__(self, module: Any, begin: int) -> None:
        conv = module.conv
        if module.padding_left:
            raise CheckpointError("the codec's decoder has an upsampling that looks ahead (trim_right_ratio below 1)")
        self._weight, self._bias = conv.weight.detach().clone(), conv.bias
        self._stride, self._groups = conv.stride[0], conv.groups
        self._activate: nn.Module = module.activation
        self._past = -(-conv.kernel_size[0] // self._stride) - 1
        self._channels = conv.in_channels
        self._begin, self.width = begin, self._past * self._channels

    def __call__(self, x: Tensor, state: Tensor, kept: list[Tensor]) -> Tensor:
        """Upsamples (n, channels, time) to (n, channels, time x stride)."""
        past = state[:, self._begin : self._begin + self.width].unflatten(1, (self._channels, self._past))
        fresh = x.shape[2] * self._stride
        x = torch.cat([past, x], dim=2)
        kept.append(x[:, :, x.shape[2] - self._past :].flatten(1))
        y = F.conv_transpose1d(x, self._weight, self._bias, stride=self._stride, groups=self._groups)
        begin = self._past * self._stride
        return self._activate(y[:, :, begin : begin + fresh])


def to_int16(audio: Tensor) -> Tensor:
    """Converts samples in [-1, 1] to int16 at a fixed scale, so that consecutive chunks fit each other."""
    return (audio.clamp(-1, 1) * INT16_FULL_SCALE).round().to(torch.int16)
