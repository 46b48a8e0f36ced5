"""The model card of Nemotron-tiny: what it is, what it was trained on for how long, and how often it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from triton_voice_training import runs

PLOT = "training.png"
_CARD = """\
---
license: bsd-2-clause
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Nemotron-tiny

A chat model of {parameters:.1f} M parameters that knows one small world: a household assistant in English (lights,
timers, alarms, weather, time, shopping list, calls, messages, music, sums, small talk). It is part of triton-voice, so
that the voice agent can be tried and tested without a GPU and without a download. It is no general language model:
whatever is outside its world it declines, and what it is told in unusual words it may misunderstand.

- `LlamaForCausalLM`, {layers} layers of {hidden}, {heads} heads of 32 ({kv_heads} of keys and values),
  byte-level BPE of {vocabulary} tokens, digits one token each. {megabytes:.1f} MB: stored in float16,
  computed with in float32 on a CPU.
- Chat template in the style of Nemotron-3-Nano: ChatML, `enable_thinking`, tool calls in the qwen3_coder form. vLLM's
  parsers `nemotron_v3` and `qwen3_coder` read it.
- Tools that it calls when they are offered: `get_time(city?)` and `get_weather(city, day?)`; without them it says that
  it can not look that up.

## Training

Dialogues of `training/triton_voice_training/world.py`, made by `chat_data.py`: generated text, no data of anybody.
Cross-entropy on the assistant's own tokens. {steps:,} steps, {tokens:.0f} M tokens, {minutes:.1f} minutes on
{machine}; the last loss was {loss:.4f}. To make it again:

    .venv/bin/python -m triton_voice_training.chat train --out build/chat --steps {steps} --batch-tokens {batch_tokens}

![loss and learning rate over time]({plot})

## How often it is right

Greedy replies, histories given. Held-out dialogues end with a request that was never trained on; memory dialogues end
with a question about what was said before. A dialogue counts if its tool call (name and arguments) and its reply are
exact, or the reply is one of the accepted ones.

| | right |
|---|---|
{rows}

By what was asked, all kinds together:

| intent | right | asked |
|---|---|---|
{intents}

To count again:
`.venv/bin/python -m triton_voice_training.chat evaluate checkpoints/nemotron-tiny --dialogues {dialogues}`.
Through the server: `triton-voice eval --dialogues checkpoints/evaluation/dialogues.jsonl`.
"""


def write(model: Path, log: Path, report: dict[str, Any], machine: str, batch_tokens: int) -> None:
    """Writes `README.md` and the training curve into an exported model.

    Args:
        model: Its folder.
        log: The run's log.
        report: What `chat evaluate --json` wrote.
        machine: What it was trained on, in words.
        batch_tokens: Tokens of a batch.
    """
    config = json.loads((model / "config.json").read_text())
    with safe_open(str(model / "model.safetensors"), "numpy") as weights:
        count = sum(_size(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = lines[-1]
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    rows = []
    for kind, by_intent in report["asked"].items():
        good, all_of_it = sum(report["right"][kind].values()), sum(by_intent.values())
        rows.append(f"| {kind} | {good / all_of_it:.1%} of {all_of_it} |")
        for intent, number in by_intent.items():
            asked[intent] = asked.get(intent, 0) + number
            right[intent] = right.get(intent, 0) + report["right"][kind].get(intent, 0)
    rows.append(f"| **all** | **{sum(right.values()) / sum(asked.values()):.1%}** of {sum(asked.values())} |")
    runs.draw_log(log, model / PLOT, {"loss": "loss, nats a token", "rate": "learning rate"})
    card = _CARD.format(
        parameters=count / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        megabytes=(model / "model.safetensors").stat().st_size / 1e6,
        steps=last["step"] + 1,
        tokens=last["tokens"] / 1e6,
        minutes=last["seconds"] / 60,
        loss=last["loss"],
        machine=machine,
        batch_tokens=batch_tokens,
        plot=PLOT,
        rows="\n".join(rows),
        intents="\n".join(f"| {intent} | {right[intent]} | {asked[intent]} |" for intent in sorted(asked)),
        dialogues=max(sum(by_intent.values()) for by_intent in report["asked"].values()),
    )
    (model / "README.md").write_text(card, encoding="utf-8")


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
