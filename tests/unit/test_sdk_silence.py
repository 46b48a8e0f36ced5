"""A server that takes the connection and never answers: every call of the SDK ends, and says who was silent."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from triton_voice import ServerSilent, TritonVoice, client

LIMIT_S = 0.2
PATIENCE_S = 60


async def whole(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def heard(voice: TritonVoice) -> Any:
    stream = voice.open_stream(start_timeout_s=0.1, answer_timeout_s=LIMIT_S)
    return await stream.send(np.zeros(160, np.int16))


@pytest.mark.parametrize(
    ("call", "model"),
    [
        (lambda voice: whole(voice.chat("Hi")), "nemotron"),
        (lambda voice: whole(voice.chat_chunks({"messages": []})), "nemotron"),
        (lambda voice: whole(voice.generate("Hi")), "nemotron"),
        (lambda voice: whole(voice.speak("Hi.")), "magpie"),
        (heard, "parakeet"),
    ],
)
async def test_no_call_waits_for_ever(call, model, monkeypatch):
    monkeypatch.setattr(client, "READY_TIMEOUT_S", LIMIT_S)

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    url = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent, TritonVoice(url, answer_timeout_s=LIMIT_S) as voice:
        with pytest.raises(ServerSilent, match=rf"the model {model} has sent nothing for [0-9.]+ s"):
            await asyncio.wait_for(call(voice), PATIENCE_S)
        assert not (await asyncio.wait_for(voice.ready(), PATIENCE_S)).live
