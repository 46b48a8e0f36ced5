"""Random-weight chat models in the Hugging Face layout, for tests and for measuring speed where no weights can be had.

The model is Llama-shaped (`LlamaForCausalLM`), not the Mamba/MoE hybrid of Nemotron-3-Nano: the tokenizer, the chat
template and the engine around it are real, what it says is a salad of words. The chat template speaks Nemotron-3-Nano's
dialect: ChatML turns, `<think>` blocks switched by `enable_thinking`, tools as XML and `qwen3_coder` tool calls.

Nothing is downloaded: the byte-level BPE tokenizer is trained on the text in this file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

#: Special tokens, in the order of their ids. The ones that a reader of the text needs (thoughts and tool calls) are not
#: marked "special" in the tokenizer, so detokenisation keeps them, as with Qwen3 and Nemotron-3.
CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
END_OF_TURN = "<|im_end|>"

MAX_VOCABULARY = 1024
#: Standard deviation of the output layer times this: peaked enough that greedy decoding does not hang on rounding, flat
#: enough that sampling at temperature 1 stays varied.
OUTPUT_GAIN = 4.0


@dataclass(frozen=True)
class Shape:
    """What decides the size of a Llama-shaped model.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of decoder layers.
        heads: Query heads of each layer.
        kv_heads: Key and value heads of each layer.
        head_dim: Width of one head; vLLM's CPU attention takes multiples of 32.
        intermediate: Width inside the MLP.
        vocabulary: Rows of the embedding and of the output layer; 0 means exactly the tokenizer's.
        max_positions: Longest prompt plus reply in tokens.
        dtype: Name of the torch dtype that the weights are stored in.
        std: Standard deviation of the random weights.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int
    dtype: str
    std: float


SHAPES = {
    # About 0.5 M parameters: starts fast and answers within milliseconds on a CPU. The wide standard deviation makes
    # attention matter, so that a wrong KV cache shows in the text.
    "tiny": Shape(128, 2, 4, 2, 32, 256, 0, 32768, "float32", 0.08),
    # 0.2 G parameters, 0.4 GB: on a CPU its step takes about as long as that of a big model on a GPU.
    "0.2B": Shape(1024, 12, 16, 4, 64, 2816, 32000, 32768, "bfloat16", 0.02),
    # The shape of Llama-3.2-1B with an output layer of its own: 1.5 G parameters, 3.0 GB in bfloat16. A laptop can run
    # it; on a DGX Spark one decoding step reads about as much memory as the 3 G active parameters of Nemotron-3-Nano
    # do in FP8.
    "full": Shape(2048, 16, 32, 8, 64, 8192, 128256, 32768, "bfloat16", 0.02),
}

CHAT_TEMPLATE = r"""
{%- set enable_thinking = enable_thinking if enable_thinking is defined else true -%}
{%- set truncate_history_thinking = truncate_history_thinking if truncate_history_thinking is defined else true -%}
{%- set ns = namespace(last_user=-1, in_tool_turn=false) -%}
{%- for message in messages if message.role == 'user' -%}{%- set ns.last_user = ns.last_user + 1 -%}{%- endfor -%}
{%- set last_user = ns.last_user -%}
{%- set ns.last_user = -1 -%}

{%- macro text(content) -%}
    {%- if content is string -%}{{- content -}}
    {%- elif content is not none and content is iterable -%}
        {%- for part in content if part.text is defined -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro describe(tool) -%}
    {%- set function = tool.function if tool.function is defined else tool -%}
    {{- '\n<function>\n<name>' ~ function.name ~ '</name>' -}}
    {%- if function.description -%}{{- '\n<description>' ~ function.description ~ '</description>' -}}{%- endif -%}
    {{- '\n<parameters>' -}}
    {%- set schema = function.parameters or {} -%}
    {%- for name, field in (schema.properties or {}).items() -%}
        {{- '\n<parameter>\n<name>' ~ name ~ '</name>' -}}
        {%- for key, value in field.items() -%}
            {{- '\n<' ~ key ~ '>' ~ (value if value is string else value | tojson) ~ '</' ~ key ~ '>' -}}
        {%- endfor -%}
        {{- '\n</parameter>' -}}
    {%- endfor -%}
    {%- if schema.required -%}{{- '\n<required>' ~ schema.required | tojson ~ '</required>' -}}{%- endif -%}
    {{- '\n</parameters>\n</function>' -}}
{%- endmacro -%}

{%- if messages and messages[0].role == 'system' -%}
    {%- set system, turns = text(messages[0].content), messages[1:] -%}
{%- else -%}
    {%- set system, turns = '', messages -%}
{%- endif -%}
{{- '<|im_start|>system\n' ~ system -}}
{%- if tools -%}
    {{- '\n\n' if system else '' -}}
    {{- '# Tools\n\nYou may call these functions:\n\n<tools>' -}}
    {%- for tool in tools -%}{{- describe(tool) -}}{%- endfor -%}
    {{- '\n</tools>\n\nTo call one, end your reply with exactly this form:\n\n<tool_call>\n<function=its_name>\n' -}}
    {{- '<parameter=a_parameter>\nits value\n</parameter>\n</function>\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}

{%- for message in turns -%}
    {%- if message.role == 'tool' -%}
        {%- if not ns.in_tool_turn -%}{{- '<|im_start|>user\n' -}}{%- set ns.in_tool_turn = true -%}{%- endif -%}
        {{- '<tool_response>\n' ~ text(message.content) ~ '\n</tool_response>\n' -}}
        {%- if loop.last or turns[loop.index0 + 1].role != 'tool' -%}
            {{- '<|im_end|>\n' -}}{%- set ns.in_tool_turn = false -%}
        {%- endif -%}
    {%- elif message.role == 'assistant' -%}
        {%- set content = text(message.content) -%}
        {%- set thought = message.reasoning or message.reasoning_content or '' -%}
        {%- if not thought and '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] -%}
            {%- set content = content.split('</think>')[-1] -%}
        {%- endif -%}
        {%- if truncate_history_thinking and ns.last_user < last_user -%}{%- set thought = '' -%}{%- endif -%}
        {{- '<|im_start|>assistant\n' -}}
        {{- '<think>\n' ~ thought.strip() ~ '\n</think>\n' if thought.strip() else '<think></think>' -}}
        {{- content.strip() -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set function = call.function if call.function is defined else call -%}
            {{- '\n<tool_call>\n<function=' ~ function.name ~ '>' -}}
            {%- if function.arguments is mapping -%}
                {%- for name, value in function.arguments.items() -%}
                    {{- '\n<parameter=' ~ name ~ '>\n' ~ (value if value is string else value | tojson) -}}
                    {{- '\n</parameter>' -}}
                {%- endfor -%}
            {%- elif function.arguments -%}
                {{- '\n' ~ function.arguments -}}
            {%- endif -%}
            {{- '\n</function>\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- elif message.role in ('system', 'user') -%}
        {%- if message.role == 'user' -%}{%- set ns.last_user = ns.last_user + 1 -%}{%- endif -%}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ text(message.content) ~ '<|im_end|>\n' -}}
    {%- else -%}
        {{- raise_exception('unknown role ' ~ message.role ~ '; allowed are system, user, assistant, tool') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' ~ ('<think>\n' if enable_thinking else '<think></think>') -}}
{%- endif -%}
""".strip()

#: What the tokenizer learns its words from: the small talk of a voice assistant, and the markup of a tool call.
TEXT = """
Hello! How can I help you today? I would like to know what the weather will be like tomorrow morning.
The weather in Paris is sunny with a light wind from the west, and the temperature is about twenty degrees.
Please set a timer for ten minutes and remind me to call my sister when it rings. The timer is running now.
What time is it in Tokyo? It is half past nine in the evening there, so most shops are already closed.
Turn on the lights in the kitchen and play some quiet music. All right, the lights are on and the music is playing.
Could you tell me a short story about a fox and a river? Once there was a young fox who wanted to cross a river.
She asked the heron, and the heron said that the water was not deep near the old bridge behind the mill.
How far is the moon from the earth? The moon is about three hundred and eighty four thousand kilometres away.
Thank you very much, that was helpful. You are welcome, let me know if there is anything else that you need.
I think that we should first look at the question, then find the numbers, and then answer in one sentence.
The user wants to know something, so let me think about which function has the answer and what it needs.
My train leaves at seven, how early should I wake up? If the station is near, six o'clock gives you enough time.
Add milk, bread, apples and coffee to my shopping list. Done, there are now four things on your shopping list.
Yes, of course. No, I am sorry, I do not know that. Perhaps we can try again with other words.
She sells sea shells by the sea shore, and the shells that she sells are sea shells for sure.
The quick brown fox jumps over the lazy dog while seven wizards quietly mix a strange potion of jade and zinc.
one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April June July August December
<function=get_weather>
<parameter=city>
Paris
</parameter>
<parameter=unit>
celsius
</parameter>
</function>
{"city": "Paris", "unit": "celsius", "temperature": 21, "sky": "clear"}
"""


def make(out: Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write a chat model with random weights that vLLM and transformers load.

    Args:
        out: Folder to write into; it is created. Files of the same names are replaced.
        size: "tiny" (about 2 MB, for tests), "0.2B" (0.4 GB) or "full" (1.5 G parameters, 3.0 GB, for measuring speed).
        seed: Decides the weights. The same seed and size give the same bytes.

    Returns:
        The folder `out`, holding config.json, generation_config.json, model*.safetensors, tokenizer.json,
        tokenizer_config.json and chat_template.jinja.

    Raises:
        ValueError: If `size` is not one of `SHAPES`.
    """
    if size not in SHAPES:
        raise ValueError(f"size is {size!r}; allowed are {', '.join(SHAPES)}")
    shape = SHAPES[size]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    words = tokenizer.get_vocab_size()
    rows = shape.vocabulary or words
    end = tokenizer.token_to_id(END_OF_TURN)
    _write_json(out / "tokenizer_config.json", _tokenizer_config(shape))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(out / "config.json", _model_config(shape, rows, end, tokenizer.token_to_id("<s>")))
    _write_json(out / "generation_config.json", {"eos_token_id": end, "pad_token_id": tokenizer.token_to_id("</s>")})
    _write_weights(out, _weights(shape, rows, _sayable(tokenizer), seed))
    return out


def _train_tokenizer() -> Any:
    """Train the byte-level BPE tokenizer on `TEXT`; its ids begin with the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines(keepends=True), trainer)
    # The trainer marks them all special; said again, the markup becomes ordinary text that is only never split.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return tokenizer


def _sayable(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are printable text by themselves: no control tokens and no halves of UTF-8 letters."""
    reserved = {*CONTROL_TOKENS, *MARKUP_TOKENS}
    ids = []
    for token, index in tokenizer.get_vocab().items():
        text = tokenizer.decode([index])
        if token not in reserved and text.replace("\n", " ").isascii() and text.replace("\n", " ").isprintable():
            ids.append(index)
    return sorted(ids)


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": END_OF_TURN,
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_positions,
    }


def _model_config(shape: Shape, rows: int, end: int, begin: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": rows,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "initializer_range": shape.std,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": shape.dtype,
        "bos_token_id": begin,
        "eos_token_id": end,
    }


def _weights(shape: Shape, rows: int, sayable: list[int], seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights shard by shard (one per layer), so that a big model needs little memory to make."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, shape.dtype)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def normal(*size: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * (shape.std * gain)).to(dtype)

    yield {"model.embed_tokens.weight": normal(rows, shape.hidden)}
    for index in range(shape.layers):
        layer = f"model.layers.{index}."
        yield {
            layer + "input_layernorm.weight": torch.ones(shape.hidden, dtype=dtype),
            layer + "self_attn.q_proj.weight": normal(queries, shape.hidden),
            layer + "self_attn.k_proj.weight": normal(keys, shape.hidden),
            layer + "self_attn.v_proj.weight": normal(keys, shape.hidden),
            layer + "self_attn.o_proj.weight": normal(shape.hidden, queries),
            layer + "post_attention_layernorm.weight": torch.ones(shape.hidden, dtype=dtype),
            layer + "mlp.gate_proj.weight": normal(shape.intermediate, shape.hidden),
            layer + "mlp.up_proj.weight": normal(shape.intermediate, shape.hidden),
            layer + "mlp.down_proj.weight": normal(shape.hidden, shape.intermediate),
        }
    # Rows of zeros give a logit of zero, far below the best of the others: the model hardly ever says a token that is
    # not text, ends its turn by chance, or opens a tool call.
    output = torch.zeros(rows, shape.hidden, dtype=dtype)
    output[sayable] = normal(len(sayable), shape.hidden, gain=OUTPUT_GAIN)
    yield {"model.norm.weight": torch.ones(shape.hidden, dtype=dtype), "lm_head.weight": output}


def _write_weights(out: Path, shards: Iterator[dict[str, torch.Tensor]]) -> None:
    """Write safetensors shards and their index, without holding more than one shard."""
    from safetensors.torch import save_file

    for stale in out.glob("model*.safetensors"):
        stale.unlink()
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, str(out / name), metadata={"format": "pt"})
        places.update({tensor: name for tensor in shard})
        total += sum(weight.numel() * weight.element_size() for weight in shard.values())
    _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
