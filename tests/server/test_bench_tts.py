"""`triton-voice bench tts` and `triton-voice speak` against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from triton_voice_bench import tts
from triton_voice_bench.tts import TtsBench

COMMAND = Path(sys.executable).parent / "triton-voice"
TEXT = "please turn on the lights"


def run(*arguments, **options):
    return subprocess.run([str(COMMAND), *map(str, arguments)], capture_output=True, timeout=120, **options)


def test_every_sentence_is_accounted_for(server):
    report = tts.run(TtsBench([1, 3], sentences=2, max_seconds=0.6), server.grpc, server.metrics, "random weights")
    assert [row["streams"] for row in report.rows] == [1, 3]
    for row in report.rows:
        assert row["sentences"] == 2 * row["streams"]
        assert (row["errors"], row["error_messages"]) == (0, [])
        assert set(row["first_audio_ms"]) == set(row["chunk_gap_ms"]) == {"p50", "p90", "p95", "p99"}
        assert row["audio_s"] > 0.5 * row["sentences"]
        assert row["rtfx"] > 0 and row["step_ms"] > 0
        assert 1 <= row["step_streams"] <= row["streams"]


def test_the_command_prints_writes_and_draws(server, tmp_path):
    done = run(
        *("bench", "tts", "--server", server.grpc, "--metrics", server.metrics, "--label", "tiny", "--streams", "1,2"),
        *("--sentences", 1, "--max-seconds", 0.5, "--plot", tmp_path / "tts.png"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tts.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "tts.json").read_text())
    assert (written["bench"], written["weights"], len(written["rows"])) == ("tts", "tiny", 2)


def test_speak_writes_a_file_and_tells_the_words(server, tmp_path):
    file = tmp_path / "said.wav"
    done = run("speak", TEXT, "-o", file, "--server", server.grpc, "--voice", "leo", "--seed", 3, "--words")
    assert done.returncode == 0, done.stderr
    audio, rate = soundfile.read(file, dtype="int16")
    assert rate == 22050 and len(audio) > rate
    lines = [line.split() for line in done.stderr.decode().splitlines()]
    assert [line[1] for line in lines if len(line) == 2] == TEXT.split()


def test_speak_writes_the_same_raw_samples_to_stdout(server, tmp_path):
    file = tmp_path / "said.wav"
    assert run("speak", TEXT, "-o", file, "--server", server.grpc, "--seed", 3).returncode == 0
    expected, _ = soundfile.read(file, dtype="int16")
    for arguments in (("--raw",), ("-o", "-")):
        done = run("speak", "-", *arguments, "--server", server.grpc, "--seed", 3, input=TEXT.encode())
        assert done.returncode == 0, done.stderr
        assert np.abs(np.frombuffer(done.stdout, "<i2").astype(int) - expected).max() <= 2


def test_speak_says_what_is_wrong(server, tmp_path):
    done = run("speak", TEXT, "-o", tmp_path / "x.wav", "--server", server.grpc, "--voice", "nobody")
    assert done.returncode != 0 and b"voice 'nobody' is not offered" in done.stderr
    done = run("speak", TEXT, "--play", "--raw", "--server", server.grpc)
    assert done.returncode != 0 and b"--play goes without" in done.stderr
