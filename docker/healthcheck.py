"""Asks the models of this container whether they serve. Exit code 0: all of them do; 1: not, with a line that says why.

Without an option it asks each model's readiness over HTTP, with the standard library alone: a tenth of a second, for
probes that run every few seconds. Not `/v2/health/ready`: that is true while the models still load, because
`triton-voice serve` loads them through Triton's repository API.

With `--answer` each model also does the smallest piece of its work, over gRPC: 20 ms of silence, one token, one step of
speech. This is what notices a model that is loaded and does not work, such as one whose GPU context broke after a long
idle time. A model that says it is full does work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_voice import TritonVoice

MODELS = ("nemotron", "parakeet", "magpie")
HTTP_TIMEOUT_S = 4.0
ANSWER_TIMEOUT_S = 20.0
SILENCE_SAMPLES = 320
"""20 ms at 16 kHz."""
DRAINING = Path(tempfile.gettempdir()) / "triton-voice-draining"
"""Made by drain.py: this replica goes away and should get no further streams. It holds the container's start time,
because the file may outlive it: a container that is restarted in its pod is not draining."""


def expected_models() -> tuple[str, ...]:
    """The models that `triton-voice serve` was told to load (`TRITON_VOICE_ONLY`)."""
    only = os.environ.get("TRITON_VOICE_ONLY", "")
    return tuple(name.strip() for name in only.split(",") if name.strip()) or MODELS


def port(name: str, default: int) -> int:
    """A port that `triton-voice serve` was told by its variable."""
    return int(os.environ.get(f"TRITON_VOICE_{name}_PORT") or default)


def container_start() -> str:
    """When the container's first process started, in the kernel's clock ticks."""
    return Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]


def draining() -> bool:
    """Tells whether drain.py has run in this container."""
    try:
        return DRAINING.read_text() == container_start()
    except FileNotFoundError:
        return False


def unready(models: tuple[str, ...]) -> list[str]:
    """Asks Triton for each model's readiness; returns a sentence for each that is not ready."""
    if draining():
        return ["draining: no further streams, please"]
    problems = []
    for model in models:
        url = f"http://127.0.0.1:{port('HTTP', 8000)}/v2/models/{model}/ready"
        try:
            urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            problems.append(f"{model} is not ready (HTTP {error.code})")
        except OSError as error:
            return [f"no answer from the server: {error}"]
    return problems


async def hear(voice: TritonVoice) -> None:
    """One stream of 20 ms of silence."""

    async def silence() -> AsyncIterator[bytes]:
        yield bytes(2 * SILENCE_SAMPLES)

    async with aclosing(voice.transcribe(silence(), start_timeout_s=1.0)) as transcripts:
        async for _ in transcripts:
            pass


async def think(voice: TritonVoice) -> None:
    """One token of a reply."""
    async with aclosing(voice.chat("Hi", max_tokens=1)) as deltas:
        async for _ in deltas:
            pass


async def speak(voice: TritonVoice) -> None:
    """The first piece of a word's audio."""
    async with aclosing(voice.speak("Hi.", max_seconds=0.2)) as chunks:
        async for _ in chunks:
            break


QUESTIONS: dict[str, Callable[[TritonVoice], Awaitable[None]]] = {"parakeet": hear, "nemotron": think, "magpie": speak}


async def silent(models: tuple[str, ...], url: str) -> list[str]:
    """Has each model do a little work; returns a sentence for each that fails or does not answer in time."""
    from triton_voice import TritonVoice
    from triton_voice.errors import ServerFull, TritonVoiceError

    async def ask(model: str) -> str | None:
        try:
            await asyncio.wait_for(QUESTIONS[model](voice), ANSWER_TIMEOUT_S)
        except ServerFull:
            return None
        except TimeoutError:
            return f"{model} did not answer within {ANSWER_TIMEOUT_S:.0f} s"
        except TritonVoiceError as error:
            return f"{model} fails: {error}"
        return None

    async with TritonVoice(url) as voice:
        return [problem for problem in await asyncio.gather(*map(ask, models)) if problem]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", action="store_true", help="Have each model do a little work too.")
    arguments = parser.parse_args()
    models = expected_models()
    problems = unready(models)
    if arguments.answer and not problems:
        # TLS: name the endpoint as its certificate does, TRITON_VOICE_URL=grpcs://spark:8001
        url = os.environ.get("TRITON_VOICE_URL") or f"127.0.0.1:{port('GRPC', 8001)}"
        problems = asyncio.run(silent(models, url))
    print("; ".join(problems) or f"{', '.join(models)}: {'answer' if arguments.answer else 'ready'}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
