"""Lets the serving engine speak held-out lines of a trained Magpie and compares them with the voices it learned from.

Tells what a recogniser would not: whether speech ends where the text ends, and how far its sounds are from the voice's
own, after the two are laid over each other in time.

    python -m triton_voice_training.listen --magpie magpie.nemo --codec codec.nemo --speech build/codec --out listen
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from triton_voice_training import cast
from triton_voice_training.codec import HELD_OUT, held_out_stage, write_wave

#: Utterances spoken at the same time.
SLOTS = 16
#: A length is right if it is off by no more than this part of the voice's own.
LENGTH_TOLERANCE = 0.25
#: Of the mel spectra that are compared: window, hop, bands, and the smallest magnitude.
WINDOW, HOP, BANDS, FLOOR = 1024, 512, 40, 2e-3
#: Short texts that must neither be cut off nor run on.
SHORT = ("Okay.", "Hello.", "Yes.", "In which city?", "You are welcome.")
#: Steps after which the engine is taken to hang.
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Said:
    """One line as Magpie said it.

    Attributes:
        samples: int16, mono.
        reason: Why it ended: "end" or "length".
    """

    samples: npt.NDArray[np.int16]
    reason: str


def speak(model: Any, codec: Path, lines: Sequence[tuple[int, str]], **parameters: float) -> list[Said]:
    """Speaks lines with the serving engine.

    Args:
        model: A Magpie restored by `magpie_engine.checkpoint.restore`.
        codec: Its codec's `.nemo`.
        lines: Speaker and text of each.
        **parameters: Of every request: temperature, cfg_scale, top_k, seed.

    Raises:
        RuntimeError: The engine failed or never ends.
    """
    from magpie_engine.engine import SpeechEngine
    from magpie_engine.events import AudioChunk, Finished
    from magpie_engine.request import SpeechRequest
    from magpie_engine.settings import EngineSettings

    settings = EngineSettings(codec=str(codec), max_streams=SLOTS, max_queue=len(lines), normalizer="light")
    engine = SpeechEngine(model, settings)
    heard: list[list[Any]] = []
    for speaker, text in lines:
        events: list[Any] = []
        heard.append(events)
        wish = {"voice": cast.CAST[speaker].name, "seed": 0} | parameters
        engine.submit(SpeechRequest.from_parameters(text, wish, engine.catalog), events.append)
    for _ in range(MOST_STEPS):
        if not (engine.stats().active or engine.stats().queued):
            break
        engine.step()
    said = []
    for (_, text), events in zip(lines, heard, strict=True):
        if not events or not isinstance(events[-1], Finished):
            raise RuntimeError(f"{text!r} was not spoken: {events[-1:]}")
        chunks = [event.samples for event in events if isinstance(event, AudioChunk)]
        said.append(Said(np.concatenate([np.zeros(0, np.int16), *chunks]), events[-1].reason.value))
    return said


def difference(made: npt.NDArray[np.int16], real: npt.NDArray[np.int16]) -> float:
    """Returns the mean distance of log mel spectra along the best path through both, in decibels a band."""
    from librosa.feature import melspectrogram
    from librosa.sequence import dtw

    spectra = []
    for samples in (made, real):
        signal = samples.astype(np.float32) / 32768
        magnitude = melspectrogram(
            y=signal, sr=cast.SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, fmax=8000, power=1
        )
        spectra.append(20 * np.log10(magnitude + FLOOR))
    cost = np.abs(spectra[0][:, :, None] - spectra[1][:, None, :]).mean(0)
    _, path = dtw(C=cost)
    return float(cost[path[:, 0], path[:, 1]].mean())


def main(
    magpie: Annotated[Path, typer.Option(help="The synthesiser's .nemo.")],
    codec: Annotated[Path, typer.Option(help="The codec's .nemo.")],
    speech: Annotated[Path, typer.Option(help="Folder of the codec's training, for its held-out speech.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and WAV files.")],
    lines: Annotated[int, typer.Option(help="Held-out lines to speak.")] = HELD_OUT,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    sweep: Annotated[bool, typer.Option(help="Try several temperatures and strengths of guidance.")] = False,
) -> None:
    """Speak held-out lines and measure them."""
    from magpie_engine.checkpoint import restore
    from magpie_engine.settings import EngineSettings

    out.mkdir(parents=True, exist_ok=True)
    stage = held_out_stage(speech / "held_out", HELD_OUT, 0)
    model: Any = restore(EngineSettings(checkpoint=str(magpie), codec=str(codec), device=device, normalizer="light"))
    wanted = [(int(stage.speakers[index]), stage.texts[index]) for index in range(min(lines, len(stage)))]
    short = [(speaker, text) for text in SHORT for speaker in range(len(cast.CAST))]
    default: dict[str, float] = {}
    tried = [default]
    if sweep:
        pairs = ((0.0, 1.0), (0.0, 1.5), (0.3, 1.0), (0.6, 1.0), (0.6, 1.5), (0.6, 2.5))
        tried += [{"temperature": heat, "cfg_scale": scale} for heat, scale in pairs]
    report = []
    for parameters in tried:
        said = speak(model, codec, [*wanted, *short], **parameters)
        rows = []
        for index, own in enumerate(said[: len(wanted)]):
            begin, end = stage.begins[index] * cast.SAMPLES_PER_FRAME, stage.begins[index + 1] * cast.SAMPLES_PER_FRAME
            real = stage.audio[begin:end]
            rows.append((len(own.samples) / len(real), difference(own.samples, real)))
        ratios, distances = np.array(rows).T
        brief = [len(own.samples) / cast.SAMPLE_RATE for own in said[len(wanted) :]]
        report.append({
            "parameters": parameters, "difference_db": round(float(distances.mean()), 3),
            "right_length": float((np.abs(ratios - 1) <= LENGTH_TOLERANCE).mean()),
            "length_ratio": [round(float(value), 3) for value in np.percentile(ratios, [0, 10, 50, 90, 100])],
            "cut_at_limit": sum(own.reason != "end" for own in said),
            "short_seconds": [round(min(brief), 2), round(max(brief), 2)],
        })  # fmt: skip
        print(json.dumps(report[-1]), flush=True)
        if parameters == default:
            for index, own in enumerate(said):
                kind = "line" if index < len(wanted) else "short"
                if kind == "short" or index < 10:
                    speaker = [*wanted, *short][index][0]
                    write_wave(out / f"{kind}_{index}_{cast.CAST[speaker].name}.wav",
                               torch.from_numpy(own.samples.astype(np.float32) / 32767))  # fmt: skip
    texts = {f"{index}": text for index, (_, text) in enumerate([*wanted, *short])}
    (out / "report.json").write_text(json.dumps({"tried": report, "texts": texts}, indent=1))


if __name__ == "__main__":
    typer.run(main)
