"""One real tritonserver for the bot's tests, whose language model can be told what to say."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import llm_forcing
from llm_client import MODEL, OwnServer
from triton_voice import TritonVoice, checkpoints
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer
from voice_bot.spans import SpanReceiver

HERE = Path(__file__).parent
_running = contextlib.ExitStack()
Says = Callable[..., dict[str, Any]]


def forcing_repository(folder: Path) -> tuple[Path, dict[str, str]]:
    """The project's model repository with a language model that takes `forced` replies.

    Returns:
        The repository, and the environment that the server needs with it.
    """
    repository = folder / "repository"
    shutil.copytree(project_root() / "model_repository", repository, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(llm_forcing.__file__, repository / MODEL / "1")  # the version folder is importable in the engine
    arguments = {"logits_processors": [llm_forcing.ENGINE_ARGUMENT], "kv_cache_memory_bytes": 128 << 20}
    return repository, {"NEMOTRON_ENGINE_ARGS": json.dumps(arguments)}


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stops the server behind the last test of this folder: the machine has no room for that of the next folder too."""
    if nextitem is None or HERE not in nextitem.path.parents:
        _running.close()


@pytest.fixture(scope="session")
def collector() -> Iterator[SpanReceiver]:
    """Takes the server's spans; Triton makes some only of calls whose caller traces them."""
    receiver = SpanReceiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def server(
    tiny: checkpoints.Checkpoints, collector: SpanReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnServer]:
    """The server, started on first use and stopped behind the last test of this folder."""
    repository, environment = forcing_repository(tmp_path_factory.mktemp("bot"))
    settings = ServerSettings(
        grpc_port=0, http_port=0, metrics_port=0, device="cpu", model_repository=repository, trace=collector.url
    )
    with _running:
        yield OwnServer(_running.enter_context(TritonServer(settings, tiny.weights(), environment)))


@pytest_asyncio.fixture
async def voice(server: OwnServer) -> AsyncIterator[TritonVoice]:
    """An SDK client of the server."""
    async with TritonVoice(server.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def says(tiny: checkpoints.Checkpoints) -> Says:
    """Makes the fields of a chat request (a service's `extra`) that force a reply, one token each `step_ms`."""
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(tiny.llm))

    def says(text: str, step_ms: int = 0) -> dict[str, Any]:
        return {"vllm_xargs": {"forced": tokenizer(text).input_ids, "step_ms": step_ms}, "max_tokens": 400}

    return says
