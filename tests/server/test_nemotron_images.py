"""Images, with a tiny model that sees."""

import base64
import io
import json

import pytest
import tritonclient.grpc.aio as triton
from PIL import Image

import llm_seeing
from llm_client import GREEDY, MODEL, OwnServer, responses
from triton_voice import InvalidInput
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.settings import Weights


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    checkpoint = llm_seeing.make(tmp_path_factory.mktemp("seeing") / "llm", tiny.llm)
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=(MODEL,))
    environment = {
        "NEMOTRON_ENGINE_ARGS": json.dumps({"kv_cache_memory_bytes": 64 << 20, "max_model_len": 1024}),
        "NEMOTRON_TOOL_CALL_PARSER": "none",
        "NEMOTRON_REASONING_PARSER": "none",
    }
    with TritonServer(settings, Weights(llm=str(checkpoint)), environment) as running:
        yield OwnServer(running)


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


def picture(color):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def test_a_model_that_sees_answers_by_the_image(client):
    async def seen(**inputs):
        asked = {"text_input": "What is it?", "sampling_parameters": json.dumps(GREEDY), **inputs}
        (got,) = await responses(client, exclude_input_in_output=True, **asked)
        return got["text_output"][0]

    red, blue, again = [await seen(image=picture(color)) for color in ("red", "blue", "red")]
    nothing = await seen()
    assert red == again
    assert len({red, blue, nothing}) == 3
    parts = [{"type": "text", "text": "What is it?"}]
    parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture('red')}"}})
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4}
    usage = json.loads((await responses(client, chat_request=json.dumps(body)))[-1]["chat_chunk"][0])["usage"]
    assert usage["prompt_tokens_details"]["multimodal_tokens"] == {"image": llm_seeing.IMAGE_TOKENS}
    no_image = base64.b64encode(b"nothing of the kind").decode()
    with pytest.raises(InvalidInput, match=r"image\[0\] is not an image file"):
        await seen(image=no_image)
    with pytest.raises(InvalidInput, match="image: At most 1 image"):
        await seen(image=[picture("red"), picture("blue")])
