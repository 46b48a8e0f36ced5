"""The container's probes against a real server: who is healthy, and when a replica may go."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import numpy as np

from triton_voice import TritonVoice

DOCKER = Path(__file__).resolve().parents[2] / "docker"
CHUNK = np.zeros(2560, np.int16)
"""160 ms of silence."""


async def run(script: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Runs one of docker's scripts; returns its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(DOCKER / script),
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().strip()


def where(server, tmp_path: Path) -> dict[str, str]:
    """The environment of a container with this server."""
    running = server.server
    return {
        "TRITON_VOICE_GRPC_PORT": str(running.grpc_port),
        "TRITON_VOICE_HTTP_PORT": str(running.http_port),
        "TRITON_VOICE_METRICS_PORT": str(running.metrics_port),
        "TRITON_VOICE_ONLY": ",".join(running.settings.only),
        "TMPDIR": str(tmp_path),
    }


async def test_healthcheck_asks_every_model(server, tmp_path: Path) -> None:
    here = where(server, tmp_path)
    models = ", ".join(server.server.settings.only)
    assert await run("healthcheck.py", **here) == (0, f"{models}: ready")
    assert await run("healthcheck.py", "--answer", **here) == (0, f"{models}: answer")
    code, said = await run("healthcheck.py", **{**here, "TRITON_VOICE_ONLY": "parakeet,nonesuch"})
    assert (code, said) == (1, "nonesuch is not ready (HTTP 400)")
    code, said = await run("healthcheck.py", "--answer", **{**here, "TRITON_VOICE_HTTP_PORT": "9"})
    assert code == 1 and said.startswith("no answer from the server")


async def test_drain_waits_for_open_streams_and_calls_the_replica_unready(
    server, voice: TritonVoice, tmp_path: Path
) -> None:
    here = where(server, tmp_path)
    async with voice.open_stream() as stream:
        await stream.send(CHUNK)
        code, said = await run("drain.py", "--timeout", "2", "--settle", "0", **here)
        assert (code, said) == (1, "still at work: parakeet_active_streams 1")
        assert await run("healthcheck.py", **here) == (1, "draining: no further streams, please")
        await stream.end()
    assert await run("drain.py", "--timeout", "30", "--settle", "0", **here) == (0, "drained")
    # The marker of an earlier container does not count.
    (tmp_path / "triton-voice-draining").write_text("1")
    code, _ = await run("healthcheck.py", **here)
    assert code == 0


async def test_drain_ends_at_once_when_there_is_no_server(tmp_path: Path) -> None:
    assert await run("drain.py", TRITON_VOICE_METRICS_PORT="9", TMPDIR=str(tmp_path)) == (0, "drained")
