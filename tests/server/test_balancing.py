"""Two tritonservers behind HAProxy: streams stay whole, draining loses nothing, killing only the server's own."""

from __future__ import annotations

import pytest

from triton_voice_chaos import balancing
from triton_voice_chaos.haproxy import find_haproxy

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
