"""`triton-voice bench asr` against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triton_voice import ServerGone, TritonVoiceError
from triton_voice_bench import asr
from triton_voice_bench.asr import AsrBench

STREAMS, CHUNKS = 2, 12
SECONDS = CHUNKS * 0.16
COMMAND = Path(sys.executable).parent / "triton-voice"


@pytest.mark.parametrize("paced", [True, False])
def test_every_chunk_is_accounted_for(server, paced):
    progress = []
    bench = AsrBench([STREAMS], seconds=SECONDS, paced=paced, processes=2)
    report = asr.run(bench, server.grpc, server.metrics, "random weights", lambda *now: progress.append(now))
    (row,) = report.rows
    assert row["streams"] == STREAMS
    assert row["chunks"] + row["finals"] == STREAMS * CHUNKS
    plan = bench.plan(server.grpc, np.zeros(1, np.int16), STREAMS)
    assert row["finals"] == sum(plan.closes(stream, chunk) for stream in range(STREAMS) for chunk in range(CHUNKS))
    assert (row["errors"], row["unsent"], row["error_messages"]) == (0, 0, [])
    assert set(row["chunk_ms"]) == set(row["final_ms"]) == {"p50", "p90", "p95", "p99"}
    assert row["step_ms"] > 0
    assert 1 <= row["step_streams"] <= STREAMS
    assert row["server_cpu_percent"] > 0
    assert row["client_cpu_percent"] > 0
    assert (row["kept_up"] is None, row["rtfx"] is None) == ((False, True) if paced else (True, False))
    assert progress[0] == (STREAMS, 0, STREAMS * CHUNKS)
    assert progress[-1] == (STREAMS, STREAMS * CHUNKS, STREAMS * CHUNKS)
    assert report.settings["server"].startswith("triton")


def test_a_latency_that_the_server_has_not_is_its_own_sentence(server):
    with pytest.raises(TritonVoiceError, match="240 is not offered"):
        asr.run(AsrBench([1], latency_ms=240, seconds=1.0), server.grpc, server.metrics, "")


def test_no_server_is_said_at_once():
    with pytest.raises(ServerGone, match=r"no server at 127\.0\.0\.1:9"):
        asr.run(AsrBench([1], seconds=1.0), "127.0.0.1:9", None, "")


def test_the_command_prints_writes_and_draws(server, tmp_path):
    command = [
        *(str(COMMAND), "bench", "asr", "--server", server.grpc, "--metrics", server.metrics, "--label", "tiny"),
        *("--streams", "1,2"),
        *("--seconds", "1", "--plot", str(tmp_path / "asr.png")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "asr.json").read_text())
    assert set(written) >= {"bench", "machine", "versions", "commit", "weights", "rows"}
    assert (written["bench"], written["weights"]) == ("asr", "tiny")
    assert [row["streams"] for row in written["rows"]] == [1, 2]
    assert (tmp_path / "asr.png").stat().st_size > 10_000
    assert "streams" in done.stdout
