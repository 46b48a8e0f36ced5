"""A language model behind another backend than ours, e.g. Triton's stock one: it knows no chat, and is alive."""

from __future__ import annotations

import time

import pytest

from triton_voice import InvalidInput, TritonVoice
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.pulse import Pulses, ask

HANG_TIMEOUT_S = 2.0
CONFIG = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
MODEL = """
class TritonPythonModel:
    def execute(self, requests):
        raise AssertionError("Triton refuses what has no text_input")
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    (repository / "nemotron" / "1").mkdir(parents=True)
    (repository / "nemotron" / "config.pbtxt").write_text(CONFIG)
    (repository / "nemotron" / "1" / "model.py").write_text(MODEL)
    settings = ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=("nemotron",), model_repository=repository
    )
    with TritonServer(settings) as server:
        yield server


async def test_it_refuses_a_chat_as_a_wrong_request(stock):
    async with TritonVoice(stock.grpc_url) as voice:
        with pytest.raises(InvalidInput, match="input"):
            await ask(voice, "nemotron")


def test_it_is_not_taken_for_hung(stock):
    pulses = Pulses(TritonVoice(stock.grpc_url), stock.metrics_url, HANG_TIMEOUT_S)
    try:
        pulses.follow("nemotron")
        deadline = time.monotonic() + 3 * HANG_TIMEOUT_S
        while time.monotonic() < deadline:
            assert not pulses.hung()
            time.sleep(0.1)
    finally:
        pulses.close()
