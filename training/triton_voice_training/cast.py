"""Who speaks in Magpie-tiny, and what it is trained to say: every word through the text path that serves it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_voice_training import world
from triton_voice_training.corpus import Corpus, Utterance, render
from triton_voice_training.speech import SpeechError, spoken

SAMPLE_RATE = 22_050
SAMPLES_PER_FRAME = 1024
#: Silence before the first sound: short, because it is heard as latency.
LEAD_FRAMES = 1
#: Silence after the last sound: what tells the model that the end has come.
TAIL_FRAMES = 4
#: Fewest and most words of a sentence that means nothing, and part of the longer ones that have a comma.
SALAD_WORDS, SALAD_PAUSES = (2, 9), 0.3


@dataclass(frozen=True)
class Role:
    """One baked speaker.

    Attributes:
        name: What clients call it.
        voice: The synthesiser's voice that it is made of.
        speed: Pace, 1 being the voice's own.
        pitch: Pitch, likewise.
        share: Part of all texts that it says in training.
    """

    name: str
    voice: str
    speed: float
    pitch: float
    share: float


#: By the index of the baked speaker, in the public checkpoint's order. Aria is the default voice. All are made of
#: flite's three recorded speakers, which are the clearest: a small codec has less to learn.
CAST = (
    Role("John", "rms", 0.97, 1.0, 0.5),
    Role("Sofia", "slt", 0.97, 1.2, 0.4),
    Role("Aria", "slt", 0.97, 1.0, 1.0),
    Role("Jason", "awb", 0.95, 1.0, 0.4),
    Role("Leo", "rms", 0.95, 0.82, 0.35),
)


@dataclass(frozen=True)
class Stage:
    """Rendered speech on the grid of the codec's frames.

    Attributes:
        texts: What is said, as it is spoken, by utterance.
        speakers: Index in `CAST`, int64 by utterance.
        begins: First frame of each utterance, and one more: the end. int64.
        audio: All utterances, int16, whole frames each.
    """

    texts: list[str]
    speakers: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    audio: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each utterance."""
        return np.diff(self.begins)


def script(count: int, seed: int = 0) -> list[str]:
    """Draws what is said in training, as it is spoken: replies, requests, pairs of sentences, single words.

    Args:
        count: Distinct replies; the others are in proportion.
        seed: The same seed gives the same script.
    """
    rng = random.Random(f"script {seed}")
    replies = [spoken(text) for text in world.replies("train", count, seed)]
    requests = [spoken(text) for text in world.requests("train", count // 4, seed)]
    short = [text for text in replies if len(text) < 45]
    pairs = [f"{rng.choice(short)} {rng.choice(short)}" for _ in range(count // 6)]
    fixed = [spoken(text) for text in sorted(world.FIXED)]
    single = [f"{word}." for word in sorted(vocabulary([*replies, *requests, *fixed]))]
    return list(dict.fromkeys([*fixed, *replies, *requests, *pairs, *single]))


def salad(texts: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Shuffles the words of texts into sentences that mean nothing.

    In sentences of a grammar the past tells what comes next, and a synthesiser that learns from them alone listens to
    itself instead of to its text.

    Args:
        texts: For their words, each as likely as any other.
        count: Sentences; none is held out.
        seed: The same seed gives the same sentences.
    """
    rng = random.Random(f"salad {seed}")
    words = sorted({word.strip(".,!?") for text in texts for word in text.split()})
    made: dict[str, None] = {}
    while len(made) < count:
        drawn = rng.choices(words, k=rng.randint(*SALAD_WORDS))
        pause = rng.randrange(len(drawn) - 1) if len(drawn) > 3 and rng.random() < SALAD_PAUSES else -1
        body = " ".join(f"{word}," if place == pause else word for place, word in enumerate(drawn))
        sentence = world.capital(body) + rng.choice("...?")
        if not world.is_held_out(sentence):
            made[sentence] = None
    return list(made)


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Returns the words of texts, capitalised as a sentence of one word is."""
    return {world.capital(word.strip(".,!?")) for text in texts for word in text.split()}


def lexicon() -> dict[str, str]:
    """Returns words with their IPA, by espeak-ng: the small world's, requests and what it declines included.

    Marks of stress and length are left out: they would be tokens of their own, of which there are not to be more than
    codec frames.

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    texts = [*world.replies("train", 6000), *world.requests("train", 4000), *world.OUTSIDE, *world.FIXED]
    words = sorted({word.lower() for word in vocabulary(map(spoken, texts))})
    try:
        done = subprocess.run(["espeak-ng", "-q", "--ipa", "-v", "en-us"], input="\n".join(words), text=True,
                              capture_output=True, check=True)  # fmt: skip
    except FileNotFoundError:
        raise SpeechError("espeak-ng is not installed; on Debian and Ubuntu: apt install espeak-ng") from None
    sounds = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if len(sounds) != len(words):
        raise SpeechError(f"espeak-ng gave {len(sounds)} pronunciations for {len(words)} words")
    bare = str.maketrans("", "", "\u02c8\u02cc\u02d0\u0329 ")
    return {word: ipa.translate(bare) for word, ipa in zip(words, sounds, strict=True)}


def cast_script(texts: Sequence[str], seed: int = 0) -> list[tuple[int, str]]:
    """Gives every text to the speakers that say it: (speaker, text)."""
    rng = random.Random(f"cast {seed}")
    fixed = {spoken(text) for text in world.FIXED}
    return [(index, text) for text in texts for index, role in enumerate(CAST)
            if text in fixed or rng.random() < role.share]  # fmt: skip


def deal(texts: Sequence[str], seed: int = 0) -> list[tuple[int, str]]:
    """Gives every text to one speaker, by their shares: (speaker, text)."""
    rng = random.Random(f"deal {seed}")
    speakers = rng.choices(range(len(CAST)), [role.share for role in CAST], k=len(texts))
    return list(zip(speakers, texts, strict=True))


def perform(lines: Sequence[tuple[int, str]], folder: Path, workers: int = 0) -> Stage:
    """Speaks lines with all cores, or finds them spoken, and lays them on the codec's frames.

    Args:
        lines: Speaker and text.
        folder: For the speech.
        workers: Processes; 0 for one on each core.
    """
    said = [Utterance(text, CAST[speaker].voice, CAST[speaker].speed, CAST[speaker].pitch) for speaker, text in lines]
    return lay_out(render(said, [], 0, folder, workers, sample_rate=SAMPLE_RATE), [speaker for speaker, _ in lines])


def lay_out(corpus: Corpus, speakers: Sequence[int]) -> Stage:
    """Puts every utterance on whole frames, with `LEAD_FRAMES` and at least `TAIL_FRAMES` of silence around it."""
    frames = -(-np.diff(corpus.offsets) // SAMPLES_PER_FRAME) + LEAD_FRAMES + TAIL_FRAMES
    begins = np.concatenate([[0], np.cumsum(frames)])
    audio = np.zeros(int(begins[-1]) * SAMPLES_PER_FRAME, np.int16)
    for index in range(len(corpus)):
        first = (int(begins[index]) + LEAD_FRAMES) * SAMPLES_PER_FRAME
        audio[first : first + len(corpus[index])] = corpus[index]
    return Stage([each.text for each in corpus.utterances], np.array(speakers, np.int64), begins, audio)
