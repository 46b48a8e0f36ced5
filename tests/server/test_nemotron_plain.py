"""A plain `tritonserver --model-repository`, as in a container: no model control, a profile, an engine that dies."""

import asyncio
import shutil

import psutil
import pytest
import tritonclient.grpc.aio as triton

from llm_client import ENDLESS, MODEL, OwnServer, chat, generate, joined, until_metric, until_running
from triton_voice import ServerFault
from triton_voice.errors import TritonVoiceError
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer, launch, process
from triton_voice.server.settings import Weights

PROFILE = "laptop"
QUEUED = 16
"""`max_num_queued_reqs` of that profile."""


class PlainLaunch(launch.Launch):
    """Says nothing of model control, so that tritonserver loads all models while it starts, and none later."""

    def command(self):
        return [word for word in super().command() if not word.startswith("--model-control-mode")]


class PlainServer(TritonServer):
    """Has nothing to load itself."""

    def __enter__(self):
        self.start()
        return self


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(project_root() / "model_repository" / MODEL, repository / MODEL)
    settings = ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=(MODEL,), model_repository=repository
    )
    environment = {"NEMOTRON_PROFILE": PROFILE, "NEMOTRON_ENGINE_ARGS": '{"disable_log_stats": true}'}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launch, "Launch", PlainLaunch)
        patched.setattr(process, "ENDPOINT_TIMEOUT_S", 240.0)  # Triton answers only when the models are loaded
        with PlainServer(settings, Weights(llm=str(tiny.llm)), environment) as running:
            yield OwnServer(running)


@pytest.fixture
async def client(server):
    async with triton.InferenceServerClient(server.grpc) as client:
        yield client


async def test_a_profile_serves_another_checkpoint(server, client):
    """The profile's engine arguments and parsers, the weights of NEMOTRON_MODEL."""
    assert await client.is_model_ready(MODEL)
    chunks = await chat(client, temperature=0, max_tokens=12, chat_template_kwargs={"enable_thinking": True})
    assert joined(chunks, "reasoning_content") + joined(chunks) != ""
    many = [asyncio.create_task(chat(client, max_tokens=400, ignore_eos=True)) for _ in range(QUEUED + 4)]
    ended = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(error, TritonVoiceError) and "busy" in str(error) for error in ended) > 0
    assert sum(isinstance(answer, list) for answer in ended) >= QUEUED


async def test_steps_are_counted_though_statistics_are_off(server, client):
    """`serve` tells by them a model that hangs from one that is busy."""
    before = server.metric("triton_voice_llm_steps_total")
    await chat(client, max_tokens=20, ignore_eos=True)
    await until_metric(server, "triton_voice_llm_steps_total", lambda value: value >= before + 20)
    assert server.metric("vllm:generation_tokens_total") == 0


async def test_when_the_engine_dies_everyone_is_told_and_nobody_hangs(server, client):
    """The last test of this server. Nothing can unload the model in this mode, so each request is refused instead."""
    hurt = [asyncio.create_task(chat(client, ignore_eos=True, max_tokens=8000)) for _ in range(2)]
    hurt += [asyncio.create_task(generate(client, sampling={**ENDLESS, "max_tokens": 8000})) for _ in range(2)]
    await until_running(server, len(hurt))
    family = psutil.Process(server.server.pid).children(recursive=True)
    (stub,) = [p for p in family if any(f"/{MODEL}/" in word for word in p.cmdline())]
    (engine,) = [p for p in stub.children() if "EngineCore" in " ".join([p.name(), *p.cmdline()])]
    engine.kill()
    for error in await asyncio.gather(*hurt, return_exceptions=True):
        assert isinstance(error, ServerFault)
        assert "the engine died" in str(error)
    await until_metric(server, "triton_voice_llm_engine_up", lambda value: value == 0)
    refused = server.metric("triton_voice_llm_requests_refused_total")
    for _ in range(3):
        with pytest.raises(TritonVoiceError, match="its engine died, and it must be loaded again"):
            await chat(client)
        with pytest.raises(TritonVoiceError, match="its engine died, and it must be loaded again"):
            await generate(client)
    await until_metric(server, "triton_voice_llm_requests_refused_total", lambda value: value == refused + 6)
    assert await client.is_server_live()
    assert server.server.wait(0) is None  # the model's process did not take the server with it
    assert "--model-control-mode=explicit; restart the server" in server.server.log_file.read_text(errors="replace")
    await asyncio.to_thread(server.server.stop)
    # One whose parent ended before it waits for init to take note of it.
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
