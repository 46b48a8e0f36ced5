"""Audio of a segment of speech between the pipeline and the recogniser."""

from __future__ import annotations

import numpy as np
import pytest

from pipecat_triton.segment import KEPT_S, Segment
from support import speechlike

CHUNK = 2560


def segment(rate: int = 16000) -> Segment:
    return Segment(rate, None, None, "parakeet", "")


async def test_chunks_and_the_rest_are_the_audio():
    audio, one = speechlike(1), segment()
    one.add(audio[:CHUNK].tobytes())
    first, last = await one.take()
    assert not last
    one.add(audio[CHUNK:].tobytes())
    one.end()
    rest, last = await one.take()
    assert last
    np.testing.assert_array_equal(np.concatenate([first, rest]), audio)


@pytest.mark.parametrize("rate", [16000, 8000])
async def test_after_a_rewind_everything_comes_again_at_once(rate):
    audio, one = speechlike(1), segment(rate)
    one.add(audio.tobytes())
    first, _ = await one.take()
    one.rewind()
    again, last = await one.take()
    np.testing.assert_array_equal(again, first)
    assert not last
    one.end()
    await one.take()
    one.rewind()
    whole, last = await one.take()
    assert last and len(whole) >= len(first)


async def test_endless_noise_is_not_kept_for_ever():
    one = segment()
    second = np.zeros(16000, np.int16)
    for _ in range(2 * KEPT_S):
        one.add(second.tobytes())
        await one.take()
    one.rewind()
    kept, _ = await one.take()
    assert KEPT_S * 16000 <= len(kept) <= (KEPT_S + 1) * 16000
