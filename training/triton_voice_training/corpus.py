"""Corpora of speech: many texts in many voices, spoken with all the processor's cores and kept on disk.

What `render` makes depends on its arguments alone, and it carries on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_voice_training.speech import SAMPLE_RATE, Samples, SpeechError, Voice, synthesize

#: Spoken again after an interruption: at most one shard of each worker.
UTTERANCES_PER_SHARD = 256
#: Ranges of pace and pitch in training.
SPEEDS = (0.8, 1.3)
PITCHES = (0.8, 1.3)


@dataclass(frozen=True)
class Utterance:
    """One text as one voice says it.

    Attributes:
        text: What is said, numbers in words.
        voice: A name in `VOICES`.
        speed: Pace, 1 being the voice's own.
        pitch: Pitch, 1 being the voice's own.
    """

    text: str
    voice: str
    speed: float = 1.0
    pitch: float = 1.0


@dataclass(frozen=True)
class Corpus:
    """Rendered utterances.

    Attributes:
        utterances: What was said and how.
        audio: All of it, one utterance after the other: int16, mono.
        offsets: Sample at which each utterance begins, and one more: the end. int64.
        sample_rate: Samples a second.
    """

    utterances: list[Utterance]
    audio: Samples
    offsets: npt.NDArray[np.int64]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Samples:
        return self.audio[self.offsets[index] : self.offsets[index + 1]]

    @property
    def hours(self) -> float:
        """Length of all utterances together."""
        return len(self.audio) / self.sample_rate / 3600


def plan(
    texts: Sequence[str],
    voices: Sequence[Voice],
    seed: int,
    copies: int = 1,
    speeds: tuple[float, float] = SPEEDS,
    pitches: tuple[float, float] = PITCHES,
) -> list[Utterance]:
    """Draws a voice, a speed and a pitch for every copy of every text.

    Args:
        texts: What is to be said.
        voices: Drawn by their weights.
        seed: The same seed gives the same plan.
        copies: How often each text is said.
        speeds: Least and most.
        pitches: Least and most.
    """
    rng = random.Random(f"speech {seed}")
    weights = [voice.weight for voice in voices]
    return [
        Utterance(text, rng.choices(voices, weights)[0].name, round(rng.uniform(*speeds), 3),
                  round(rng.uniform(*pitches), 3))
        for _ in range(copies)
        for text in texts
    ]  # fmt: skip


def render(
    texts: Sequence[str] | Sequence[Utterance],
    voices: Sequence[Voice],
    seed: int,
    folder: Path,
    workers: int = 0,
    *,
    sample_rate: int = SAMPLE_RATE,
    copies: int = 1,
    speeds: tuple[float, float] = SPEEDS,
    pitches: tuple[float, float] = PITCHES,
) -> Corpus:
    """Speaks texts into a folder, in parallel, and returns them; finished shards are found again, not made again.

    Args:
        texts: What is to be said, or a finished plan of utterances (then `voices`, `seed`, `copies`, `speeds` and
            `pitches` are not used).
        voices: See `plan`.
        seed: See `plan`.
        folder: For the plan and the shards.
        workers: Processes; 0 for one on each core.
        sample_rate: Of the audio.
        copies: See `plan`.
        speeds: See `plan`.
        pitches: See `plan`.

    Raises:
        SpeechError: See `synthesize`; also when the folder holds other speech.
    """
    utterances = [each for each in texts if isinstance(each, Utterance)]
    if len(utterances) != len(texts):
        said = [each for each in texts if isinstance(each, str)]
        utterances = plan(said, voices, seed, copies, speeds, pitches)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"sample_rate": sample_rate, "utterances": [asdict(each) for each in utterances]})
    planned = folder / "plan.json"
    if planned.exists() and planned.read_text() != content:
        raise SpeechError(f"{folder} holds speech made from other texts or settings; remove it or name another folder")
    partial = folder / "plan.partial"
    partial.write_text(content)
    partial.replace(planned)
    missing = [shard for shard in _shards(folder, len(utterances)) if not shard.exists()]
    if missing:
        _render_missing(folder, missing, len(utterances), workers or os.cpu_count() or 1)
    return load(folder)


def load(folder: Path) -> Corpus:
    """Reads what `render` made.

    Raises:
        SpeechError: The folder holds no finished speech.
    """
    try:
        stored = json.loads((folder / "plan.json").read_text())
        utterances = [Utterance(**each) for each in stored["utterances"]]
        shards = [_read_shard(shard) for shard in _shards(folder, len(utterances))]
    except FileNotFoundError as error:
        raise SpeechError(f"{folder} holds no finished speech: {error.filename} is missing") from None
    lengths = np.concatenate([np.zeros(1, np.int64), *(shard["lengths"] for shard in shards)])
    audio = np.concatenate([np.zeros(0, np.int16), *(shard["audio"] for shard in shards)])
    return Corpus(utterances, audio, np.cumsum(lengths), stored["sample_rate"])


def _read_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path) as stored:
        return dict(stored)


def _shards(folder: Path, count: int) -> list[Path]:
    return [folder / f"{index:05d}.npz" for index in range(math.ceil(count / UTTERANCES_PER_SHARD))]


def _render_missing(folder: Path, missing: list[Path], count: int, workers: int) -> None:
    """Runs this module once for each worker; processes of their own, so that none inherits a model or a device."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    total = len(_shards(folder, count))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "triton_voice_training.corpus", str(folder), str(k), str(workers)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for k in range(min(workers, len(missing)))
    ]  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    try:
        with Progress(*columns) as progress:
            task = progress.add_task(f"speaking {count:,} utterances", total=total)
            while any(worker.poll() is None for worker in running):
                progress.update(task, completed=total - sum(not shard.exists() for shard in missing))
                failed = [worker for worker in running if worker.poll()]
                if failed:
                    break
                time.sleep(0.1)
            progress.update(task, completed=total - sum(not shard.exists() for shard in missing))
    finally:
        for worker in running:
            if worker.poll() is None:
                worker.terminate()
        errors = [worker.communicate()[1] for worker in running]
    for worker, error in zip(running, errors, strict=True):
        if worker.returncode > 0:
            raise SpeechError(error.strip().splitlines()[-1] if error.strip() else "a synthesis process failed")


def _render_part(folder: Path, part: int, parts: int) -> None:
    stored: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    utterances = [Utterance(**each) for each in stored["utterances"]]
    missing = [s for s in enumerate(_shards(folder, len(utterances))) if not s[1].exists()]
    for index, shard in missing:
        if index % parts != part:
            continue
        said = utterances[index * UTTERANCES_PER_SHARD : (index + 1) * UTTERANCES_PER_SHARD]
        audio = [synthesize(u.text, u.voice, u.speed, u.pitch, stored["sample_rate"]) for u in said]
        temporary = shard.with_suffix(f".{part}.partial")
        with temporary.open("wb") as file:
            np.savez(file, audio=np.concatenate(audio), lengths=np.array([len(each) for each in audio], np.int64))
        temporary.replace(shard)


def main() -> None:
    """Speaks one worker's part of a folder, for `render`."""
    parser = argparse.ArgumentParser(description="Speak one worker's part of a folder that was planned.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", type=int)
    parser.add_argument("parts", type=int)
    options = parser.parse_args()
    try:
        _render_part(options.folder, options.part, options.parts)
    except SpeechError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
