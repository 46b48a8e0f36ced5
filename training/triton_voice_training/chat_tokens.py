"""The chat model's tokenizer, and conversations as tokens with the mark of what is to be learned."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_voice.checkpoints.llm import CHAT_TEMPLATE, CONTROL_TOKENS, END_OF_TURN, MARKUP_TOKENS
from triton_voice_training.chat_data import Example, Message, Tool, example

#: Rows of the embedding at most; the world's words are one token each, strange ones a few.
MAX_VOCABULARY = 1536
TOKENIZER_SEED = "tokenizer"
TOKENIZER_EXAMPLES = 3000
#: What `max_position_embeddings` says; the same as of the random tiny model, so that the same engine arguments fit.
MAX_POSITIONS = 32768
#: An assistant's message after its prompt: what the model writes, up to and with the end of its turn. Matches the
#: template's rendering, and its borders are borders of tokens.
_ASSISTANT = re.compile(r"(?<=<\|im_start\|>assistant\n)(<think></think>|<think>\n)(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: Token ids, uint16, shape (tokens,).
        learned: Which of them the model should have said, bool, shape (tokens,).
    """

    ids: npt.NDArray[np.uint16]
    learned: npt.NDArray[np.bool_]


def render(tokenizer: Any, messages: list[Message], tools: list[Tool], thinking: bool, prompt: bool) -> str:
    """Renders messages with the model's chat template.

    Args:
        tokenizer: The `transformers` tokenizer that carries the template.
        messages: OpenAI messages.
        tools: OpenAI tools.
        thinking: The template's `enable_thinking`.
        prompt: Whether the text ends with the beginning of the assistant's turn.
    """
    return str(
        tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt, enable_thinking=thinking
        )
    )


def encode(tokenizer: Any, conversation: Example) -> Encoded:
    """Renders and tokenizes a conversation; learned are the assistant's own tokens, not what its prompt holds."""
    text = render(tokenizer, conversation.messages, conversation.tools, conversation.thinking, prompt=False)
    speakers = [at for at, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    spans = [(found.start(2), found.end(2)) for found in _ASSISTANT.finditer(text)]
    if len(spans) != len(speakers):
        raise ValueError(f"{len(spans)} assistant turns in the rendered text, {len(speakers)} in the messages")
    parts, marks, done = [], [], 0
    for at, (start, end) in zip(speakers, spans, strict=True):
        parts += [text[done:start], text[start:end]]
        marks += [False, at in conversation.learn]
        done = end
    parts.append(text[done:])
    marks.append(False)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    ids = [piece.ids for piece in backend.encode_batch(parts, add_special_tokens=False)]
    learned = [np.full(len(piece), mark) for piece, mark in zip(ids, marks, strict=True)]
    return Encoded(np.concatenate([np.asarray(piece, np.uint16) for piece in ids]), np.concatenate(learned))


def train_tokenizer() -> Any:
    """Trains the byte-level BPE tokenizer on rendered dialogues of the world; digits are tokens of their own.

    Returns:
        A `transformers.PreTrainedTokenizerFast` with the chat template. The same every time.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    digits, text = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=4,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng, bare = random.Random(TOKENIZER_SEED), _wrapped(tokenizer)
    drawn = [example(rng, rng.randint(1, 6)) for _ in range(TOKENIZER_EXAMPLES)]
    texts = [render(bare, each.messages, each.tools, each.thinking, prompt=False) for each in drawn]
    control = re.compile("|".join(map(re.escape, [*CONTROL_TOKENS, *MARKUP_TOKENS])))
    tokenizer.train_from_iterator((piece for text in texts for piece in control.split(text)), trainer)
    # The trainer marks them all special; said again, the markup becomes ordinary text that is only never split.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return _wrapped(tokenizer)


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer that `save_tokenizer` wrote."""
    from tokenizers import Tokenizer

    return _wrapped(Tokenizer.from_file(str(folder / "tokenizer.json")))


def _wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=END_OF_TURN,
        pad_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
