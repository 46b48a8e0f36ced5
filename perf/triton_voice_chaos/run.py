"""Runs the faults one after the other under load and judges each."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

from triton_voice.audio import read_audio
from triton_voice_chaos.faults import FAULTS, Fault, Scene, small_disk
from triton_voice_chaos.load import Group, Load, question
from triton_voice_chaos.proxy import CuttingProxy
from triton_voice_chaos.record import Call, Toll, settled, toll
from triton_voice_chaos.subject import IDLE_S, Holdings, Subject, processes_left

QUIET_S = 4.0
"""So long nothing may fail before a fault counts as over."""
RECOVERY_LIMIT_S = 600.0
POLL_S = 0.2
SPARE_FILES, SPARE_THREADS, SPARE_MIB = 24, 24, 700.0
"""What a server may hold more after a fault than before: connections of clients that came back, and memory that its
shared-memory regions and allocators keep for the largest messages they ever saw. Of four floods in a row the first
three left tritonserver some 200 to 300 MiB larger each, the last 30."""
RELEASE_S = IDLE_S + 10.0
QUESTION = "data/question.wav"
ALARM = r" died| hangs|restarting"
"""What `serve` says when it sees something wrong."""


@dataclass
class Outcome:
    """One fault and what came of it.

    Attributes:
        fault: Its name.
        does: What it did.
        at: When, on the clock of the calls.
        over_at: When all was well again, or the wait ended.
        tolls: By model.
        rates: By model, right answers a second: in the steady load before the fault, and in the first `QUIET_S` after
            all was well again.
        before: What the server held before.
        after: What it held when all was well again.
        notes: What the fault tells of itself.
        complaints: What may not be; empty means passed.
        skipped: Why it was not made.
    """

    fault: str
    does: str
    at: float = 0.0
    over_at: float = 0.0
    tolls: dict[str, Toll] = field(default_factory=dict)
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    before: Holdings | None = None
    after: Holdings | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    skipped: str = ""

    def as_json(self, start: float) -> dict[str, Any]:
        """Returns it as plain objects, times in seconds since `start`."""
        whole: dict[str, Any] = {
            **vars(self),
            "at": round(self.at - start, 2),
            "over_at": round(self.over_at - start, 2),
        }
        whole["tolls"] = {model: toll.as_json() for model, toll in self.tolls.items()}
        for name in ("before", "after"):
            held = whole[name]
            whole[name] = None if held is None else held.as_json()
        return whole


@dataclass(frozen=True)
class Asked:
    """What a run is to do.

    Attributes:
        faults: Names, in order.
        only: Models to load.
        seconds: Steady load before each fault, and how long a fault that lasts goes on.
        callers: Callers in each of two groups, one of them behind the proxy.
        chats: Chats in each group.
        speakers: Speech requests at once in each group.
        serve_options: Further options of `serve`.
    """

    faults: tuple[str, ...]
    only: tuple[str, ...]
    seconds: float = 6.0
    callers: int = 2
    chats: int = 1
    speakers: int = 1
    serve_options: tuple[str, ...] = ()


@dataclass
class Run:
    """A whole run: outcomes, and every call for the timeline."""

    asked: Asked
    started: float
    outcomes: list[Outcome] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    said: list[tuple[float, str]] = field(default_factory=list)
    stopped_in_order: bool = False
    left_over: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing hung, was lost in silence, leaked or stayed away."""
        return self.stopped_in_order and not self.left_over and not any(o.complaints for o in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain objects."""
        return {
            "asked": asdict(self.asked),
            "passed": self.passed,
            "stopped_in_order": self.stopped_in_order,
            "left_over": self.left_over,
            "outcomes": [outcome.as_json(self.started) for outcome in self.outcomes],
            "serve_said": [[round(at - self.started, 1), line] for at, line in self.said],
        }


def run(asked: Asked, on_step: Callable[[str], None] = lambda words: None) -> Run:
    """Starts a server and clients, makes the faults, and stops everything.

    Args:
        asked: What to do.
        on_step: Hears what is being done.

    Raises:
        ServerError: The server did not come up at the beginning.
    """
    chosen = [fault for fault in FAULTS if fault.name in asked.faults]
    result = Run(asked, time.monotonic())
    with contextlib.ExitStack() as stack:
        disk, why_no_disk = stack.enter_context(small_disk())
        environment = {} if disk is None else {"TRITON_VOICE_CACHE": str(disk)}
        on_step("the server starts")
        subject = stack.enter_context(Subject(asked.only, asked.serve_options, environment))
        proxy = stack.enter_context(CuttingProxy(subject.url))
        audio = question(read_audio(str(files("triton_voice").joinpath(QUESTION))))
        load = stack.enter_context(Load(_groups(asked, subject.url, proxy.url), audio))
        scene = Scene(subject, proxy, disk, asked.seconds)
        on_step("clients call until every model answers")
        if not _wait_settled(load, asked.only, time.monotonic()):
            raise TimeoutError("the models did not all answer under load before any fault was made")
        for fault in chosen:
            outcome = Outcome(fault.name, fault.does)
            result.outcomes.append(outcome)
            if missing := set(fault.needs) - set(asked.only):
                outcome.skipped = f"{', '.join(missing)} is not loaded"
            elif fault.name == "disk-full" and disk is None:
                outcome.skipped = why_no_disk
            if outcome.skipped:
                continue
            on_step(f"{fault.name}: {fault.does}")
            scene.notes = outcome.notes
            _make(fault, outcome, scene, load, asked)
            on_step(f"{fault.name}: {'; '.join(outcome.complaints) or 'passed'}")
            if not all(toll.came_back for toll in outcome.tolls.values()):
                break  # what follows would tell nothing
        on_step("clients and server stop")
        load.stop()
        result.calls, result.said = load.calls, subject.said
        result.left_over += _slots_left(subject)
        family = subject.family()
        result.stopped_in_order = subject.stop()
        result.left_over += processes_left(family)
    return result


def _groups(asked: Asked, url: str, proxied: str) -> Sequence[Group]:
    """Two client processes that connect directly, so that they share no interpreter, and one behind the proxy."""

    def of(model: str, count: int) -> int:
        return count if model in asked.only else 0

    callers, chats, speakers = of("parakeet", asked.callers), of("nemotron", asked.chats), of("magpie", asked.speakers)
    return (
        Group("direct", url, callers=callers),
        Group("direct", url, chats=chats, speakers=speakers),
        Group("proxy", proxied, callers, chats, speakers),
    )


def _make(fault: Fault, outcome: Outcome, scene: Scene, load: Load, asked: Asked) -> None:
    time.sleep(asked.seconds)
    outcome.before = scene.subject.holdings()
    outcome.at = time.monotonic()
    starts, heard = scene.subject.starts, len(scene.subject.said)
    try:
        fault.make(scene)
    except Exception as error:  # the fault itself found something wrong: what it says is the finding
        outcome.complaints.append(f"{type(error).__name__}: {error}")
    # What a kill breaks may take a moment to show: without this a fault would count as over before it began.
    time.sleep(QUIET_S)
    came_back = _wait_settled(load, asked.only, outcome.at)
    outcome.over_at = time.monotonic()
    calls = [call for call in list(load.calls) if call.ended > outcome.at]
    outcome.after = _after(scene.subject, outcome.before)
    time.sleep(max(0.0, outcome.over_at + QUIET_S - time.monotonic()))
    for model in asked.only:
        outcome.tolls[model] = toll([call for call in calls if call.model == model], outcome.at)
        before = _rate(load.calls, model, outcome.at - asked.seconds, outcome.at)
        outcome.rates[model] = before, _rate(load.calls, model, outcome.over_at, outcome.over_at + QUIET_S)
    outcome.complaints += _judge(fault, outcome, calls, came_back, load.alive())
    restarted = scene.subject.starts > starts
    outcome.complaints += _judge_operator(fault, restarted, [text for _, text in scene.subject.said[heard:]])


def _rate(calls: Sequence[Call], model: str, begin: float, end: float) -> float:
    """Returns how many calls of a model were answered rightly in a second of a span of time."""
    answered = sum(call.ok and call.model == model and begin <= call.ended < end for call in list(calls))
    return round(answered / (end - begin), 2)


def _wait_settled(load: Load, models: Sequence[str], since: float) -> bool:
    deadline = time.monotonic() + RECOVERY_LIMIT_S
    while time.monotonic() < deadline:
        if settled(list(load.calls), models, since, QUIET_S, time.monotonic()):
            return True
        time.sleep(POLL_S)
    return False


def _after(subject: Subject, before: Holdings) -> Holdings:
    """Measures until what was left open has been given back, for as long as that may take."""
    deadline = time.monotonic() + RELEASE_S
    while True:
        now = subject.holdings()
        if not _leaks(before, now) or time.monotonic() > deadline:
            return now
        time.sleep(1.0)


def _leaks(before: Holdings, after: Holdings) -> list[str]:
    found = []
    if after.processes != before.processes:
        found.append(f"{after.processes} processes instead of {before.processes}")
    if after.regions > before.regions:
        found.append(f"{after.regions} shared-memory regions instead of {before.regions}")
    if after.files > before.files + SPARE_FILES:
        found.append(f"{after.files} open files instead of {before.files}")
    if after.threads > before.threads + SPARE_THREADS:
        found.append(f"{after.threads} threads instead of {before.threads}")
    if after.memory_mib > before.memory_mib + SPARE_MIB:
        found.append(f"{after.memory_mib:.0f} MiB instead of {before.memory_mib:.0f}")
    return found + _slots_held(before, after)


def _slots_held(before: Holdings, after: Holdings) -> list[str]:
    # Callers are steady, so their slots must be the same in number; replies come and go.
    name, spare = "callers", 2
    if after.in_use[name] > before.in_use[name] + spare:
        return [f"{after.in_use[name]:.0f} {name}' slots in use instead of {before.in_use[name]:.0f}"]
    return []


def _slots_left(subject: Subject) -> list[str]:
    """Waits until the stopped clients' slots are free; returns those that are not."""
    deadline = time.monotonic() + RELEASE_S
    while any(in_use := subject.holdings().in_use.values()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return [f"{count:.0f} slots in use without clients" for count in in_use if count]


def _judge_operator(fault: Fault, restarted: bool, said: Sequence[str]) -> list[str]:
    """Judges what `serve` did and told: a fault must be noticed, and what is none must not be taken for one."""
    found = []
    if restarted != fault.restarts:
        found.append("the server did not start again" if fault.restarts else "the server was started again")
    alarms = [text for text in said if re.search(ALARM, text)]
    if fault.says and not any(re.search(fault.says, text) for text in said):
        found.append(f"serve did not say {fault.says!r} but {alarms}")
    if not fault.says and alarms:
        found.append(f"serve saw what was not there: {alarms}")
    return found


def _judge(fault: Fault, outcome: Outcome, calls: Sequence[Call], came_back: bool, clients_live: bool) -> list[str]:
    found = []
    for model, cost in outcome.tolls.items():
        if cost.hung:
            found.append(f"{cost.hung} calls of {model} hung")
        if cost.wrong:
            found.append(f"{cost.wrong} answers of {model} were wrong")
    if not came_back:
        away = [model for model, cost in outcome.tolls.items() if not cost.came_back]
        found.append(f"{', '.join(away) or 'a model'} did not come back within {RECOVERY_LIMIT_S:.0f} s")
    for model, group in fault.spares:
        hurt = [call for call in calls if call.model == model and group in ("*", call.client) and not call.ok]
        if hurt:
            found.append(f"{len(hurt)} calls of {model} failed that it should have spared: {hurt[0].detail[:120]}")
    if not clients_live:
        found.append("a client process died")
    assert outcome.before is not None and outcome.after is not None
    return found + (_leaks(outcome.before, outcome.after) if came_back else [])
