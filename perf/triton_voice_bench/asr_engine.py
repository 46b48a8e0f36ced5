"""`triton-voice bench asr-engine`: the recogniser's engine alone, against its floor and against upstream."""

from __future__ import annotations

import contextlib
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from triton_voice.audio import Samples, read_audio
from triton_voice.errors import InvalidInput
from triton_voice.paths import project_root
from triton_voice_bench.report import Report, Row, percentiles

if TYPE_CHECKING:
    from parakeet_engine.checkpoint import Checkpoint, Lookahead
    from parakeet_engine.runner import Chunk, StepRunner

SAMPLES_PER_MS = 16
FULL_SCALE = 32768.0
MIN_STEPS = 5
FINALS = 20
"""Times that all streams of a batch end, at most."""
WARM_UP_STEPS = 5
FEWEST_STEPS = WARM_UP_STEPS + MIN_STEPS
MEMORY_SHARE = 0.8
"""A batch is tried if its streams' states take less than this part of the free memory."""
BANDWIDTH_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Far more than the caches hold, so that memory is what is timed."""
BANDWIDTH_PASSES = 10
READING = {
    "step_ms": "median: audio of all streams to the device, one step of the model, tokens back on the host",
    "final_ms": "all streams of the batch end at once: from their last chunk period of audio to their last tokens, "
    "which takes one or two steps",
    "floor_ms": "weight_bytes / bandwidth_gb_s: no step can be faster, unless a cache holds the weights",
    "bandwidth_gb_s": "best of 10 passes that sum a buffer (1 GiB on CUDA, 256 MiB on the CPU) with torch",
    "reference_ms": "median of NeMo's conformer_stream_step, one stream, eager, its mel features not timed; half of "
    "the steps before and half after the rows",
    "live_streams": "batch x chunk period / mean step: the streams that steps of this size serve in real time",
}
COLUMNS = (
    ("batch", "batch"),
    ("step\nms", "step_ms"),
    ("\np99", "step_percentiles_ms.p99"),
    ("final\nms", "final_ms.p50"),
    ("\np99", "final_ms.p99"),
    ("floor\nms", "floor_ms"),
    ("x\nfloor", "times_floor"),
    ("live\nstreams", "live_streams"),
    ("NeMo, 1\nstream, ms", "reference_ms"),
    ("its live\nstreams", "reference_live_streams"),
    ("state\nbytes", "state_bytes"),
    ("steps", "steps"),
    ("skipped", "skipped"),
)


@dataclass(frozen=True)
class EngineBench:
    """What is measured.

    Attributes:
        checkpoint: Path or hub name.
        batches: Streams per step, a row each.
        latency_ms: Lookahead, which is also the length of a chunk.
        precision: `float32` or `bfloat16`.
        device: `auto`, `cpu` or `cuda`.
        steps: Steps that are measured for a row, after a warm-up.
        row_seconds: A row may take about this long: it has fewer steps then, and is skipped if not even a few fit.
    """

    checkpoint: str
    batches: Sequence[int]
    latency_ms: int = 160
    precision: str = "float32"
    device: str = "auto"
    steps: int = 100
    row_seconds: float = 60.0


def run(bench: EngineBench, weights: str, on_progress: Callable[[str], None] = lambda what: None) -> Report:
    """Measures the engine's steps on this machine.

    Args:
        bench: What is measured.
        weights: What is known of the weights.
        on_progress: Told what is measured next.

    Raises:
        InvalidInput: There is no such device, or the checkpoint has not that latency.
        CheckpointError: The checkpoint cannot be used.
    """
    engine_folder = str(project_root() / "model_repository" / "parakeet" / "1")
    if engine_folder not in sys.path:
        sys.path.insert(0, engine_folder)
    from parakeet_engine.checkpoint import Checkpoint
    from parakeet_engine.runner import StepRunner

    if bench.device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch sees no CUDA device here")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if bench.device == "auto" else bench.device)
    on_progress(f"loading {Path(bench.checkpoint).name}")
    with _without_banners():
        checkpoint = Checkpoint.load(bench.checkpoint, device)
    if bench.latency_ms not in checkpoint.lookaheads:
        offered = ", ".join(str(ms) for ms in checkpoint.lookaheads)
        raise InvalidInput(f"--latency {bench.latency_ms}: this checkpoint has {offered}")
    lookahead = checkpoint.lookaheads[bench.latency_ms]
    speech = read_audio(Path(str(files("triton_voice").joinpath("data/question.wav"))))
    settings: dict[str, Any] = {
        "latency_ms": bench.latency_ms,
        "precision": bench.precision,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "cuda_graphs": device.type == "cuda",
        "reading": READING,
    }
    report = Report("asr-engine", weights, settings)
    on_progress("memory bandwidth")
    settings["bandwidth_gb_s"] = round(bandwidth(device) / 1e9, 2)
    dtype = getattr(torch, bench.precision)
    rows, fitting = _what_fits(bench, checkpoint, dtype, device)
    report.rows += rows
    runner = None
    while fitting and runner is None:
        on_progress("warming up, and NeMo's conformer_stream_step")
        try:
            runner = StepRunner(checkpoint, max(fitting), dtype, device, max(fitting))
            runner.lookaheads = (lookahead,)  # the only one whose graphs are needed
            runner.warm_up()
        except torch.OutOfMemoryError as error:
            runner = None
            report.rows.append(_skipped(fitting.pop(), str(error).splitlines()[0]))
    if runner is not None:
        settings["cuda_graphs"] = runner.captured
        settings["weight_bytes"] = weight_bytes(checkpoint.model)
        reference = _reference(bench, checkpoint, lookahead, dtype, device, speech)
        reason = None
        for batch in fitting:
            on_progress(f"{batch} streams a step")
            row = _skipped(batch, reason) if reason else _row(bench, runner, lookahead, batch, speech)
            reason = reason or _too_much_for_more(bench, row)
            report.rows.append(row)
        on_progress("NeMo's conformer_stream_step")  # again: what else this machine does changes in between
        reference += _reference(bench, checkpoint, lookahead, dtype, device, speech)
        _compare(report, reference)
    report.rows.sort(key=lambda row: row["batch"])
    return report


@contextlib.contextmanager
def _without_banners() -> Iterator[None]:
    """Silences what NeMo and its companions say about themselves when they are imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def bandwidth(device: torch.device) -> float:
    """Measures how fast this device reads its memory: bytes per second, the best of a few sums over a large buffer."""
    buffer = torch.ones(BANDWIDTH_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(BANDWIDTH_PASSES):
        _synchronise(device)
        began = time.perf_counter()
        buffer.sum()
        _synchronise(device)
        best = min(best, time.perf_counter() - began)
    return buffer.numel() * buffer.element_size() / best


def weight_bytes(model: Any) -> int:
    """Returns the bytes of weights that any step must read: encoder, predictor and joint.

    Left out are embeddings, and the projections of positions, whose results are constant.
    """
    parts = torch.nn.ModuleList([model.encoder, model.decoder, model.joint])
    unread = [module for module in parts.modules() if isinstance(module, torch.nn.Embedding)]
    unread += [layer.self_attn.linear_pos for layer in model.encoder.layers]
    left_out = {id(p) for module in unread for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in parts.parameters() if id(p) not in left_out)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _what_fits(
    bench: EngineBench, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> tuple[list[Row], list[int]]:
    """Returns rows for the batches whose streams' states do not fit into the free memory, and the batches that do."""
    from parakeet_engine.conformer import ring_sizes
    from parakeet_engine.features import LogMel
    from parakeet_engine.slots import Slots

    model = checkpoint.model
    mels = LogMel(model.preprocessor.featurizer).mels
    rings = ring_sizes(checkpoint.lookaheads.values(), model.encoder.conv_context_size[0] + 1)
    state = Slots(model, 0, rings, mels, dtype, torch.device("meta")).bytes_per_stream
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    skipped, fitting = [], []
    for batch in sorted(set(bench.batches)):
        if batch * state <= MEMORY_SHARE * free:
            fitting.append(batch)
            continue
        needed = f"{batch} streams' states take {batch * state / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        skipped.append(_skipped(batch, needed))
    return skipped, fitting


def _skipped(batch: int, reason: str) -> Row:
    return {"batch": batch, "step_ms": None, "skipped": reason}


def _too_much_for_more(bench: EngineBench, row: Row) -> str | None:
    """Returns why larger batches than this row's are not tried, None if they are."""
    if row["skipped"]:
        return f"{row['batch']} streams a step were too much"
    if row["step_ms"] / 1000 * FEWEST_STEPS > bench.row_seconds:
        return f"a step of {row['batch']} streams already takes {row['step_ms'] / 1000:.1f} s"
    return None


def _row(bench: EngineBench, runner: StepRunner, lookahead: Lookahead, batch: int, speech: Samples) -> Row:
    """Measures steps of one size, or says why it does not."""
    began, seconds = time.perf_counter(), []
    steps = itertools.islice(_steps(runner, lookahead, batch, speech), WARM_UP_STEPS + bench.steps)
    try:
        for number, chunks in enumerate(steps):
            _synchronise(runner.device)
            start = time.perf_counter()
            runner.step(lookahead, chunks)  # returns when the tokens are on the host
            took = time.perf_counter() - start
            if number >= WARM_UP_STEPS:
                seconds.append(took)
            elif took * (FEWEST_STEPS - number) > bench.row_seconds:
                return _skipped(batch, f"a step takes {took:.1f} s; {FEWEST_STEPS} exceed {bench.row_seconds:.0f} s")
            if len(seconds) >= MIN_STEPS and time.perf_counter() - began > bench.row_seconds:
                break
    except torch.OutOfMemoryError as error:
        return _skipped(batch, str(error).splitlines()[0])
    milliseconds = [1000 * s for s in seconds]
    finals_ms = _finals(runner, lookahead, batch, speech, began + 2 * bench.row_seconds)
    state_bytes = runner.network.slots.bytes_per_stream
    return {
        "batch": batch,
        "step_ms": round(statistics.median(milliseconds), 3),
        "step_percentiles_ms": percentiles(milliseconds),
        "live_streams": round(batch * lookahead.latency_ms / statistics.fmean(milliseconds), 2),
        "final_ms": percentiles(finals_ms),
        "state_bytes": state_bytes,
        "steps": len(milliseconds),
        "skipped": None,
    }


def _steps(runner: StepRunner, lookahead: Lookahead, batch: int, speech: Samples) -> Iterator[list[Chunk]]:
    """Yields steps without end: the next chunk of each of `batch` streams, which speak from other places on."""
    from parakeet_engine.requests import AudioRequest
    from parakeet_engine.stream import Stream

    streams = [Stream(number, lookahead, runner) for number in range(batch)]
    for number, stream in enumerate(streams):
        stream.slot = number
    size = lookahead.latency_ms * SAMPLES_PER_MS
    for position in itertools.count(step=size):
        chunks = []
        for number, stream in enumerate(streams):
            start = position + len(speech) * number // batch
            piece = speech.take(range(start, start + size), mode="wrap")
            stream.pending.append(AudioRequest(number, piece, respond=lambda result: None))
            stream.take_request()
            chunk = stream.next_chunk()
            assert chunk is not None, "a piece as long as a chunk completes one"
            chunks.append(chunk)
            stream.finish_request()
        yield chunks


def _finals(runner: StepRunner, lookahead: Lookahead, batch: int, speech: Samples, until: float) -> list[float]:
    """Times the ends of a batch of streams, in milliseconds: at least one, more up to `FINALS` until that time."""
    from parakeet_engine.requests import AudioRequest
    from parakeet_engine.stream import Stream

    size = lookahead.latency_ms * SAMPLES_PER_MS
    milliseconds: list[float] = []
    while not milliseconds or (len(milliseconds) < FINALS and time.perf_counter() < until):
        streams = [Stream(number, lookahead, runner) for number in range(batch)]
        for begin, end in ((0, False), (3 * size, True)):  # three chunks, then a last one
            _synchronise(runner.device)
            start = time.perf_counter()
            for number, stream in enumerate(streams):
                stream.slot = number
                piece = speech.take(range(begin, begin + (size if end else 3 * size)), mode="wrap")
                stream.pending.append(AudioRequest(number, piece, respond=lambda result: None, end=end))
                stream.take_request()
            while chunks := [chunk for stream in streams if (chunk := stream.next_chunk()) is not None]:
                runner.step(lookahead, chunks)
            for stream in streams:
                stream.finish_request()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds


def _reference(
    bench: EngineBench,
    checkpoint: Checkpoint,
    lookahead: Lookahead,
    dtype: torch.dtype,
    device: torch.device,
    speech: Samples,
) -> list[float]:
    """Times upstream's own step for one stream, on the same weights: what servers do that do not batch callers.

    The mel features are computed beforehand and are not timed. What upstream sets up for this lookahead is what the
    engine sets as well, so steps of both can take turns.

    Returns:
        Milliseconds of each of half the bench's steps.
    """
    from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer

    model = checkpoint.model
    encoder, greedy = model.encoder, model.decoding.decoding
    encoder.set_default_att_context_size([lookahead.left, lookahead.right])
    encoder.setup_streaming_params()
    if hasattr(greedy, "disable_cuda_graphs"):
        greedy.disable_cuda_graphs()
    steps = WARM_UP_STEPS + max(MIN_STEPS, bench.steps // 2)
    samples = speech.take(range((steps + 1) * lookahead.latency_ms * SAMPLES_PER_MS), mode="wrap")
    milliseconds: list[float] = []
    with torch.inference_mode():
        buffer = CacheAwareStreamingAudioBuffer(model=model)
        buffer.append_audio((samples / FULL_SCALE).astype(np.float32))
        cache = encoder.get_initial_cache_state(batch_size=1, dtype=dtype, device=device)
        hypotheses = None
        began = time.perf_counter()
        for number, (chunk, length) in enumerate(itertools.islice(buffer, steps)):
            chunk = chunk.to(dtype)
            _synchronise(device)
            start = time.perf_counter()
            _, _, *cache, hypotheses = model.conformer_stream_step(
                processed_signal=chunk,
                processed_signal_length=length,
                cache_last_channel=cache[0],
                cache_last_time=cache[1],
                cache_last_channel_len=cache[2],
                keep_all_outputs=False,
                previous_hypotheses=hypotheses,
                drop_extra_pre_encoded=encoder.streaming_cfg.drop_extra_pre_encoded if number else 0,
            )
            _synchronise(device)
            if number >= WARM_UP_STEPS:
                milliseconds.append(1000 * (time.perf_counter() - start))
            if len(milliseconds) >= MIN_STEPS and time.perf_counter() - began > bench.row_seconds / 2:
                break
    return milliseconds


def _compare(report: Report, reference: list[float]) -> None:
    """Adds the floor and the reference to every row that was measured."""
    for row in report.rows:
        if row["step_ms"] is None:
            continue
        floor_ms = 1000 * report.settings["weight_bytes"] / (report.settings["bandwidth_gb_s"] * 1e9)
        row["floor_ms"] = round(floor_ms, 3)
        row["times_floor"] = round(row["step_ms"] / floor_ms, 2)
        row["reference_ms"] = round(statistics.median(reference), 3)
        row["reference_percentiles_ms"] = percentiles(reference)
        row["reference_live_streams"] = round(report.settings["latency_ms"] / statistics.fmean(reference), 2)
