"""Which of the SDK's exceptions a server's error becomes."""

import pytest
from tritonclient.utils import InferenceServerException

from triton_voice import (
    InvalidInput,
    ModelNotReady,
    SequenceLost,
    ServerFault,
    ServerFull,
    ServerGone,
    TritonVoice,
    UnknownModel,
    client,
)
from triton_voice.errors import from_triton


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "voice 'x' is not offered", InvalidInput),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'parrot' is not found", UnknownModel),
        ("StatusCode.UNAVAILABLE", "Request for unknown model: 'magpie' has no available versions", ModelNotReady),
        ("StatusCode.UNAVAILABLE", "all 8 voices speak and 32 requests wait; try again later", ServerFull),
        ("StatusCode.RESOURCE_EXHAUSTED", "too much", ServerFull),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", ServerGone),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", ServerGone),
        ("StatusCode.INVALID_ARGUMENT", "sequence 7 must specify the START flag on the first request", SequenceLost),
        ("StatusCode.NOT_FOUND", "sequence 7 was silent for too long", SequenceLost),
        ("StatusCode.INTERNAL", "the engine died", ServerFault),
        (None, "UNAVAILABLE: all 8 voices speak", ServerFull),
        (None, "UNAVAILABLE: the server is stopping", ServerGone),
        (None, "UNAVAILABLE: the model is being unloaded", ModelNotReady),
        (
            "StatusCode.UNAVAILABLE",
            "the model is not ready: its engine died, and it must be loaded again",
            ModelNotReady,
        ),
        # Triton's own refusals; a model that is not ours lacks an input. On a stream they have no status.
        (None, "[request id: 1] unexpected inference input 'chat_request' for model 'nemotron'", InvalidInput),
        (None, "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'nemotron'", InvalidInput),
        (None, "expected number of inputs between 1 and 4 but got 5 inputs for model 'nemotron'", InvalidInput),
    ],
)
def test_a_servers_error_becomes(status, message, kind):
    error = from_triton(InferenceServerException(message, status))
    assert type(error) is kind
    assert str(error) in message


@pytest.mark.parametrize("call", ["speak", "generate"])
async def test_an_answer_that_breaks_off_without_a_word_is_no_answer(call, monkeypatch):
    """A proxy may end a stream in order, though the server has not said that it is done."""

    async def ends_at_once(client, request, answer_timeout_s):
        return
        yield

    monkeypatch.setattr(client, "stream_infer", ends_at_once)
    async with TritonVoice("127.0.0.1:9") as voice:
        with pytest.raises(ServerGone, match="before the last"):
            [piece async for piece in getattr(voice, call)("Hello.")]
