"""Who takes part in the browser's tests: the bot as a process, and visitors with a browser."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from triton_voice.paths import project_root
from triton_voice.server.process import free_port

INSECURE_HOST = "bot.test"
"""Leads to this machine as well, but browsers give no microphone to it: neither https nor localhost."""
PATIENCE_S = 60
SILENCE_S = 2.0
SILENCE = 1e-5
"""Energy (full scale squared x seconds) that comfort noise stays below."""
MICROPHONE_HZ = 48_000
PAUSE_S = 3.0
"""Silence before the question in the microphone's file, which Chromium plays in a loop."""
# The page's peer connections, for their statistics.
REMEMBER_PEERS = """
window.peers = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) { super(...given); window.peers.push(this); }
};
"""
STATISTICS = """async () => {
  const found = {heard: 0, spoken: 0};
  for (const entry of (await window.peers.at(-1).getStats()).values()) {
    if (entry.type === "inbound-rtp") found.heard = entry.totalAudioEnergy ?? 0;
    if (entry.type === "media-source") found.spoken = entry.totalAudioEnergy ?? 0;
  }
  return found;
}"""


class Bot:
    """`triton-voice bot` as a process of its own, always at the same address.

    Args:
        folder: Where its output goes.
        options: Of the command.
    """

    def __init__(self, folder: Path, *options: str):
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self._output = folder / f"bot-{self.port}.log"
        hosts = f"localhost,127.0.0.1,{INSECURE_HOST}"
        program = str(Path(sys.executable).with_name("triton-voice"))
        self._command = [program, "bot", "--port", str(self.port), "--allowed-hosts", hosts, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until the page can be loaded."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.get("config")
                return
            except urllib.error.URLError:
                alive = self._process.poll() is None
                assert alive and time.monotonic() < deadline, f"the bot does not start: {self._output.read_text()}"
                time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits for its end."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    def get(self, path: str) -> dict[str, Any]:
        """What the bot answers at a path below `/api`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def wait_until_free(self) -> None:
        """Waits until nobody converses any more."""
        deadline = time.monotonic() + PATIENCE_S
        while self.get("config")["active"]:
            assert time.monotonic() < deadline, "a place is still taken although its page is gone"
            time.sleep(0.1)


class Visitor:
    """Somebody with a browser.

    Attributes:
        page: Playwright's page.
        requests: URLs that the page asked for.
        errors: What the page reported to the console as an error, and exceptions that nothing caught.
    """

    def __init__(self, context: Any, url: str):
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.add_init_script(REMEMBER_PEERS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.expect("#voice:enabled")

    def expect(self, selector: str, **options: Any) -> Any:
        """Waits for an element and returns it."""
        return self.page.wait_for_selector(selector, timeout=PATIENCE_S * 1000, **options)

    def until(self, condition: str, argument: object = None) -> None:
        """Waits until a JavaScript expression is true."""
        self.page.wait_for_function(condition, arg=argument, timeout=PATIENCE_S * 1000)

    def connect(self) -> None:
        """Connects and waits until the bot is ready."""
        self.page.click("#connect")
        self.expect_phase("connected")

    def expect_phase(self, phase: str) -> None:
        """Waits for a phase: idle, connected, reconnecting."""
        self.expect(f'body[data-phase="{phase}"]')

    def expect_state(self, *states: str) -> None:
        """Waits until the page says one of these: listening, muted, user, thinking, assistant."""
        self.expect(", ".join(f'#state[data-state="{state}"]' for state in states))

    def expect_problem(self, sentence: str) -> None:
        """Waits until the page complains, and the words are part of what it says."""
        self.until("words => document.querySelector('#problem').textContent.includes(words)", sentence)

    def said(self, role: str) -> list[str]:
        """What one side said, turn by turn, as far as the page shows it."""
        return self.page.locator(f".turn.{role} .text").all_inner_texts()

    def audio(self) -> dict[str, float]:
        """Energy of the audio since the connection: `heard` from the bot, `spoken` into the microphone."""
        return self.page.evaluate(STATISTICS)

    def wait_for_silence(self) -> None:
        """Waits until nothing was heard from the bot for a while."""
        deadline, before = time.monotonic() + PATIENCE_S, -1.0
        while (heard := self.audio()["heard"]) - before > SILENCE:
            assert time.monotonic() < deadline, "the bot does not fall silent"
            before = heard
            self.page.wait_for_timeout(SILENCE_S * 1000)


def microphone_audio(speech: bool) -> np.ndarray:
    """A pause, then perhaps the question, then a shorter pause; float, 48 kHz."""
    pause = np.zeros(int(PAUSE_S * MICROPHONE_HZ))
    if not speech:
        return pause
    question, rate = soundfile.read(project_root() / "client/triton_voice/data/question.wav")
    return np.concatenate([pause, soxr.resample(question, rate, MICROPHONE_HZ), pause[: len(pause) * 2 // 3]])
