"""Spoken lines for Magpie's training: tokens and codes on the device, in batches of like length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKENIZER = "english_phoneme"
#: Part of the words that the second reading of every text spells, and part of the lines that are read so: the model
#: learns a little to say words that its dictionary does not have.
SPELLED_WORDS, SPELLED_LINES = 0.2, 0.15


@dataclass(frozen=True)
class Batch:
    """Lines of like length.

    Attributes:
        text: Tokens, the end token last, (lines, tokens).
        text_lengths: (lines,), on the CPU.
        levels: Codes as levels, (lines, frames, codebooks, 4), int64.
        frames: (lines,), on the CPU.
        speakers: (lines,).
    """

    text: Tensor
    text_lengths: Tensor
    levels: Tensor
    frames: Tensor
    speakers: Tensor


class Lines:
    """All lines of a corpus.

    Args:
        model: For its tokenizer.
        texts: As they are spoken.
        speakers: Of each line.
        levels: Of all frames, (all frames, codebooks, 4), int8.
        begins: First frame of each line, and the end.
        device: Of the batches.
        seed: Of the words that are spelled.
    """

    def __init__(
        self, model: Any, texts: list[str], speakers: np.ndarray, levels: Tensor, begins: np.ndarray,
        device: torch.device, seed: int = 0,
    ) -> None:  # fmt: skip
        self._device = device
        self._readings = [read(model, texts, 1.0, seed), read(model, texts, 1 - SPELLED_WORDS, seed)]
        self._text = [_pad(reading).to(device) for reading in self._readings]
        self._text_lengths = [torch.tensor([len(own) for own in reading]) for reading in self._readings]
        self._levels = levels.to(device)
        self._begins = torch.from_numpy(begins[:-1])
        self.frames = torch.from_numpy(np.diff(begins))
        self._speakers = torch.from_numpy(speakers)
        self._by_length = torch.argsort(self.frames, stable=True)

    def __len__(self) -> int:
        return len(self.frames)

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draws neighbours by length."""
        count = min(count, len(self))
        first = int(torch.randint(0, len(self) - count + 1, (), generator=random))
        spelled = float(torch.rand((), generator=random)) < SPELLED_LINES
        return self.take(self._by_length[first : first + count], int(spelled))

    def take(self, index: Tensor, reading: int = 0) -> Batch:
        """Takes lines by number."""
        frames, lengths = self.frames[index], self._text_lengths[reading][index]
        places = self._begins[index][:, None] + torch.arange(int(frames.max()))
        places = places.clamp(max=len(self._levels) - 1).to(self._device, non_blocking=True)
        where = index.to(self._device, non_blocking=True)
        return Batch(
            text=self._text[reading][where, : int(lengths.max())],
            text_lengths=lengths,
            levels=self._levels[places].long(),
            frames=frames,
            speakers=self._speakers[index].to(self._device, non_blocking=True),
        )


def read(model: Any, texts: list[str], phonemes: float, seed: int) -> list[list[int]]:
    """Tokenizes texts as the server does, the end token last; `phonemes` is the part of words that is not spelled."""
    g2p = model.tokenizer.tokenizers[TOKENIZER].g2p
    kept = g2p.phoneme_probability
    g2p.phoneme_probability = phonemes
    g2p._rng.seed(seed)
    tokens = {text: [*model.tokenizer.encode(text=text, tokenizer_name=TOKENIZER), model.eos_id]
              for text in dict.fromkeys(texts)}  # fmt: skip
    g2p.phoneme_probability = kept
    return [tokens[text] for text in texts]


def prior(frames: Tensor, tokens: Tensor, width: int, length: int) -> Tensor:
    """The beta-binomial attention prior (NeMo's `BetaBinomialInterpolator` at scale 1): text passes at an even pace.

    Args:
        frames: Of each line, (lines,).
        tokens: Likewise.
        width: Padded number of tokens.
        length: Padded number of frames.

    Returns:
        (lines, length, width); each row of a line adds up to 1.
    """
    a = torch.arange(1, length + 1, device=frames.device).float()[None, :, None]
    b = (frames[:, None, None] + 1 - a).clamp(min=1)
    n = (tokens - 1).float()[:, None, None]
    k = torch.arange(width, device=frames.device).float()[None, None]
    rest = (n - k).clamp(min=0)
    log = (
        torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
        + torch.lgamma(k + a) + torch.lgamma(rest + b) - torch.lgamma(n + a + b)
        + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    )  # fmt: skip
    return log.exp().masked_fill(k > n, 0.0)


def _pad(rows: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
