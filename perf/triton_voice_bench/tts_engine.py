"""`triton-voice bench tts-engine`: the synthesiser's engine alone, against its floor and upstream's `do_tts`."""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from triton_voice.checkpoints import Size, magpie
from triton_voice.errors import InvalidInput
from triton_voice.paths import project_root
from triton_voice_bench.asr_engine import _without_banners as without_banners
from triton_voice_bench.asr_engine import bandwidth
from triton_voice_bench.report import Report, Row, percentiles

TEXT = "Please turn on the lights in the kitchen and play some music, thank you very much."
FRAMES_PER_SECOND = 22050 / 1024
WARM_UP_SECONDS = 0.5
#: Positions of the tiny checkpoint's decoder: its own would end before 20 seconds.
TINY_POSITIONS, TINY_STEPS = 1024, 500
READING = {
    "step_ms": "median of a step: one frame of every utterance in the batch, audio of the chunks that are due included",
    "floor_ms": "weight_bytes / bandwidth_gb_s: no step can be faster, unless a cache holds the weights",
    "weight_bytes": "decoder, its heads, local transformer and codec decoder, embeddings left out",
    "first_audio_ms": "from submitting the batch to each one's first chunk",
    "rtfx": "seconds of audio of the whole batch for each second",
    "reference_ms": "MagpieTTSModel.do_tts on the same weights (float32), text and length: its time for each frame",
    "speedup": "times faster than do_tts one utterance after the other, which is how upstream serves several",
}
COLUMNS = (
    ("batch", "batch"),
    ("frame ms", "step_ms"),
    ("p99", "step_percentiles_ms.p99"),
    ("floor ms", "floor_ms"),
    ("x floor", "times_floor"),
    ("first audio p50 ms", "first_audio_ms.p50"),
    ("x real time", "rtfx"),
    ("do_tts frame ms", "reference_ms"),
    ("its x real time", "reference_rtfx"),
    ("times faster", "speedup"),
)


@dataclass(frozen=True)
class TtsEngineBench:
    """What is measured.

    Attributes:
        batches: Utterances at once, a row each.
        seconds: Length of each.
        size: Of the random weights; ignored with a checkpoint.
        checkpoint: Path or hub name of Magpie instead.
        codec: Of its codec.
        precision: Of the acoustic model.
        device: `auto`, `cpu` or `cuda`.
    """

    batches: Sequence[int]
    seconds: float
    size: Size = "tiny"
    checkpoint: str | None = None
    codec: str | None = None
    precision: str = "float32"
    device: str = "auto"


def run(bench: TtsEngineBench, weights: str, on_progress: Callable[[str], None] = lambda what: None) -> Report:
    """Measures the engine's steps on this machine.

    Args:
        bench: What is measured.
        weights: What is known of the weights.
        on_progress: Told what is measured next.

    Raises:
        InvalidInput: There is no such device.
        CheckpointError: The checkpoint cannot be used.
    """
    engine_folder = str(project_root() / "model_repository" / "magpie" / "1")
    if engine_folder not in sys.path:
        sys.path.insert(0, engine_folder)
    from magpie_engine.checkpoint import restore
    from magpie_engine.engine import SpeechEngine
    from magpie_engine.settings import EngineSettings

    if bench.device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch sees no CUDA device here")
    with tempfile.TemporaryDirectory() as scratch, without_banners():
        on_progress("loading the checkpoint")
        checkpoint, codec = bench.checkpoint, bench.codec or ""
        if checkpoint is None:
            changes = {"max_positions": TINY_POSITIONS, "max_steps": TINY_STEPS} if bench.size == "tiny" else {}
            with contextlib.redirect_stdout(io.StringIO()):
                checkpoint, codec = map(str, magpie.make(Path(scratch), bench.size, **changes))
        settings = EngineSettings(
            checkpoint=checkpoint,
            codec=codec,
            device=bench.device,
            max_streams=max(bench.batches),
            normalizer="light",
            precision=bench.precision,
        )
        model = restore(settings)
        # Upstream's do_tts knows no other precision.
        upstream = model if bench.precision == "float32" else restore(replace(settings, precision="float32"))
    engine = SpeechEngine(model, settings)
    engine.warm_up()
    frames = min(round(bench.seconds * FRAMES_PER_SECOND), engine.catalog.max_frames)
    about: dict[str, Any] = {
        "seconds": round(frames / FRAMES_PER_SECOND, 2),
        "text": TEXT,
        "precision": bench.precision,
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "cuda_graphs": bool(engine._runner._graphs),
        "weight_bytes": weight_bytes(model),
        "reading": READING,
    }
    report = Report("tts-engine", weights, about)
    on_progress("memory bandwidth")
    about["bandwidth_gb_s"] = round(bandwidth(model.device) / 1e9, 2)
    on_progress("do_tts")
    reference_s = reference(upstream, frames)
    _speak(engine, 1, round(WARM_UP_SECONDS * FRAMES_PER_SECOND))
    for batch in bench.batches:
        on_progress(f"{batch} at once")
        report.rows.append(_row(engine, batch, frames))
    on_progress("do_tts again")  # what else this machine does changes in between
    reference_s = (reference_s + reference(upstream, frames)) / 2
    floor_ms = 1000 * about["weight_bytes"] / (about["bandwidth_gb_s"] * 1e9)
    for row in report.rows:
        row["floor_ms"] = round(floor_ms, 4)
        row["times_floor"] = round(row["step_ms"] / floor_ms, 2)
        row["reference_ms"] = round(1000 * reference_s / frames, 3)
        row["reference_rtfx"] = round(frames / FRAMES_PER_SECOND / reference_s, 3)
        row["speedup"] = round(row["batch"] * reference_s / row["wall_s"], 2)
    return report


def weight_bytes(model: Any) -> int:
    """Returns the bytes of weights that a step with audio must read; embeddings are left out."""
    parts = [
        *model.decoder.layers,
        model.final_proj,
        model.local_transformer,
        model.local_transformer_out_projections,
        model._codec_model.audio_decoder,
    ]
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def reference(model: Any, frames: int) -> float:
    """Times upstream's `do_tts` for an utterance of so many frames, in seconds."""
    parameters = model.inference_parameters
    before = parameters.max_decoder_steps, parameters.min_generated_frames
    parameters.max_decoder_steps = parameters.min_generated_frames = frames
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            _, length = model.do_tts(TEXT, speaker_index=0)
            length = int(length)  # waits for the device
            took = time.perf_counter() - began
    finally:
        parameters.max_decoder_steps, parameters.min_generated_frames = before
    return took * frames * 1024 / length


def _row(engine: Any, batch: int, frames: int) -> Row:
    steps_ms, first_ms, wall_s = _speak(engine, batch, frames)
    return {
        "batch": batch,
        "step_ms": round(statistics.median(steps_ms), 3),
        "step_percentiles_ms": percentiles(steps_ms),
        "first_audio_ms": percentiles(first_ms),
        "rtfx": round(batch * frames / FRAMES_PER_SECOND / wall_s, 2),
        "frames": frames,
        "wall_s": round(wall_s, 3),
    }


def _speak(engine: Any, batch: int, frames: int) -> tuple[list[float], list[float], float]:
    """Speaks an utterance of so many frames `batch` times at once: times of steps and first audio, and all of it."""
    from magpie_engine.request import SpeechRequest

    firsts: dict[int, float] = {}
    began = time.perf_counter()
    for number in range(batch):
        parameters = {"voice": next(iter(engine.catalog.voices)), "seed": number}
        parameters["max_seconds"] = (frames + 0.5) / FRAMES_PER_SECOND
        request = SpeechRequest.from_parameters(TEXT, parameters, engine.catalog)
        engine.submit(request, lambda event, own=number: firsts.setdefault(own, time.perf_counter()))
    steps_ms = []
    while engine.stats().active or engine.stats().queued:
        start = time.perf_counter()
        engine.step()
        steps_ms.append(1000 * (time.perf_counter() - start))
    wall_s = time.perf_counter() - began
    return steps_ms, [1000 * (first - began) for first in firsts.values()], wall_s
