"""`triton-voice bench llm` on the real server, beside the real bare engine."""

import json
import os
import subprocess
import sys

from triton_voice.paths import project_root


def test_the_server_is_measured_beside_bare_vllm(server, tiny, tmp_path):
    result = tmp_path / "llm.json"
    command = [sys.executable, "-c", "from triton_voice.cli.app import main; main()", "bench", "llm"]
    command += ["--server", server.grpc, "--checkpoint", str(tiny.llm), "--json", str(result)]
    command += ["--streams", "1,2", "--rounds", "2", "--tokens", "8", "--label", "tiny"]
    path = os.pathsep.join([str(project_root() / "perf"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert (report["bench"], report["weights"]) == ("llm", "tiny")
    for row, streams in zip(report["rows"], (1, 2), strict=True):
        assert row["streams"] == streams
        assert row["errors"] == 0
        for name in ("first_token_ms", "reference_first_token_ms", "reference_render_ms"):
            assert set(row[name]) == {"p50", "p90", "p95", "p99"}
        assert row["tokens_per_s"] > 0
        assert row["reference_tokens_per_s"] > 0
        assert set(row["cpu_us_per_token"]) == {"client", "server", "backend", "engine"}
        assert set(row["reference_cpu_us_per_token"]) == {"client", "engine"}
        assert None not in row["cpu_us_per_token"].values()  # every process was found
        assert row["goal"] in ("met", "missed", "too busy")
