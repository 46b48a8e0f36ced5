"""How far apart responses are: never the first, less on big machines, and not when a reply has ended."""

import asyncio

import pytest

from vllm_chat.pace import LONGEST_S, Pace


def test_more_replies_wait_longer_and_more_processors_less():
    small, big = Pace(2), Pace(20)
    assert small.gap_s(1) == pytest.approx(0.0075)
    assert small.gap_s(2) == 2 * small.gap_s(1)
    assert big.gap_s(1) == pytest.approx(small.gap_s(1) / 10)
    assert small.gap_s(1000) == big.gap_s(1000) == LONGEST_S


async def test_a_reply_that_had_its_gap_does_not_wait():
    loop = asyncio.get_running_loop()
    pace = Pace(2)
    waiting = pace.wait(loop.time() - pace.gap_s(1), 1)
    with pytest.raises(StopIteration):  # it ends without having waited for anything
        waiting.send(None)


async def test_all_go_on_when_a_reply_has_ended():
    loop = asyncio.get_running_loop()
    pace = Pace(2)
    in_an_hour = loop.time() + 3600
    waiting = [asyncio.ensure_future(pace.wait(in_an_hour, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pace.hurry()
    assert await asyncio.gather(*waiting[1:]) == [None, None]
    assert (await asyncio.gather(waiting[0], return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert not pace._waiting
