"""What tells a model that works from one that does not: whose process is whose, and what counts as a sign of life."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from triton_voice import InvalidInput, ServerFault, ServerFull, ServerGone
from triton_voice.server import health, pulse
from triton_voice.server.locate import STUB


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_reloaded_models_process_is_the_newest(order, monkeypatch):
    """Triton may keep the process of the model that unloaded itself."""

    def process(pid):
        if pid == 3:
            raise psutil.NoSuchProcess(pid)
        return _stub(pid, "/repository/nemotron/1/model.py")

    monkeypatch.setattr(health.psutil, "Process", process)
    found = health.find_stubs([*order, 3], ["nemotron", "magpie"], Path("/repository"))
    assert {model: stub.pid for model, stub in found.items()} == {"nemotron": 2}


def test_a_repository_below_a_folder_of_a_models_name_confuses_nobody(monkeypatch):
    repository = Path("/home/me/nemotron/magpie/repository")
    models = {1: "parakeet", 2: "nemotron", 3: "magpie"}
    monkeypatch.setattr(health.psutil, "Process", lambda pid: _stub(pid, f"{repository}/{models[pid]}/1/model.py"))
    found = health.find_stubs(models, models.values(), repository)
    assert {stub.pid: model for model, stub in found.items()} == models


def _stub(pid, path):
    command = [f"/backends/python/{STUB}", path, "triton_voice_1", "1048576", "/backends/python"]
    return SimpleNamespace(pid=pid, cmdline=lambda: command, create_time=lambda: 100.0 * pid)


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def silent(monkeypatch):
    """A watch whose server answers until it is told not to, and its clock."""
    clock, server = Clock(), SimpleNamespace(answers=True, close=lambda: None)

    def is_model_ready(name, client_timeout):
        if server.answers:
            return True
        clock.now += client_timeout
        raise InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")

    server.is_model_ready = is_model_ready
    monkeypatch.setattr(health, "time", clock)
    monkeypatch.setattr(health, "_runs", lambda process: True)
    watch = health.Watch(lambda: server, None)
    watch.add({"magpie": SimpleNamespace()})
    assert not watch.look().hangs
    return watch, clock, server


def test_a_silent_server_hangs_after_a_while_and_not_before(silent):
    watch, clock, server = silent
    server.answers = False
    began, looks = clock.now, 0
    while not (state := watch.look()).hangs:
        clock.now += 0.5
        looks += 1
    assert state.silent_s == clock.now - began > health.SILENCE_S
    assert looks > 3
    server.answers = True
    assert watch.look().silent_s == 0.0


@pytest.mark.parametrize("asleep", ["between two looks", "within a look"])
def test_time_in_which_the_watcher_did_not_run_is_no_silence(silent, asleep):
    """A paused container, or a host that starves: the server did not run either."""
    watch, clock, server = silent
    server.answers = False
    if asleep == "within a look":
        _sleeps_once(server, clock)
    else:
        clock.now += 3600.0
    assert not watch.look().hangs
    assert not watch.look().hangs


def _sleeps_once(server, clock):
    asked = server.is_model_ready

    def is_model_ready(name, client_timeout):
        clock.now += 3600.0
        server.is_model_ready = asked
        return asked(name, client_timeout)

    server.is_model_ready = is_model_ready


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
