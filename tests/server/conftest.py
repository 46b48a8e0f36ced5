"""One real tritonserver with the three models for all server tests."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from triton_voice import TritonVoice, checkpoints
from triton_voice.server import ServerSettings, TritonServer


@dataclass(frozen=True)
class RunningServer:
    """Where the server is.

    Attributes:
        grpc: `host:port` of gRPC.
        metrics: URL of the Prometheus metrics.
        server: The server.
    """

    grpc: str
    metrics: str
    server: TritonServer

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry the labels; 0 if there are none."""
        text = urllib.request.urlopen(self.metrics, timeout=10).read().decode()
        total = 0.0
        for line in text.splitlines():
            if (found := re.match(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", line)) and all(
                f'{key}="{value}"' in (found.group(1) or "") for key, value in labels.items()
            ):
                total += float(found.group(2))
        return total


@pytest.fixture(scope="session")
def server(tiny: checkpoints.Checkpoints) -> Iterator[RunningServer]:
    """The server, started on first use and stopped at the end of the session."""
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device="cpu")  # TRITON_VOICE_ONLY narrows it
    with TritonServer(settings, tiny.weights()) as running:
        yield RunningServer(running.grpc_url, running.metrics_url, running)


@pytest_asyncio.fixture
async def voice(server: RunningServer) -> AsyncIterator[TritonVoice]:
    """An SDK client of the server."""
    async with TritonVoice(server.grpc) as client:
        yield client
