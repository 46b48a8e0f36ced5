"""One step of the model: a batch of chunks, each of another stream, becomes tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from parakeet_engine.checkpoint import SUBSAMPLING, Checkpoint, Lookahead
from parakeet_engine.network import Inputs, Network, Work

_log = logging.getLogger(__name__)

OPEN = 1 << 40
"""Stands for the length of a stream that is still open, in samples or frames."""


@dataclass(slots=True)
class Chunk:
    """One stream's part of a step, as numbers and samples.

    Attributes:
        slot: The stream's slot.
        audio: int16 (window samples,), zero outside the utterance.
        first_output: Encoder frame, counted in the utterance, of the chunk's first output.
        outputs: Valid outputs, at most the lookahead's frames.
        num_samples: Samples of the utterance, or `OPEN`.
        num_frames: Mel frames of the utterance, or `OPEN`.
        prompt: Index of the language prompt; 0 for models without.
    """

    slot: int
    audio: npt.NDArray[np.int16]
    first_output: int
    outputs: int
    num_samples: int = OPEN
    num_frames: int = OPEN
    prompt: int = 0


@dataclass(slots=True)
class ChunkTokens:
    """What one chunk emitted.

    Attributes:
        tokens: Token ids.
        frames: Encoder frame of each, counted in the utterance.
        probabilities: Probability of each.
    """

    tokens: list[int]
    frames: list[int]
    probabilities: list[float]


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Forbids cuDNN's convolutions to round float32 to TF32, which is enough to change a token now and then.

    PyTorch allows it by default, in a flag of the process, which others may read: it is put back. A CUDA graph keeps
    the kernels that were chosen when it was captured.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class StepRunner:
    """Runs steps of one checkpoint over a pool of slots. Not thread safe: one thread owns it.

    On CUDA each lookahead and batch-size bucket is a pair of CUDA graphs, captured by `warm_up`: one for features,
    encoder and the usual number of decoding iterations, one for more of those, replayed while some row has frames left.
    The only host synchronisation is the one that reads the tokens. On the CPU the same code runs eagerly, at the exact
    batch size.

    Args:
        checkpoint: The model.
        slots: Streams that can be live at once.
        dtype: Of encoder, predictor and joint (features stay float32).
        device: Where it runs.
        max_batch: Largest batch.
        cuda_graphs: Whether to capture graphs on CUDA.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        max_batch: int = 64,
        cuda_graphs: bool = True,
    ):
        self.device = device
        self.max_batch = max_batch
        self.network = Network(checkpoint, slots, dtype, device)
        self.features = self.network.features
        self.lookaheads = tuple(checkpoint.lookaheads.values())
        self._capture = cuda_graphs and device.type == "cuda"
        self._graphs: dict[tuple[Lookahead, int], _GraphedStep] = {}

    def new_frames(self, lookahead: Lookahead) -> int:
        """Returns how many mel frames a chunk adds."""
        return SUBSAMPLING * lookahead.frames

    def first_new_frame(self, first_output: int) -> int:
        """Returns the index of the first mel frame that the chunk adds.

        Output t looks at mel frames up to 8 t, so chunks end at frame 8 t, not at a multiple of the chunk: the first
        one begins seven frames before the stream does.
        """
        return SUBSAMPLING * (first_output - 1) + 1

    @property
    def captured(self) -> bool:
        """Whether steps run as CUDA graphs."""
        return bool(self._graphs)

    @property
    def bucket_sizes(self) -> list[int]:
        """Batch sizes that graphs are captured for: powers of two up to the largest batch."""
        sizes = [1]
        while sizes[-1] < self.max_batch:
            sizes.append(min(2 * sizes[-1], self.max_batch))
        return sizes

    @torch.inference_mode()
    @_exact_convolutions()
    def warm_up(self) -> None:
        """Runs every mode once, and captures the graphs, so that the first caller waits for nothing."""
        for lookahead in self.lookaheads:
            self.step(lookahead, [self._padding(lookahead)])
        if not self._capture:
            return
        pool = torch.cuda.graph_pool_handle()  # of this runner: one that outlives its graphs cannot be captured into
        for lookahead in self.lookaheads:
            for size in reversed(self.bucket_sizes):  # the largest first: the others reuse its memory pool
                padding = [self._padding(lookahead)] * size
                try:
                    self._graphs[lookahead, size] = _GraphedStep(self.network, lookahead, padding, self.device, pool)
                except RuntimeError:
                    _log.exception("CUDA graphs could not be captured; steps run eagerly, at a higher latency")
                    self._capture = False
                    self._graphs.clear()
                    return

    @torch.inference_mode()
    @_exact_convolutions()
    def step(self, lookahead: Lookahead, chunks: Sequence[Chunk]) -> list[ChunkTokens]:
        """Recognises one chunk of each of several streams and keeps their states.

        Args:
            lookahead: The mode that all of them have.
            chunks: At most one per slot, at most `max_batch`.

        Returns:
            The tokens of each chunk, in order.
        """
        graphed = self._graphs.get((lookahead, self._bucket(len(chunks))))
        packed = self._run_eagerly(lookahead, chunks) if graphed is None else graphed.run(chunks)
        return [self._unpack(row, chunk) for row, chunk in zip(packed, chunks, strict=True)]

    def _bucket(self, batch: int) -> int:
        return next((size for size in self.bucket_sizes if size >= batch), batch)

    def _padding(self, lookahead: Lookahead) -> Chunk:
        """A chunk of silence in the scratch slot."""
        audio = np.zeros(self.features.window_samples(self.new_frames(lookahead)), np.int16)
        return Chunk(self.network.slots.scratch, audio, 0, lookahead.frames)

    def _run_eagerly(self, lookahead: Lookahead, chunks: Sequence[Chunk]) -> npt.NDArray[np.int32]:
        audio, numbers = (torch.from_numpy(part).to(self.device) for part in _as_arrays(chunks))
        inputs = Inputs(audio, *numbers.unbind(0))
        work = self.network.begin(lookahead, inputs)
        while True:
            packed = work.packed().cpu().numpy()
            if not Work.unfinished(packed).any():
                return packed
            self.network.proceed(lookahead, inputs, work)

    @staticmethod
    def _unpack(row: npt.NDArray[np.int32], chunk: Chunk) -> ChunkTokens:
        tokens, frames, probabilities = Work.unpack(row)
        return ChunkTokens(tokens.tolist(), (frames + chunk.first_output).tolist(), probabilities.tolist())


def _as_arrays(chunks: Sequence[Chunk]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Returns the chunks' audio (batch, samples) and their numbers (6, batch) in the order of `Inputs`."""
    numbers = [(c.slot, c.first_output, c.outputs, c.num_samples, c.num_frames, c.prompt) for c in chunks]
    return np.stack([c.audio for c in chunks]), np.ascontiguousarray(np.array(numbers, dtype=np.int64).T)


class _GraphedStep:
    """The CUDA graphs of one lookahead and batch size, with the buffers they read and write.

    All runs on one stream, copies from and to pinned memory inside the graph. `run` fills that memory only after it has
    waited for the replay before, and what it returns is taken apart before the next run.

    Args:
        network: The network.
        lookahead: The mode.
        padding: A batch of the size, of scratch rows, that fills up smaller ones.
        device: Where it runs.
        pool: Memory pool that all graphs of a runner share (they never run at the same time).
    """

    def __init__(
        self, network: Network, lookahead: Lookahead, padding: Sequence[Chunk], device: torch.device, pool: Any
    ):
        self._padding = _as_arrays(padding)
        self._staged = tuple(torch.from_numpy(part).pin_memory() for part in self._padding)
        self._on_device = tuple(part.to(device) for part in self._staged)
        audio, numbers = self._on_device
        inputs = Inputs(audio, *numbers.unbind(0))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate their workspaces outside the capture
            for _ in range(3):
                network.proceed(lookahead, inputs, network.begin(lookahead, inputs))
        torch.cuda.current_stream().wait_stream(side)
        work = network.begin(lookahead, inputs)  # for the shape of its result
        self._host = torch.empty(work.packed().shape, dtype=torch.int32, pin_memory=True)
        self._begin, self._proceed = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._begin, pool=pool):  # the copies too: one launch for all
            for staged, target in zip(self._staged, self._on_device, strict=True):
                target.copy_(staged, non_blocking=True)
            work = network.begin(lookahead, inputs)
            self._host.copy_(work.packed(), non_blocking=True)
        with torch.cuda.graph(self._proceed, pool=pool):
            network.proceed(lookahead, inputs, work)
            self._host.copy_(work.packed(), non_blocking=True)

    def run(self, chunks: Sequence[Chunk]) -> npt.NDArray[np.int32]:
        """Runs a batch of at most the size; returns the packed result of its rows."""
        count = len(chunks)
        audio, numbers = _as_arrays(chunks)
        staged_audio, staged_numbers = (staged.numpy() for staged in self._staged)
        staged_audio[:count] = audio  # what is heard in the scratch slot does not matter
        staged_numbers[:, :count] = numbers
        staged_numbers[:, count:] = self._padding[1][:, count:]
        packed = self._host.numpy()[:count]  # what the rest makes of old audio, nobody waits for
        self._begin.replay()
        while True:
            torch.cuda.current_stream().synchronize()
            if not Work.unfinished(packed).any():
                return packed
            self._proceed.replay()
