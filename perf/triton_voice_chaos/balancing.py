"""Two tritonservers behind HAProxy: what pins a stream to its server, and what a drained and a killed server cost.

HAProxy is Debian's package; its configuration is the one that docker/balancing/ offers to users.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from triton_voice.audio import read_audio
from triton_voice.errors import SequenceLost, from_triton
from triton_voice.server.process import free_port
from triton_voice_chaos.haproxy import SERVERS, UP_TIMEOUT_S, Haproxy, HaproxyMissing, balanced, find_haproxy
from triton_voice_chaos.load import Group, Load, question
from triton_voice_chaos.record import Call, Toll, settled, toll
from triton_voice_chaos.subject import SERVER, Subject

QUESTION = "data/question.wav"
CONVERSATION_S = 2.5
"""Audio of one conversation: short, so that many begin and end while something happens."""
SEQUENCES, PIECES = 24, 6
SEQUENCE_HEADER = "triton-voice-sequence"
DRAIN_TIMEOUT_S = 60.0
QUIET_S = 3.0
BACK_TIMEOUT_S = 60.0
POLL_S = 0.1
HTTP_MODE = """
global
    stats socket {admin} mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 1m
    timeout server 1m
frontend grpc
    bind {bind} proto h2
    default_backend triton
backend triton
    {balance}
    server a {a} proto h2
    server b {b} proto h2
"""


@dataclass
class Pinning:
    """One way to balance, and what became of streams sent over one connection as unary calls.

    Attributes:
        way: Which one.
        whole: Streams that were recognised to their end.
        lost: Streams that a server did not know.
        servers: Requests or connections that each server got.
    """

    way: str
    whole: int = 0
    lost: int = 0
    servers: dict[str, int] = field(default_factory=dict)


async def _sequences(url: str) -> Counter[str]:
    """Sends some sequences side by side over one connection, piece after piece, each with its id as a header too."""
    audio = np.zeros((1, 1600), np.int16)

    async def one(client: grpc_aio.InferenceServerClient) -> str:
        sequence = uuid.uuid4().hex
        for piece in range(PIECES):
            tensor = triton_grpc.InferInput("AUDIO", list(audio.shape), "INT16")
            tensor.set_data_from_numpy(audio)
            try:
                await client.infer(
                    "parakeet",
                    [tensor],
                    sequence_id=sequence,
                    sequence_start=piece == 0,
                    sequence_end=piece == PIECES - 1,
                    headers={SEQUENCE_HEADER: sequence},
                    client_timeout=30.0,
                )
            except InferenceServerException as error:
                return "lost" if isinstance(from_triton(error), SequenceLost) else f"failed: {error}"
        return "whole"

    async with grpc_aio.InferenceServerClient(url) as client:
        return Counter(await asyncio.gather(*(one(client) for _ in range(SEQUENCES))))


def compare_pinning(subjects: Mapping[str, Subject], models: tuple[str, ...]) -> list[Pinning]:
    """Sends the same streams through HAProxy in TCP mode and in two HTTP modes."""
    results = []
    with balanced(subjects, models) as haproxy:
        results.append(_pinned("TCP: a connection belongs to a server", haproxy))
    by_header = f"balance hdr({SEQUENCE_HEADER})\n    hash-type consistent"
    ways = {
        "HTTP/2: each request to the next server": "balance roundrobin",
        "HTTP/2: by a hash of a header with the stream's id": by_header,
    }
    for way, balance in ways.items():
        with tempfile.TemporaryDirectory(prefix="triton-voice-haproxy-") as folder:
            bind, admin = f"127.0.0.1:{free_port()}", Path(folder) / "admin.sock"
            addresses = {name: subject.url for name, subject in subjects.items()}
            text = HTTP_MODE.format(admin=admin, bind=bind, balance=balance, **addresses)
            with Haproxy(text, bind, admin, {}) as haproxy:
                results.append(_pinned(way, haproxy))
    return results


def _pinned(way: str, haproxy: Haproxy) -> Pinning:
    before = {name: int(row["stot"]) for name, row in haproxy.servers().items()}
    seen = asyncio.run(_sequences(haproxy.url))
    after = {name: int(row["stot"]) for name, row in haproxy.servers().items()}
    return Pinning(way, seen["whole"], seen["lost"], {name: after[name] - before[name] for name in after})


@dataclass
class Phase:
    """Something that was done to the servers under load, and what it cost.

    Attributes:
        name: What was done.
        at: When, on the clock of the calls.
        over_at: When everybody was answered again.
        tolls: By model.
        connections: New connections that each server got meanwhile.
        notes: What else was seen.
        complaints: What may not be.
    """

    name: str
    at: float
    over_at: float = 0.0
    tolls: dict[str, Toll] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Proof:
    """Everything that was found."""

    models: tuple[str, ...]
    started: float
    pinning: list[Pinning] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        """What may not be; empty means proven."""
        found = [f"{phase.name}: {complaint}" for phase in self.phases for complaint in phase.complaints]
        by_way = {result.way[:3]: result for result in self.pinning}
        if by_way["TCP"].whole != SEQUENCES:
            found.append(f"TCP mode lost {SEQUENCES - by_way['TCP'].whole} streams")
        return found

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain objects, times in seconds since the beginning."""
        phases = []
        for phase in self.phases:
            times = {"at": round(phase.at - self.started, 2), "over_at": round(phase.over_at - self.started, 2)}
            phases.append({**vars(phase), **times, "tolls": {m: t.as_json() for m, t in phase.tolls.items()}})
        pinning = [asdict(result) for result in self.pinning]
        return {"models": self.models, "pinning": pinning, "phases": phases, "complaints": self.complaints}


def prove(
    models: tuple[str, ...],
    seconds: float,
    conversations: int,
    options: tuple[str, ...] = (),
    on_step: Callable[[str], None] = lambda words: None,
) -> Proof:
    """Runs the whole proof.

    Args:
        models: What both servers load; the recogniser must be among them.
        seconds: Steady load before each phase.
        conversations: How many talk at once, in two client processes.
        options: Further options of `serve`.
        on_step: Hears what is being done.

    Raises:
        HaproxyMissing: There is no haproxy.
        ServerError: A server did not come up.
    """
    if find_haproxy() is None:
        raise HaproxyMissing("haproxy is not installed (Debian: apt-get install haproxy)")
    proof = Proof(models, time.monotonic())
    with contextlib.ExitStack() as stack:
        on_step("two servers start")
        subjects = {name: Subject(models, options) for name in SERVERS}
        for subject in subjects.values():
            stack.callback(subject.stop)
            subject.begin()
        for subject in subjects.values():
            subject.wait_ready(1)
        on_step("streams over one connection, balanced in three ways")
        proof.pinning = compare_pinning(subjects, models)
        haproxy = stack.enter_context(balanced(subjects, models))
        speakers = 1 if "magpie" in models else 0
        halves = (conversations - conversations // 2, conversations // 2)
        groups = [Group("conversations", haproxy.url, n, 0, speakers, reconnect=True) for n in halves if n]
        audio = question(read_audio(str(files("triton_voice").joinpath(QUESTION))), CONVERSATION_S)
        load = stack.enter_context(Load(groups, audio))
        stage = _Stage(proof, subjects, haproxy, load, seconds, on_step)
        stage.play()
        load.stop()
        proof.calls = load.calls
    return proof


class _Stage:
    """The phases under load."""

    def __init__(
        self,
        proof: Proof,
        subjects: Mapping[str, Subject],
        haproxy: Haproxy,
        load: Load,
        seconds: float,
        on_step: Callable[[str], None],
    ):
        self._proof, self._subjects, self._haproxy, self._load = proof, subjects, haproxy, load
        self._seconds = seconds
        self._on_step = on_step
        self._asked = tuple(model for model in proof.models if model != "nemotron")

    def play(self) -> None:
        with self._phase("steady", spare=True) as phase:
            time.sleep(self._seconds)
        if not all(phase.connections.values()):
            phase.complaints.append(f"connections were not spread: {phase.connections}")
        with self._phase("server a drained and stopped", spare=True) as phase:
            self._haproxy.tell("set server triton/a state drain")
            began = time.monotonic()
            if not self._haproxy.wait_for("a", lambda row: int(row["scur"]) == 0, DRAIN_TIMEOUT_S):
                phase.complaints.append(f"connections to a were still open after {DRAIN_TIMEOUT_S:.0f} s")
            phase.notes["a had no connection after, s"] = round(time.monotonic() - began, 1)
            self._subjects["a"].stop()
        with self._phase("server a back", spare=True) as phase:
            self._subjects["a"].start()
            self._haproxy.tell("set server triton/a state ready")
            self._wait_up("a", phase)
            time.sleep(self._seconds)
        with self._phase("server b killed", spare=False) as phase:
            phase.notes["connections to b"] = int(self._haproxy.servers()["b"]["scur"])
            starts = self._subjects["b"].starts
            self._subjects["b"].find(SERVER).kill()
        with self._phase("server b back", spare=True) as phase:
            self._subjects["b"].wait_ready(starts + 1)  # its own `serve --supervise` starts it again
            self._wait_up("b", phase)
            time.sleep(self._seconds)

    def _wait_up(self, server: str, phase: Phase) -> None:
        if not self._haproxy.wait_for(server, lambda row: row["status"].startswith("UP"), UP_TIMEOUT_S):
            phase.complaints.append(f"haproxy did not take {server} back")

    @contextlib.contextmanager
    def _phase(self, name: str, spare: bool) -> Iterator[Phase]:
        self._on_step(name)
        if not self._wait_settled(time.monotonic()):
            raise TimeoutError(f"not everybody was answered before: {name}")
        before = {server: int(row["stot"]) for server, row in self._haproxy.servers().items()}
        phase = Phase(name, time.monotonic())
        self._proof.phases.append(phase)
        yield phase
        if not self._wait_settled(phase.at):
            phase.complaints.append(f"not everybody was answered again within {BACK_TIMEOUT_S:.0f} s")
        phase.over_at = time.monotonic()
        after = {server: int(row["stot"]) for server, row in self._haproxy.servers().items()}
        phase.connections = {server: after[server] - before[server] for server in after}
        for model in self._asked:
            calls = [call for call in list(self._load.calls) if call.model == model and call.ended > phase.at]
            phase.tolls[model] = cost = toll(calls, phase.at)
            if not cost.acceptable:
                phase.complaints.append(f"{model}: {cost.hung} hung, {cost.wrong} wrong, came back: {cost.came_back}")
            if spare and not cost.untouched:
                phase.complaints.append(f"{model}: calls failed: {dict(cost.errors)} {cost.examples}")

    def _wait_settled(self, since: float) -> bool:
        deadline = time.monotonic() + BACK_TIMEOUT_S
        while time.monotonic() < deadline:
            if settled(list(self._load.calls), self._asked, since, QUIET_S, time.monotonic()):
                return True
            time.sleep(POLL_S)
        return False
