"""Audio decoded in pieces is the audio decoded whole, and chunks grow while the listener has enough to hear."""

import pytest
import torch

from magpie_engine.checkpoint import restore
from magpie_engine.chunking import ChunkPolicy, PlayoutSchedule
from magpie_engine.codec import StreamingCodec, to_int16
from magpie_engine.errors import CheckpointError
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


def stream(model, codes, sizes, forget=False):
    """Decodes both utterances in pieces of the given sizes, over and over; the second is one piece behind."""
    codec = StreamingCodec(model, rows=3)
    codec.open()  # somebody else's
    rows = [codec.open(), codec.open()]
    pieces = [[], []]
    done = [0, 0]
    turn = 0
    while min(done) < FRAMES:
        turns = [row for row in (0, 1) if done[row] < FRAMES and (row == 0 or turn > 0)]
        fresh = [codes[row, :, done[row] : done[row] + sizes[(turn + row) % len(sizes)]] for row in turns]
        for row, new, audio in zip(turns, fresh, codec.decode([rows[row] for row in turns], fresh), strict=True):
            pieces[row].append(audio)
            done[row] += new.shape[1]
            if turn % 3 == 0:  # an utterance in pieces leaves its row and comes back to another
                state = codec.close(rows[row])
                rows[row] = codec.open(None if forget else state)
        turn += 1
    return torch.stack([torch.cat(own) for own in pieces])


@pytest.mark.parametrize("sizes", [(1,), (2, 4, 8, 16), (7, 1, 3), (FRAMES,)], ids=str)
def test_pieces_join_without_seams(model, spoken, sizes):
    codes, whole = spoken
    assert (stream(model, codes, sizes) - whole).abs().max() < 1e-4


def test_a_forgotten_state_is_heard(model, spoken):
    """Negative control: the tolerance is tight enough to notice a seam."""
    codes, whole = spoken
    assert (stream(model, codes, (4,), forget=True) - whole).abs().max() > 1e-2


def test_a_new_utterance_does_not_hear_the_one_before_it(model, spoken):
    codes, whole = spoken
    codec = StreamingCodec(model, rows=1)
    codec.decode([codec.open()], [codes[0]])
    codec.close(0)
    assert (codec.decode([codec.open()], [codes[1]])[0] - whole[1]).abs().max() < 1e-4


def test_a_decoder_that_cannot_be_streamed_is_refused_by_name(model, monkeypatch):
    monkeypatch.setattr(model._codec_model, "audio_decoder", model._codec_model.audio_encoder)
    with pytest.raises(CheckpointError, match="the codec's decoder is a HiFiGANEncoder"):
        StreamingCodec(model, rows=1)


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


FRAME_S = 1024 / 22050


def chunks(pace_s, frames=120, first=2, maximum=16, margin_s=0.05):
    """Sizes of the chunks, and the least that a player has in its buffer, when a frame takes `pace_s`."""
    schedule = PlayoutSchedule(ChunkPolicy(first, maximum, margin_s, FRAME_S))
    sizes, pending, began, played, least = [], 0, None, 0.0, float("inf")
    for step in range(1, frames + 1):
        now = step * (pace_s(step) if callable(pace_s) else pace_s)
        pending += 1
        if began is not None:
            least = min(least, played - (now - began))
        if schedule.due(pending, now):
            began = now if began is None else began
            played += pending * FRAME_S
            sizes.append(pending)
            pending = 0
    return sizes, least


def test_chunks_grow_while_the_listener_has_enough_to_hear():
    sizes, least = chunks(pace_s=0.002)
    assert sizes[:4] == [2, 4, 8, 16] and set(sizes[3:]) == {16}
    assert least > 0


def test_chunks_stay_small_when_decoding_is_hardly_faster_than_speech():
    sizes, least = chunks(pace_s=0.9 * FRAME_S)
    assert max(sizes[:10]) <= 4 and max(sizes) < 16
    assert least > -2 * FRAME_S  # the buffer cannot hold what was never ahead of time
    doubling_from_the_start = 8 * 0.9 * FRAME_S - 6 * FRAME_S
    assert doubling_from_the_start > 0  # with blindly doubled chunks the listener would run dry


def test_chunks_do_not_fall_below_the_first_when_decoding_is_slower_than_speech():
    sizes, _ = chunks(pace_s=2 * FRAME_S)
    assert set(sizes) == {2}


def test_the_last_frames_are_sent_however_few():
    schedule = PlayoutSchedule(ChunkPolicy(4, 16, 0.1, FRAME_S))
    assert not schedule.due(1, 0.0)
    assert schedule.due(1, 0.0, must=True)
