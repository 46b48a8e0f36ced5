"""The default run's checkpoints, through a server of their own: what a user hears on the first day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CLI = [str(Path(sys.executable).parent / "triton-voice")]
#: Worse than what the committed checkpoints do, by as much as processors differ; see their cards.
FLOORS = {
    "--max-wer": "0.06",
    "--max-offline-wer": "0",
    "--max-wrong-silences": "0",
    "--max-read-back-wer": "0.08",
    "--max-runaways": "0",
    "--max-truncations": "1",
    "--min-accuracy": "0.95",
}


def test_the_trained_checkpoints_hear_speak_and_answer(tmp_path):
    """The short form of `triton-voice eval`, with floors: a model that was made worse does not get through."""
    figures = tmp_path / "eval.json"
    floors = [part for floor in FLOORS.items() for part in floor]
    done = subprocess.run(
        [*CLI, "eval", "--limit", "20", "--latency", "160", "--offline", "--json", str(figures), *floors],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(figures.read_text())) >= {"hearing", "speaking", "answering"}
