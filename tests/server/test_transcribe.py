"""`triton-voice transcribe` as people run it: files of any kind, several at once, one of them broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support import SAMPLE_RATE, speechlike

CLI = str(Path(sys.executable).parent / "triton-voice")


def transcribe(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [CLI, "transcribe", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=300)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def records(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    return {Path(line["file"]).name: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return speechlike(1.5, seed=3)


def test_the_same_speech_in_any_form_has_the_same_transcript(server, audio, tmp_path):
    soundfile.write(tmp_path / "a.wav", audio, SAMPLE_RATE)
    soundfile.write(tmp_path / "b.flac", np.stack([audio, audio], axis=1), SAMPLE_RATE)
    done = transcribe(tmp_path / "a.wav", tmp_path / "b.flac", "--json", "--server", server.grpc)
    assert done.returncode == 0, done.stderr
    wav, flac = records(done)["a.wav"], records(done)["b.flac"]
    assert wav["text"] == flac["text"] != ""
    assert wav["words"] and wav["audio_s"] == 1.5 and wav["final_latency_ms"] > 0
    raw = transcribe("-", "--raw", SAMPLE_RATE, "--json", "--server", server.grpc, stdin=audio.tobytes())
    assert records(raw)["-"]["text"] == wav["text"]
    plain = transcribe(tmp_path / "a.wav", "--latency", 560, "--server", server.grpc)
    assert plain.returncode == 0 and plain.stdout.strip()


def test_a_file_that_cannot_be_read_costs_the_others_nothing(server, audio, tmp_path):
    soundfile.write(tmp_path / "good.wav", audio, SAMPLE_RATE)
    (tmp_path / "bad.wav").write_bytes(b"no audio at all")
    files = [tmp_path / "bad.wav", tmp_path / "missing.wav", tmp_path / "good.wav"]
    done = transcribe(*files, "--json", "--server", server.grpc)
    assert done.returncode == 1
    assert set(records(done)) == {"good.wav"}
    assert "bad.wav is not an audio file" in done.stderr and "there is no file" in done.stderr
    assert "2 of 3 files could not be transcribed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--jobs", 0), "--jobs"),
        (("--raw", "16000:0"), "--raw takes RATE"),
        (("--mic",), "give files or --mic"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, arguments, says):
    done = transcribe(tmp_path / "a.wav", *arguments)
    assert done.returncode != 0
    assert says in " ".join(done.stderr.split())
