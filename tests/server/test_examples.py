"""The examples of the documentation, run as they stand: no package of this project in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from support_docs import ROOT, fenced

NODE = ROOT / "examples/node"
QUESTION = ROOT / "client/triton_voice/data/question.wav"
DEADLINE_S = 300
LEAVES_EARLY = """
import { connect, inferStream, request, textTensor } from "./triton.js";
const client = connect();
for await (const _ of inferStream(client, request("magpie", [textTensor("TEXT", process.argv[1])]))) break;
await new Promise((resolve) => setTimeout(resolve, 10_000));  // the connection stays open: it is not what cancels
client.close();
"""


def run(command: list[str], cwd: Path, server: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "TRITON_VOICE_URL": server},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def speech(file: Path) -> np.ndarray:
    with wave.open(str(file)) as opened:
        assert (opened.getnchannels(), opened.getsampwidth(), opened.getframerate()) == (1, 2, 22050)
        return np.frombuffer(opened.readframes(opened.getnframes()), np.int16)


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None or not (NODE / "node_modules/@connectrpc/connect-node").is_dir():
        pytest.skip("needs Node.js and `npm ci` in examples/node")
    return found


def test_the_contracts_python_examples_run_as_they_stand(server, tmp_path):
    shutil.copy(QUESTION, tmp_path)
    blocks = fenced((ROOT / "docs/wire.md").read_text(), "python")
    assert len(blocks) == 3
    hear, speak, chat = (
        run([sys.executable, "-c", block.replace("127.0.0.1:8001", server.grpc)], tmp_path, server.grpc)
        for block in blocks
    )
    flags = [line.split(" ")[0] for line in hear.stdout.splitlines()]
    assert flags[-1] == "True" and set(flags[:-1]) == {"False"}
    assert not speak.stderr and len(speech(tmp_path / "speech.wav")) > 1024
    assert chat.stdout.strip()


def test_node_hears_speaks_and_chats(server, node, tmp_path):
    heard = run([node, "transcribe.js", str(QUESTION)], NODE, server.grpc).stdout.splitlines()
    final = next(line for line in heard if line.startswith("final"))
    words = json.loads(heard[-1].removeprefix("words"))
    assert "".join(final.split()[1:]) == "".join("".join(word["word"].split()) for word in words)
    assert any(line.startswith("partial") for line in heard)

    spoken = run([node, "speak.js", "It is sunny in Paris.", str(tmp_path / "a.wav"), "leo"], NODE, server.grpc)
    assert spoken.stdout.count(" ms: ") > 1  # in several chunks
    again = run([node, "speak.js", "It is sunny in Paris.", str(tmp_path / "b.wav"), "leo"], NODE, server.grpc)
    assert again.stdout
    one, two = (speech(tmp_path / name).astype(int) for name in ("a.wav", "b.wav"))
    # The same seed: the same speech. Chunks are cut by the clock, and a cut may round a sample the other way.
    assert len(one) == len(two) and np.abs(one - two).max() <= 2

    assert "tokens in" in run([node, "chat.js", "How much is twelve plus seven?"], NODE, server.grpc).stdout


def test_node_says_what_was_refused(server, node, tmp_path):
    refused = run([node, "speak.js", "Hello.", str(tmp_path / "x.wav"), "klingon"], NODE, server.grpc, code=1)
    assert "INVALID_ARGUMENT" in refused.stderr and "aria" in refused.stderr
    assert not (tmp_path / "x.wav").exists()
    wrong = run([node, "transcribe.js", str(NODE / "package.json")], NODE, server.grpc, code=1)
    assert "no WAV file" in wrong.stderr


def test_node_that_leaves_a_stream_early_cancels_it_on_the_server(server, node):
    before = server.metric("magpie_cancelled_total")
    words = [node, "--input-type=module", "--eval", LEAVES_EARLY, "It is sunny in Paris. " * 20]
    with subprocess.Popen(words, cwd=NODE, env={**os.environ, "TRITON_VOICE_URL": server.grpc}) as leaving:
        while server.metric("magpie_cancelled_total") == before and leaving.poll() is None:
            time.sleep(0.1)
        assert leaving.poll() is None
        leaving.kill()
