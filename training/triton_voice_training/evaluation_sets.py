"""Writes the small world's fixed sets for `triton-voice eval`: recordings, texts to speak, dialogues.

    python -m triton_voice_training.evaluation_sets checkpoints/evaluation \
        --judge checkpoints/parakeet-tiny/parakeet.nemo

They are in the project, so that neither CI nor a user needs a synthesiser to make them. None of the sentences was
trained on, but for the fixed phrases among the replies; the same command writes the same sets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import typer

from triton_voice.evaluation.offline import OfflineRecogniser
from triton_voice.evaluation.words import spoken_words
from triton_voice_training import cast, chat_data, chat_evaluation, speech, world

#: Recordings in voices that are trained on and in ones that are not, and clips without speech.
SEEN_RECORDINGS, UNSEEN_RECORDINGS, SILENCES = 42, 18, 4
#: Of all recordings so many are of the assistant's sentences.
REPLIES_ONE_IN = 4
LEAD_S, TAIL_S, SILENCE_S = 0.3, 0.5, 2.0
#: Of full scale: the noise in clips without speech.
NOISE_LEVELS = (0.0, 0.001, 0.003, 0.01)
SPEEDS, PITCHES = (0.9, 1.15), (0.9, 1.15)
TEXTS = 40
#: The synthesiser's default voice, and the lookahead at which its originals are judged.
DEFAULT = cast.CAST[2]
JUDGED_AT_MS = 160
#: Fixed phrases, short ones among them: a synthesiser that learned to end must end here too.
PHRASES = ("Okay.", "You are welcome.", "In which city?", "Goodbye! Have a nice day.", "I am fine, thank you.",
           world.GREETING, world.HELP, world.OFF_TOPIC, world.NO_TOOLS, world.JOKES[0])  # fmt: skip
#: Dialogues by kind: tools, thinking, about what was said before, and how many.
DIALOGUES = (
    (True, False, False, 30),
    (True, True, False, 15),
    (False, False, False, 20),
    (False, True, False, 10),
    (True, False, True, 15),
    (False, True, True, 10),
)
SEED = 20


def write_recordings(folder: Path) -> None:
    """Writes `speech/*.flac` and their manifest `speech.jsonl`, with the fields `voice` and `speaker`."""
    rng = random.Random(SEED)
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    count = SEEN_RECORDINGS + UNSEEN_RECORDINGS
    spoken = [speech.spoken(text) for text in world.replies("held_out", count // REPLIES_ONE_IN, SEED)]
    texts = [*world.requests("held_out", count - len(spoken), SEED), *spoken]
    rng.shuffle(texts)
    seen = [name for name, voice in speech.VOICES.items() if not voice.held_out]
    unseen = [name for name, voice in speech.VOICES.items() if voice.held_out]
    rng.shuffle(seen)
    entries = []
    for at, text in enumerate(texts):
        strange = at >= SEEN_RECORDINGS
        voice = (unseen if strange else seen)[at % len(unseen if strange else seen)]
        said = speech.synthesize(text, voice, rng.uniform(*SPEEDS), rng.uniform(*PITCHES))
        lead, tail = (np.zeros(round(seconds * speech.SAMPLE_RATE), np.int16) for seconds in (LEAD_S, TAIL_S))
        audio = np.concatenate([lead, said, tail])
        entries.append(_recording(folder, f"{at:02d}", audio, text, voice, "unseen" if strange else "seen"))
    noise = np.random.default_rng(SEED)
    for at, level in enumerate(NOISE_LEVELS):
        audio = (noise.standard_normal(round(SILENCE_S * speech.SAMPLE_RATE)) * level * 32767).astype(np.int16)
        entries.append(_recording(folder, f"silence{at}", audio, "", "none", "none"))
    _write(folder / "speech.jsonl", entries)


def _recording(folder: Path, name: str, audio: speech.Samples, text: str, voice: str, speaker: str) -> dict[str, Any]:
    path = f"speech/{name}.flac"
    soundfile.write(folder / path, audio, speech.SAMPLE_RATE, subtype="PCM_16")
    seconds = round(len(audio) / speech.SAMPLE_RATE, 3)
    return {"audio_filepath": path, "duration": seconds, "text": text, "voice": voice, "speaker": speaker}


def write_texts(folder: Path, judge: str) -> None:
    """Writes `replies.jsonl`: what the synthesiser is to say, and how it sounds in words.

    Read-back is to judge the voice, not the listener: a sentence that the recogniser gets wrong in the voice that the
    synthesiser learned from is left out. Those are some long ones of the assistant whose words stand nowhere else.

    Args:
        folder: To write to.
        judge: The recogniser's checkpoint.
    """
    recogniser = OfflineRecogniser(judge)
    texts = []
    for text in [*PHRASES, *world.replies("held_out", TEXTS, SEED)]:
        said = speech.synthesize(speech.spoken(text), DEFAULT.voice, DEFAULT.speed, DEFAULT.pitch)
        lead, tail = (np.zeros(round(seconds * speech.SAMPLE_RATE), np.int16) for seconds in (LEAD_S, TAIL_S))
        heard = recogniser.transcribe(np.concatenate([lead, said, tail]), JUDGED_AT_MS)
        if spoken_words(heard) == spoken_words(speech.spoken(text)):
            texts.append(text)
        else:
            print(f"left out: {text!r} is heard as {heard!r}", flush=True)
    _write(folder / "replies.jsonl", ({"text": text, "spoken": speech.spoken(text)} for text in texts))


def write_dialogues(folder: Path) -> None:
    """Writes `dialogues.jsonl`: conversations up to where the assistant speaks, and what is right to say."""
    _write(folder / "dialogues.jsonl", _dialogues())


def _dialogues() -> Iterator[dict[str, Any]]:
    for seed, (tools, thinking, memory, count) in enumerate(DIALOGUES, start=SEED):
        offered, system = (chat_data.bot_tools(), chat_data.BOT_PROMPT) if tools else ([], "")
        drawn = chat_evaluation.memory_dialogues(count, seed) if memory else world.dialogues("held_out", count, seed)
        for turns in drawn:
            for each in chat_evaluation.questions(turns, offered, thinking, system):
                right: dict[str, Any] = {"accepted": list(each.accepted)}
                if each.call is not None:
                    right = {"call": {"name": each.call[0], "arguments": each.call[1]}}
                yield {
                    "group": each.intent, "messages": _openai(each.messages), "tools": offered, "reasoning": thinking,
                    **right,
                }  # fmt: skip


def _openai(messages: Iterable[chat_data.Message]) -> list[chat_data.Message]:
    """Writes the arguments of tool calls as text, as OpenAI has them."""
    made = []
    for message in messages:
        if calls := message.get("tool_calls"):
            function = calls[0]["function"]
            written = {"name": function["name"], "arguments": json.dumps(function["arguments"])}
            message = {**message, "tool_calls": [{**calls[0], "function": written}]}
        made.append(message)
    return made


def _write(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")


def main(
    folder: Annotated[Path, typer.Argument(help="Where the sets go, e.g. checkpoints/evaluation.")],
    judge: Annotated[str, typer.Option(help="The recogniser that will read back.")],
) -> None:
    """Write the three sets."""
    folder.mkdir(parents=True, exist_ok=True)
    write_recordings(folder)
    write_texts(folder, judge)
    write_dialogues(folder)


if __name__ == "__main__":
    typer.run(main)
