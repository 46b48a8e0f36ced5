"""Tritonservers behind HAProxy: streams stay whole, draining loses nothing, a kill only what the killed server held, no
client takes every place."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from support import pieces, speechlike
from triton_voice import ServerGone, TritonVoice
from triton_voice.server.process import free_port
from triton_voice_chaos import balancing
from triton_voice_chaos.haproxy import UP_TIMEOUT_S, Haproxy, find_haproxy, users_configuration
from triton_voice_chaos.proxy import CuttingProxy

pytestmark = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")


def test_streams_stay_with_their_server_and_only_a_killed_servers_streams_are_lost(tiny):
    options = ("--device", "cpu", "--parakeet", str(tiny.parakeet))
    proof = balancing.prove(("parakeet",), seconds=3.0, conversations=4, options=options)
    assert not proof.complaints
    tcp, spread, hashed = proof.pinning
    assert tcp.lost == 0
    assert spread.lost > 0  # else this test would not tell the ways apart
    assert hashed.lost == 0
    tolls = {phase.name: phase.tolls["parakeet"] for phase in proof.phases}
    assert tolls["server a drained and stopped"].untouched
    # Who reaches the restarted server before the balancer has noticed, is told that the models are not there.
    assert tolls["server b killed"].errors.keys() <= {"ServerGone", "SequenceLost", "UnknownModel", "ModelNotReady"}
    assert tolls["server b killed"].came_back


async def heard(voice: TritonVoice) -> bool:
    return [t.is_final async for t in voice.transcribe(pieces(speechlike(0.4), 2560))][-1]


async def test_a_client_with_too_many_connections_is_refused_while_another_is_served(server, tmp_path):
    limit = 2
    bind = f"127.0.0.1:{free_port()}"
    environment = {
        "VOICE_BIND": bind,
        "VOICE_METRICS_BIND": f"127.0.0.1:{free_port()}",
        "VOICE_ADMIN_SOCKET": str(tmp_path / "admin.sock"),
        "VOICE_CONNECTIONS_PER_CLIENT": str(limit),
        **dict.fromkeys(("TRITON_A", "TRITON_B"), server.grpc),
        **dict.fromkeys(("TRITON_A_HTTP", "TRITON_B_HTTP"), str(server.server.http_port)),
    }
    configuration = users_configuration(("parakeet",))
    with Haproxy(configuration, bind, tmp_path / "admin.sock", environment) as haproxy:
        assert haproxy.wait_for("a", lambda row: row["status"].startswith("UP"), UP_TIMEOUT_S)
        async with contextlib.AsyncExitStack() as greedy:
            for _ in range(limit):
                assert await heard(await greedy.enter_async_context(TritonVoice(bind)))
            with pytest.raises(ServerGone):
                await heard(await greedy.enter_async_context(TritonVoice(bind)))
            with CuttingProxy(bind, source="127.0.0.2") as elsewhere:
                async with TritonVoice(elsewhere.url) as other:
                    assert await heard(other)
        async with asyncio.timeout(10):  # closed connections no longer count
            while re.search(r"conn_cur=[1-9]", haproxy.tell("show table grpc")):
                await asyncio.sleep(0.1)
        async with TritonVoice(bind) as again:
            assert await heard(again)
