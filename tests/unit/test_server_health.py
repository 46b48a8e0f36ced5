"""What tells a model that works from one that does not: whose process is whose, and what counts as a sign of life."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psutil
import pytest

from triton_voice import InvalidInput, ServerFault, ServerFull, ServerGone
from triton_voice.server import health, pulse
from triton_voice.server.locate import STUB


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_reloaded_models_process_is_the_newest(order, monkeypatch):
    """Triton may keep the process of the model that unloaded itself."""

    def process(pid):
        if pid == 3:
            raise psutil.NoSuchProcess(pid)
        command = [f"/backends/python/{STUB}", "/repository/nemotron/1/model.py"]
        return SimpleNamespace(pid=pid, cmdline=lambda: command, create_time=lambda: 100.0 * pid)

    monkeypatch.setattr(health.psutil, "Process", process)
    assert health.find_stubs([*order, 3], ["nemotron", "magpie"])["nemotron"].pid == 2


@pytest.mark.parametrize(
    ("model", "counts", "error", "alive", "said"),
    [
        ("magpie", True, None, True, ""),
        ("magpie", True, ServerFull("all voices speak"), False, ""),  # perhaps for ever: its steps tell
        ("nemotron", False, ServerFull("all seats are taken"), True, ""),
        ("parakeet", True, ServerFull("all streams are taken"), True, ""),  # said by the thread that makes the steps
        ("nemotron", True, InvalidInput("no chat"), True, ""),
        ("magpie", True, ServerGone("gone"), False, ""),
        ("magpie", True, ServerFault("the speech engine has stopped"), False, "the speech engine has stopped"),
        ("magpie", True, AttributeError("no tensor"), False, "no tensor"),  # not ours; the model is followed on
    ],
)
async def test_a_sign_of_life(model, counts, error, alive, said, monkeypatch):
    async def asked(voice, model):
        if error is not None:
            raise error

    monkeypatch.setattr(pulse, "ask", asked)
    own = pulse._Pulse()
    assert await pulse.Pulses._answers(SimpleNamespace(_voice=None), model, own, counts=counts) is alive
    assert own.said == said


async def test_a_sick_model_is_asked_once_a_tick(monkeypatch):
    asks = 0

    async def answers(model, own, counts):
        nonlocal asks
        asks += 1
        return asks == 3

    async def steps(model):
        return 7.0

    monkeypatch.setattr(pulse, "TICK_S", 0.05)
    monkeypatch.setattr(pulse, "PUBLISH_S", 0.0)
    own = pulse._Pulse()
    began = asyncio.get_running_loop().time()
    await pulse.Pulses._ask(SimpleNamespace(_answers=answers, _steps=steps), "magpie", own, 7.0)
    assert asks == 3 and asyncio.get_running_loop().time() - began >= 0.1  # two whole ticks were waited
    assert own.silent_s == 0.0
