"""How often a chat model of the small world answers right: held-out dialogues, histories given, greedy replies."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from triton_voice_training import chat_data, chat_tokens, world
from triton_voice_training.chat_data import Message, Tool

#: Longest reply, tokens; the longest right one has about 60.
MAX_NEW_TOKENS = 110
BATCH = 100
#: Intents whose answer is in an earlier exchange. Their few sentences are all trained on; the dialogues are not.
MEMORY_INTENTS = ("recall", "shopping_read", "timer_left", "timer_stop", "repeat")
MEMORY_TURNS = (3, 7)
_CALL = re.compile(r"<tool_call>\n<function=(\w+)>\n(.*?)</function>\n</tool_call>$", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=(\w+)>\n(.*?)\n</parameter>\n", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A conversation up to where the assistant speaks, and what it should say.

    Attributes:
        intent: Of the last exchange.
        messages: OpenAI messages.
        tools: OpenAI tools.
        thinking: Whether it thinks first.
        accepted: Replies that are right; none where a call is.
        call: Name and arguments of the call that is right.
    """

    intent: str
    messages: list[Message]
    tools: list[Tool]
    thinking: bool
    accepted: tuple[str, ...] = ()
    call: tuple[str, dict[str, str]] | None = None


@dataclass
class Result:
    """Figures.

    Attributes:
        right: Right answers by kind and intent; a dialogue counts if its call and its reply are right.
        asked: How many there were.
        misses: What was wrong, in words.
    """

    right: dict[str, dict[str, int]] = field(default_factory=dict)
    asked: dict[str, dict[str, int]] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    def accuracy(self, kind: str | None = None) -> float:
        """Right answers of all, of one kind or of every kind."""
        kinds = [kind] if kind else list(self.asked)
        return sum(sum(self.right[k].values()) for k in kinds) / sum(sum(self.asked[k].values()) for k in kinds)


def questions(turns: Sequence[world.Turn], tools: list[Tool], thinking: bool, system: str = "") -> list[Question]:
    """Makes what a held-out dialogue asks: its last reply, and before it the tool call where one is needed."""
    names = {tool["function"]["name"] for tool in tools}
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    said = ""
    for turn in turns:
        if turn.intent == "repeat":  # without tools other words were said than the world thinks
            turn = replace(turn, reply=said or turn.reply)
        messages.append({"role": "user", "content": turn.user})
        answers = chat_data.answer(turn, names, thinking and turn is turns[-1])
        said = answers[-1]["content"]
        before = list(messages)
        messages += answers
    made = []
    if len(answers) > 1:
        function = answers[0]["tool_calls"][0]["function"]
        made.append(Question(turn.intent, before, tools, thinking, call=(function["name"], function["arguments"])))
    accepted = (said, *(turn.accepted if len(answers) == 1 and said == turn.reply else ()))
    made.append(Question(turn.intent, messages[:-1], tools, thinking, accepted))
    return made


def memory_dialogues(count: int, seed: int = 0) -> Iterator[list[world.Turn]]:
    """Draws dialogues of three exchanges or more that end with a question about what was said before."""
    rng = random.Random(f"memory {seed}")
    while count:
        turns = world.dialogue(rng, rng.randint(*MEMORY_TURNS))
        ends = [at for at, turn in enumerate(turns, start=1) if turn.intent in MEMORY_INTENTS]
        if ends and ends[-1] >= MEMORY_TURNS[0]:
            count -= 1
            yield turns[: ends[-1]]


def is_right(question: Question, text: str) -> bool:
    """Says whether a generated text, its thoughts included, is what was asked for."""
    content = text.split("</think>\n", 1)[-1] if question.thinking else text
    if question.thinking and "</think>\n" not in text:
        return False
    if question.call is None:
        return content.strip() in question.accepted
    found = _CALL.search(content.strip())
    return found is not None and (found[1], dict(_PARAMETER.findall(found[2]))) == question.call


def generate(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Continues prompts greedily, to the end of the assistant's turn.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, padding on the left.
        prompts: Rendered conversations.

    Returns:
        What was added to each, without the end-of-turn token.
    """
    import torch

    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = tokenizer([prompts[at] for at in rows], return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        for at, row in zip(rows, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            said = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            texts[at] = tokenizer.decode([token for token in said if token != tokenizer.pad_token_id])
    return [texts[at] for at in range(len(prompts))]


def evaluate(folder: Path, dialogues: int, device: str, seed: int = 0) -> Result:
    """Asks an exported model, by transformers.

    Args:
        folder: The exported model.
        dialogues: Dialogues of each kind: with the bot's tools and prompt or without either, thinking or not; held-out
            ones, and ones about what was said before.
        device: Torch's name of the device.
        seed: Of the dialogues.
    """
    from transformers import LlamaForCausalLM

    import torch  # isort: skip

    tokenizer = chat_tokens.load_tokenizer(folder)
    model = LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32).to(device).eval()
    tools = chat_data.bot_tools()
    prompt = chat_data.BOT_PROMPT
    held_out = list(world.dialogues("held_out", dialogues, seed))
    memory = list(memory_dialogues(dialogues, seed))
    kinds = {
        "tools": (held_out, tools, False, prompt),
        "tools, thinking": (held_out, tools, True, prompt),
        "no tools": (held_out, [], False, ""),
        "no tools, thinking": (held_out, [], True, ""),
        "memory": (memory, tools, False, prompt),
        "memory, thinking": (memory, tools, True, prompt),
    }
    result = Result()
    for kind, (drawn, offered, thinking, system) in kinds.items():
        asked = [questions(turns, offered, thinking, system) for turns in drawn]
        flat = [each for dialogue in asked for each in dialogue]
        prompts = [chat_tokens.render(tokenizer, each.messages, each.tools, thinking, prompt=True) for each in flat]
        said = dict(zip(map(id, flat), generate(model, tokenizer, prompts), strict=True))
        right, total = result.right.setdefault(kind, {}), result.asked.setdefault(kind, {})
        for dialogue in asked:
            intent = dialogue[-1].intent
            wrong = [each for each in dialogue if not is_right(each, said[id(each)])]
            total[intent] = total.get(intent, 0) + 1
            right[intent] = right.get(intent, 0) + (not wrong)
            for each in wrong:
                user = next(message["content"] for message in reversed(each.messages) if message["role"] == "user")
                expected = each.call or each.accepted[0]
                result.misses.append(
                    f"[{kind}] {intent}: {user!r} gave {said[id(each)][:200]!r}, right is {expected!r}"
                )
    return result


def table(result: Result) -> Table:
    """The figures by intent and kind."""
    shown = Table(title=f"right replies on held-out dialogues: {result.accuracy():.1%}", title_justify="left")
    shown.add_column("intent")
    for kind in result.asked:
        shown.add_column(kind, justify="right")
    for intent in sorted({intent for kind in result.asked.values() for intent in kind}):
        cells = [f"{result.right[k].get(intent, 0)}/{result.asked[k].get(intent, 0)}" for k in result.asked]
        shown.add_row(intent, *cells)
    shown.add_row("all", *(f"{result.accuracy(kind):.1%}" for kind in result.asked), style="bold")
    return shown
