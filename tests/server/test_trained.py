"""The default run's checkpoints, through a server of their own: what a user hears on the first day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from triton_voice.paths import project_root

SETS = project_root() / "checkpoints" / "evaluation"
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


#: Of each set, the entries that are measured: some of every kind, which lie one after the other in it.
SHARES = {
    "--manifest": ("speech", slice(None, None, 3)),  # seen voices, others, silences
    "--texts": ("replies", slice(20)),
    "--dialogues": ("dialogues", slice(None, None, 4)),  # with and without tools, thinking or not, memory
}


def short_sets(folder: Path) -> list[str]:
    """Writes the shares; returns the options that name them."""
    options = []
    for option, (name, share) in SHARES.items():
        lines = (SETS / f"{name}.jsonl").read_text().splitlines()[share]
        short = folder / f"{name}.jsonl"
        short.write_text("\n".join(lines) + "\n")
        options += [option, str(short)]
    (folder / "speech").symlink_to(SETS / "speech")
    speakers = [json.loads(line).get("speaker") for line in (folder / "speech.jsonl").read_text().splitlines()]
    assert len(set(speakers)) >= 3
    return options


def test_the_trained_checkpoints_hear_speak_and_answer(tmp_path):
    """The short form of `triton-voice eval`, with floors: a model that was made worse does not get through."""
    figures = tmp_path / "eval.json"
    floors = [part for floor in FLOORS.items() for part in floor]
    done = subprocess.run(
        [*CLI, "eval", *short_sets(tmp_path), "--latency", "160", "--offline", "--json", str(figures), *floors],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(figures.read_text())) >= {"hearing", "speaking", "answering"}
