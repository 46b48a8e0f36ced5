"""How `serve` tells a model that hangs: by its steps, and by asking it for a little work."""

from __future__ import annotations

import asyncio
import time

from triton_voice import TritonVoice
from triton_voice.server.pulse import Pulses, ask, steps_made

PATIENCE_S = 120.0


async def test_each_model_does_the_little_work_that_it_is_asked_for_and_counts_it_as_a_step(server, voice):
    for model in server.server.settings.only:
        before = steps_made(server.metrics, model)
        assert before is not None, f"{model} counts no steps"
        await ask(voice, model)
        deadline = time.monotonic() + PATIENCE_S
        while steps_made(server.metrics, model) == before and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert steps_made(server.metrics, model) > before


def test_silence_is_noticed_and_said(unused_tcp_port):
    pulses = Pulses(TritonVoice(f"127.0.0.1:{unused_tcp_port}"), f"http://127.0.0.1:{unused_tcp_port}/metrics", 2.0)
    try:
        pulses.follow("magpie")
        assert not pulses.hung()
        deadline = time.monotonic() + PATIENCE_S
        while not pulses.hung() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "no answer to small requests" in pulses.hung()["magpie"]
        pulses.give("magpie", 600.0)
        assert not pulses.hung()
    finally:
        pulses.close()
