"""Takes the picture of the bot's page: a real conversation with the trained checkpoints, in a real Chromium.

    python docs/screenshot.py        # about two minutes on two idle cores; writes docs/bot.png

Recorded questions play in the browser's microphone, one after the other; the picture is taken when the last one has
been answered. Needs the system's Chromium and Playwright, as the browser's tests do. The waits on it are of this
machine, at this moment: say which, or do not show it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from playwright.sync_api import sync_playwright

from triton_voice import checkpoints
from triton_voice.server import ServerSettings, TritonServer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/browser"))

from browser_stage import MICROPHONE_HZ, Bot, Visitor  # noqa: E402

from conftest import CHROMIUMS, FLAGS  # noqa: E402

SET = ROOT / "checkpoints/evaluation"
QUESTIONS = (
    "Hi, my name is Nora.",
    "What is the weather in Rome on Monday?",
    "Please put pizza on my shopping list.",
    "Tell me thirteen minus one.",
)
BEFORE_S, BETWEEN_S, AFTER_S = 8.0, 9.0, 60.0
"""Silence in the microphone: for the greeting, for each answer, and until the browser is closed."""
SIZE = {"width": 1200, "height": 760}
PATIENCE_MS = 120_000


def questions() -> np.ndarray:
    """The questions as a microphone hears them; float, 48 kHz."""
    lines = [json.loads(line) for line in (SET / "speech.jsonl").read_text().splitlines()]
    pieces = [np.zeros(int(BEFORE_S * MICROPHONE_HZ))]
    for text in QUESTIONS:
        samples, rate = soundfile.read(SET / next(line for line in lines if line["text"] == text)["audio_filepath"])
        pieces += [soxr.resample(samples, rate, MICROPHONE_HZ), np.zeros(int(BETWEEN_S * MICROPHONE_HZ))]
    return np.concatenate([*pieces, np.zeros(int(AFTER_S * MICROPHONE_HZ))])


def main() -> None:
    """Holds the conversation and takes the picture."""
    chromium = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise SystemExit(f"no Chromium: looked for {', '.join(CHROMIUMS)}")
    with tempfile.TemporaryDirectory() as folder:
        microphone = Path(folder, "microphone.wav")
        soundfile.write(microphone, questions(), MICROPHONE_HZ, subtype="PCM_16")
        settings = ServerSettings(grpc_port=0, http_port=0, metrics_port=0)
        with TritonServer(settings, checkpoints.trained()) as server, sync_playwright() as playwright:
            bot = Bot(Path(folder), "--server", server.grpc_url, "--greeting", "Hello, how can I help?")
            bot.start()
            try:
                fakes = ["--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop"]
                browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *fakes])
                visitor = Visitor(browser.new_context(viewport=SIZE, permissions=["microphone"]), bot.url)
                visitor.connect()
                visitor.page.wait_for_function(
                    "count => document.querySelectorAll('.turn.assistant').length > count",
                    arg=len(QUESTIONS),  # and the greeting
                    timeout=PATIENCE_MS,
                )
                visitor.expect_state("listening")
                visitor.wait_for_silence()
                visitor.page.screenshot(path=str(ROOT / "docs/bot.png"))
                for user, assistant in zip(visitor.said("user"), visitor.said("assistant")[1:], strict=False):
                    print(f"{user}  {assistant}")
                browser.close()
            finally:
                bot.stop()


if __name__ == "__main__":
    main()
