"""What the tests of the language model's server share: requests in tritonclient's own words, and its answers."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from dataclasses import dataclass

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from triton_voice.errors import from_triton
from triton_voice.server import TritonServer

MODEL = "nemotron"
PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
#: Long enough that it is certainly running when it is cancelled: many seconds of tokens on any machine.
ENDLESS = {**GREEDY, "max_tokens": 30000}
HI = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class OwnServer:
    """A server that one module of tests has for itself; the same to look at as the session's."""

    server: TritonServer

    @property
    def grpc(self):
        return self.server.grpc_url

    def metric(self, name, **labels):
        """Sum of a metric's samples that carry the labels; 0 if there are none."""
        text = urllib.request.urlopen(self.server.metrics_url, timeout=10).read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for given, value in found if all(label in given for label in wanted))


def tensor(name, value):
    """One input: a flag, a string, or several strings."""
    if isinstance(value, bool):
        it = triton.InferInput(name, [1], "BOOL")
        it.set_data_from_numpy(np.array([value]))
        return it
    values = [value] if isinstance(value, str) else value
    it = triton.InferInput(name, [len(values)], "BYTES")
    it.set_data_from_numpy(np.array([v.encode() for v in values], dtype=np.object_))
    return it


def tensors(**inputs):
    return [tensor(name, value) for name, value in inputs.items()]


def decoded(result):
    """A response's outputs by name: lists of strings or numbers."""
    names = [output.name for output in result.get_response().outputs]
    outputs = {}
    for name in names:
        values = result.as_numpy(name).reshape(-1).tolist()
        outputs[name] = [v.decode() if isinstance(v, bytes) else v for v in values]
    return outputs


async def responses(client, parameters=None, **inputs):
    """All responses of one request as dictionaries; checks that the last carries the final flag.

    Raises the SDK's error for the server's.
    """

    async def requests():
        yield {"model_name": MODEL, "inputs": tensors(**inputs), "parameters": parameters}

    got, finals, failure = [], [], None
    # Read to the end of the stream, not only to the last response: a client that closes its channel in between makes
    # Triton 2.51 hold on to the model, and a later shutdown waits for its whole exit timeout.
    try:
        async for result, error in client.stream_infer(requests(), headers={"triton_grpc_error": "true"}):
            failure = failure or error
            if result is not None:
                got.append(decoded(result))
                finals.append(result.get_response().parameters["triton_final_response"].bool_param)
    except (grpc.RpcError, InferenceServerException) as error:
        raise from_triton(error) from None
    if failure:
        raise from_triton(failure)
    assert finals == [False] * (len(got) - 1) + [True]
    return got


async def generate(client, prompt=PROMPT, sampling=GREEDY, **inputs):
    return await responses(client, text_input=prompt, sampling_parameters=json.dumps(sampling), **inputs)


async def reply(client, prompt=PROMPT, sampling=GREEDY):
    (only,) = await generate(client, prompt, sampling, exclude_input_in_output=True)
    return only["text_output"][0]


async def chat(client, **body):
    got = await responses(client, chat_request=json.dumps({"messages": HI, **body}))
    return [json.loads(response["chat_chunk"][0]) for response in got]


def joined(chunks, field="content"):
    """The text of a reply, or its thoughts."""
    return "".join(choice["delta"].get(field) or "" for chunk in chunks for choice in chunk["choices"])


def calls(chunks):
    """The tool calls of a reply as (name, arguments) pairs, put together from their pieces."""
    found = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls") or ():
                name, arguments = found.get(piece["index"], ("", ""))
                function = piece["function"]
                found[piece["index"]] = (
                    name + (function.get("name") or ""),
                    arguments + (function.get("arguments") or ""),
                )
    return [(name, json.loads(arguments)) for _, (name, arguments) in sorted(found.items())]


def finish(chunks):
    (reason,) = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    return reason


def running(server):
    """How many requests are not answered yet, from the server's metrics."""
    return server.metric("triton_voice_llm_requests_running")


async def until_metric(server, name, wanted):
    """Wait until a metric is as wanted; the test's own timeout is the limit."""
    while not wanted(await asyncio.to_thread(server.metric, name)):
        await asyncio.sleep(0.02)


async def until_running(server, count):
    await until_metric(server, "triton_voice_llm_requests_running", lambda value: value == count)


async def until_engine_runs(server, count):
    """Wait until vLLM's own batch holds so many requests: the engine may still run what the backend has let go of."""
    await until_metric(server, "vllm:num_requests_running", lambda value: value == count)
