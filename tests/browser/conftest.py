"""What the browser's tests need: tritonserver with tiny checkpoints, `triton-voice bot`, the system's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from browser_stage import INSECURE_HOST, MICROPHONE_HZ, Bot, Visitor, microphone_audio

from triton_voice import checkpoints
from triton_voice.paths import project_root
from triton_voice.server import ServerSettings, TritonServer

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = f"no Chromium: install the system's package (apt-get install chromium); looked for {', '.join(CHROMIUMS)}"
ARTEFACTS_VARIABLE = "TRITON_VOICE_ARTEFACTS"
"""Folder for the screenshots; `.ci/artefacts` in the checkout by default."""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1",
)


@pytest.fixture(scope="module")
def chromium() -> str:
    """The system's browser; without one the tests are skipped."""
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")
    executable = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    return executable or pytest.skip(NO_CHROMIUM)


@pytest.fixture(scope="module")
def server(chromium: str, tiny: checkpoints.Checkpoints) -> Iterator[TritonServer]:
    """A tritonserver with the three models."""
    settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device="cpu")
    with TritonServer(settings, tiny.weights()) as running:
        yield running


@pytest.fixture(scope="module")
def own_bot(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bot]:
    """The bot for all tests. One person at a time, and a greeting long enough to be interrupted."""
    options = {
        "--server": server.grpc_url,
        "--max-conversations": "1",
        "--reply-tokens": "12",
        "--greeting": "Hello. I am the voice of this machine. I like to talk for a while, and I like long greetings.",
        "--notice": "These weights are random.",
    }
    bot = Bot(tmp_path_factory.mktemp("bot"), *(word for option in options.items() for word in option))
    bot.start()
    yield bot
    bot.stop()


@pytest.fixture
def bot(own_bot: Bot) -> Iterator[Bot]:
    """The bot; after each test it must have let everybody go."""
    yield own_bot
    own_bot.wait_until_free()


@pytest.fixture(scope="module")
def playwright(chromium: str) -> Iterator[Any]:
    """Playwright, running. Its loop ends with the file, so that other tests can have theirs."""
    from playwright import sync_api

    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def launch(chromium: str, playwright: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Starts Chromium with a microphone into which is spoken, or not: "question" or "silence"."""
    folder = tmp_path_factory.mktemp("microphone")
    browsers: dict[str, Any] = {}

    def launch(hears: str) -> Any:
        if hears not in browsers:
            heard = folder / f"{hears}.wav"
            soundfile.write(heard, microphone_audio(hears == "question"), MICROPHONE_HZ, subtype="PCM_16")
            arguments = [*FLAGS, f"--use-file-for-fake-audio-capture={heard}"]
            browsers[hears] = playwright.chromium.launch(executable_path=chromium, args=arguments)
        return browsers[hears]

    yield launch
    for browser in browsers.values():
        browser.close()


@pytest.fixture
def visit(launch: Callable[[str], Any], bot: Bot) -> Iterator[Callable[..., Visitor]]:
    """Opens the bot's page in a fresh profile. Afterwards: no request went anywhere else, and nothing was thrown."""
    contexts, visitors = [], []

    def visit(hears: str = "silence", url: str = bot.url, microphone: bool = True, **options: Any) -> Visitor:
        context = launch(hears).new_context(
            viewport={"width": 1280, "height": 800}, permissions=["microphone"] if microphone else [], **options
        )
        contexts.append(context)
        visitors.append(Visitor(context, url))
        return visitors[-1]

    yield visit
    for context in contexts:
        context.close()
    for visitor in visitors:
        own = visitor.requests[0]
        assert [request for request in visitor.requests if not request.startswith(own)] == []


@pytest.fixture
def shoot() -> Callable[[Visitor, str], None]:
    """Keeps a screenshot under a name, for people to look at."""
    folder = Path(os.environ.get(ARTEFACTS_VARIABLE) or project_root() / ".ci/artefacts")
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(visitor: Visitor, name: str) -> None:
        visitor.page.screenshot(path=folder / f"page-{name}.png")

    return shoot
