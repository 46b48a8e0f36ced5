"""What Parakeet-tiny is trained and judged on: the small world's sentences, spoken, and batches drawn from them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from triton_voice_training import speech, world
from triton_voice_training.augment import SAMPLE_RATE, Scene, augment, compose
from triton_voice_training.corpus import Corpus, render

#: Short texts are few and everyone says them: each is spoken in so many voices.
SHORT_WORDS = 3
SHORT_COPIES = 24
#: Sentences without a choice in them are said often, too, and a draw of many has each of them once.
FIXED_COPIES = 24
#: How many sentences are judged, of users and of the assistant.
JUDGED_REQUESTS = 300
JUDGED_REPLIES = 100
#: Clips without speech that must come out empty, and their length.
EMPTY_CLIPS = 100
EMPTY_S = 4.0
#: Chances of one, two and three sentences in an utterance; of an utterance without speech.
SENTENCES = (0.72, 0.18, 0.10)
EMPTY_CHANCE = 0.04
LEAD_S = (0.0, 0.8)
PAUSE_S = (0.15, 1.2)
TAIL_S = (0.05, 1.0)
EMPTY_LENGTH_S = (0.5, 8.0)
MAX_SECONDS = 12.0
RATES = (0.92, 1.1)
#: Margins around the single sentences of the first lessons.
EASY_LEAD_S, EASY_TAIL_S = (0.0, 0.3), (0.1, 0.3)
#: Batches of similar length are cut from so many at a time.
POOL = 8


@dataclass(frozen=True)
class Amount:
    """How much speech is made: of the user's sentences, of the assistant's, and how often each is said."""

    requests: int = 16_000
    request_copies: int = 2
    replies: int = 16_000


def training_texts(amount: Amount) -> list[str]:
    """Returns what is said in training: never a held-out sentence; short ones many times."""
    asked = world.requests("train", amount.requests)
    answered = [speech.spoken(text) for text in world.replies("train", amount.replies)]
    distinct = dict.fromkeys(asked + answered)
    short = [text for text in distinct if len(text.split()) <= SHORT_WORDS]
    fixed = sorted(speech.spoken(text) for text in world.FIXED)
    return asked * amount.request_copies + answered + short * SHORT_COPIES + fixed * FIXED_COPIES


def held_out_texts() -> list[str]:
    """Returns what is judged: sentences of both sides that training never says."""
    answered = [speech.spoken(text) for text in world.replies("held_out", JUDGED_REPLIES)]
    return world.requests("held_out", JUDGED_REQUESTS) + answered


def corpora(folder: Path, amount: Amount, seed: int, workers: int) -> dict[str, Corpus]:
    """Renders, or finds, the corpora `train`, `seen` (held-out sentences, trained voices) and `unseen` (new voices)."""
    known = [voice for voice in speech.VOICES.values() if not voice.held_out]
    strangers = [voice for voice in speech.VOICES.values() if voice.held_out]
    judged, calm = held_out_texts(), {"speeds": (0.9, 1.15), "pitches": (0.9, 1.15)}
    return {
        "train": render(training_texts(amount), known, seed, folder / "train", workers),
        "seen": render(judged, known, seed + 1, folder / "seen", workers, **calm),  # type: ignore[arg-type]
        "unseen": render(judged, strangers, seed + 2, folder / "unseen", workers, **calm),  # type: ignore[arg-type]
    }


@dataclass(frozen=True)
class Batch:
    """Padded tensors on the training device: audio (batch, samples), tokens (batch, U) and their lengths."""

    audio: torch.Tensor
    samples: torch.Tensor
    targets: torch.Tensor
    tokens: torch.Tensor


class Batches:
    """Draws training batches; the batch of a step depends on the seed and the step alone, so any run can resume.

    Args:
        corpus: Spoken sentences.
        tokens: Token numbers of each.
        size: Rows in a batch.
        seed: Of all draws.
        device: Where the audio is kept, if it fits, and augmented.

    Attributes:
        easy: Draws the first lessons: one clean sentence a row. With noise and rooms from the first step on the encoder
            stays for thousands of steps where it only knows how often each piece is said.
    """

    def __init__(self, corpus: Corpus, tokens: Sequence[list[int]], size: int, seed: int, device: torch.device) -> None:
        self.easy = False
        self._tokens, self._size, self._seed = tokens, size, seed
        self._audio = torch.from_numpy(corpus.audio).to(device)
        self._offsets = torch.from_numpy(corpus.offsets).to(device)
        self._lengths = (corpus.offsets[1:] - corpus.offsets[:-1]).tolist()
        self._of_voice: dict[str, list[int]] = defaultdict(list)
        for index, utterance in enumerate(corpus.utterances):
            self._of_voice[utterance.voice].append(index)
        self._voice = [utterance.voice for utterance in corpus.utterances]
        self._generator = torch.Generator(device)
        self._pool: tuple[tuple[int, bool], list[list[Scene]]] = ((-1, False), [])

    def scene(self, rng: random.Random) -> Scene:
        """Draws one row: a sentence or a few of one voice with pauses, or nothing."""
        if self.easy:
            index, start = rng.randrange(len(self._lengths)), round(rng.uniform(*EASY_LEAD_S) * SAMPLE_RATE)
            tail = round(rng.uniform(*EASY_TAIL_S) * SAMPLE_RATE)
            return Scene((index,), (start,), start + self._lengths[index] + tail)
        if rng.random() < EMPTY_CHANCE:
            return Scene((), (), round(rng.uniform(*EMPTY_LENGTH_S) * SAMPLE_RATE))
        chosen = [rng.randrange(len(self._lengths))]
        same_voice = self._of_voice[self._voice[chosen[0]]]
        chosen += [rng.choice(same_voice) for _ in range(rng.choices((0, 1, 2), SENTENCES)[0])]
        rate, position = rng.uniform(*RATES), rng.uniform(*LEAD_S) * SAMPLE_RATE
        starts: list[int] = []
        said: list[int] = []
        for index in chosen:
            length = self._lengths[index] / rate
            if said and position + length > MAX_SECONDS * SAMPLE_RATE:
                break
            said.append(index)
            starts.append(round(position))
            end = position + length
            position = end + rng.uniform(*PAUSE_S) * SAMPLE_RATE
        return Scene(tuple(said), tuple(starts), round(end + rng.uniform(*TAIL_S) * SAMPLE_RATE), rate)

    def scenes(self, step: int) -> list[Scene]:
        """Draws the rows of a step; rows of similar length share a batch."""
        pool, turn = divmod(step, POOL)
        if self._pool[0] != (pool, self.easy):
            rng = random.Random(f"batches {self._seed} {pool}")
            drawn = sorted((self.scene(rng) for _ in range(POOL * self._size)), key=lambda scene: scene.samples)
            batches = [drawn[k : k + self._size] for k in range(0, len(drawn), self._size)]
            rng.shuffle(batches)
            self._pool = (pool, self.easy), batches
        return self._pool[1][turn]

    def __getitem__(self, step: int) -> Batch:
        scenes = self.scenes(step)
        device = self._audio.device
        self._generator.manual_seed(self._seed * 1_000_003 + step)
        clean = compose(scenes, self._audio, self._offsets)
        is_speech = torch.tensor([bool(scene.utterances) for scene in scenes]).to(device)
        said = [[token for index in scene.utterances for token in self._tokens[index]] for scene in scenes]
        width = max(1, max(map(len, said)))
        return Batch(
            audio=clean if self.easy else augment(clean, is_speech, self._generator),
            samples=torch.tensor([scene.samples for scene in scenes]).to(device),
            targets=torch.tensor([row + [0] * (width - len(row)) for row in said]).to(device),
            tokens=torch.tensor([len(row) for row in said]).to(device),
        )


@dataclass(frozen=True)
class Trial:
    """Audio that is judged, with what was said: (clips, samples) on the device, samples of each, texts."""

    audio: torch.Tensor
    samples: torch.Tensor
    texts: list[str]
    voices: list[str]


def trial(corpus: Corpus, device: torch.device, count: int, augmented: int | None = None) -> Trial:
    """Makes a trial of a corpus's utterances, spread over all of it.

    Args:
        corpus: Spoken sentences.
        device: Where to.
        count: How many, at most.
        augmented: Seed of augmentation; without, the speech is clean and between silences of a quarter of a second.
    """
    chosen = list(range(0, len(corpus), max(1, len(corpus) // count)))[:count]
    margin = SAMPLE_RATE // 4
    scenes = [Scene((index,), (margin,), len(corpus[index]) + 2 * margin) for index in chosen]
    audio = compose(scenes, torch.from_numpy(corpus.audio).to(device), torch.from_numpy(corpus.offsets).to(device))
    if augmented is not None:
        generator = torch.Generator(device).manual_seed(augmented)
        audio = augment(audio, torch.ones(len(scenes), dtype=torch.bool, device=device), generator)
    return Trial(
        audio,
        torch.tensor([scene.samples for scene in scenes]).to(device),
        [corpus.utterances[index].text for index in chosen],
        [corpus.utterances[index].voice for index in chosen],
    )


def empty_trial(device: torch.device) -> Trial:
    """Makes clips of silence and noise, in which nothing is said."""
    count, samples = EMPTY_CLIPS, round(EMPTY_S * SAMPLE_RATE)
    generator = torch.Generator(device).manual_seed(0)
    nothing = torch.zeros(count, samples, device=device)
    audio = augment(nothing, torch.zeros(count, dtype=torch.bool, device=device), generator)
    return Trial(audio, torch.full((count,), samples, device=device), [""] * count, [""] * count)
