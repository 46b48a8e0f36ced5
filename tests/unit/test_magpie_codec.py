"""Audio decoded in pieces is the audio decoded whole."""

import pytest
import torch

from magpie_engine.checkpoint import restore
from magpie_engine.chunking import ChunkSchedule
from magpie_engine.codec import LEFT_CONTEXT, StreamingCodec, to_int16
from magpie_engine.settings import EngineSettings

FRAMES = 60


@pytest.fixture(scope="module")
def model(tiny):
    return restore(EngineSettings(checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu"))


@pytest.fixture(scope="module")
def spoken(model):
    """Random codes of two utterances and their audio, decoded whole by NeMo."""
    codes = torch.randint(0, model.codebook_size, (2, 8, FRAMES), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        audio, _ = model._codec_model.decode(tokens=codes, tokens_len=torch.tensor([FRAMES, FRAMES]))
    return codes, audio


def stream(model, codes, sizes, context=LEFT_CONTEXT):
    """Decodes both utterances in pieces of the given sizes, over and over; the second is one piece behind."""
    codec = StreamingCodec(model)
    pieces = [[], []]
    done = [0, 0]
    turn = 0
    with torch.inference_mode():
        while min(done) < FRAMES:
            rows = [row for row in (0, 1) if done[row] < FRAMES and (row == 0 or turn > 0)]
            fresh = [min(sizes[turn % len(sizes)], FRAMES - done[row]) for row in rows]
            windows = [
                codes[row, :, max(0, done[row] - context) : done[row] + count]
                for row, count in zip(rows, fresh, strict=True)
            ]
            for row, count, audio in zip(rows, fresh, codec.decode(windows, fresh), strict=True):
                pieces[row].append(audio)
                done[row] += count
            turn += 1
    return torch.stack([torch.cat(own) for own in pieces])


@pytest.mark.parametrize("sizes", [(1,), (2, 4, 8, 16), (7, 1, 3), (FRAMES,)], ids=str)
def test_pieces_join_without_seams(model, spoken, sizes):
    codes, whole = spoken
    assert (stream(model, codes, sizes) - whole).abs().max() < 1e-4


def test_too_little_context_is_heard(model, spoken):
    """Negative control: the tolerance is tight enough to notice a seam."""
    codes, whole = spoken
    assert (stream(model, codes, (4,), context=2) - whole).abs().max() > 1e-2


def test_the_tiny_voice_is_audible_and_does_not_clip(spoken):
    _, audio = spoken
    assert torch.isfinite(audio).all()
    per_second = audio.unfold(1, 22050, 22050).std(dim=2)
    assert (per_second > 0.02).all()
    assert audio.abs().max() < 1.0
    assert audio.mean().abs() < 0.01


def test_loudness_does_not_depend_on_the_piece():
    quiet, loud = torch.full((4,), 0.01), torch.full((4,), 0.5)
    assert to_int16(quiet).tolist() == [328] * 4
    assert to_int16(loud).tolist() == [16384] * 4
    assert to_int16(torch.tensor([-2.0, 2.0])).tolist() == [-32767, 32767]


def test_chunks_double_up_to_the_limit():
    schedule = ChunkSchedule(first=2, maximum=8)
    sent, pending = [], 0
    for _ in range(30):
        pending += 1
        if schedule.due(pending):
            sent.append(pending)
            pending = 0
    assert sent == [2, 4, 8, 8, 8]
