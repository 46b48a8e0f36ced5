"""vLLM's parsers as the backend uses them: thoughts counted right however tokens are grouped, lexers made once."""

import pytest

from triton_voice.checkpoints import llm
from vllm_chat import chat, parsing

THINKING = {"enable_thinking": True}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from vllm.tokenizers import get_tokenizer

    return get_tokenizer(str(llm.make(tmp_path_factory.mktemp("llm"), "tiny")))


@pytest.fixture(scope="module")
def parser():
    from vllm.parser.parser_manager import ParserManager

    composed = ParserManager.get_parser(
        tool_parser_name="qwen3_coder", reasoning_parser_name="nemotron_v3", enable_auto_tools=True, model_name="x"
    )
    return parsing.counting_exactly(composed)


def stream(parser, tokenizer, said, size, prompt, kwargs):
    """Feeds a reply and its end in groups of tokens, as the engine joins them; returns thoughts, text and count."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    user = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest(messages=user, stream=True, chat_template_kwargs=kwargs)
    ids = [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    one = parser(tokenizer, None, chat_template_kwargs=kwargs)
    read, thoughts, text = "", "", ""
    for start in range(0, len(ids), size):
        end = start + size
        whole = tokenizer.decode(ids[:end], skip_special_tokens=False).removesuffix(tokenizer.eos_token)
        delta, read = whole[len(read) :], whole
        message = one.parse_delta(delta, ids[start:end], request, prompt, finished=end >= len(ids))
        thoughts += (message and message.reasoning) or ""
        text += (message and message.content) or ""
    return thoughts, text, one.count_reasoning_tokens(ids)


@pytest.mark.parametrize(
    ("said", "thought", "text"),
    [
        ("Let me see.\n</think>\nHello there!", "Let me see.", "\nHello there!"),
        ("Still thinking of a number", "Still thinking of a number", ""),
        ("</think>At once.", "", "At once."),
    ],
)
def test_thoughts_are_counted_alike_however_the_tokens_are_grouped(parser, tokenizer, said, thought, text):
    prompt = tokenizer("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n").input_ids
    thinking = said.partition("</think>")[0]
    count = len(tokenizer(thinking, add_special_tokens=False).input_ids)
    for size in (1, 2, 3, 5, 8, 100):
        assert stream(parser, tokenizer, said, size, prompt, THINKING) == (thought, text, count)


def test_a_reply_without_thinking_has_no_thoughts_to_count(parser, tokenizer):
    prompt = tokenizer("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think></think>").input_ids
    for size in (1, 100):
        assert stream(parser, tokenizer, "Hello.", size, prompt, {"enable_thinking": False}) == ("", "Hello.", 0)


def test_a_lexer_is_made_once_for_a_parser_and_a_tokenizer(parser, tokenizer):
    assert parsing.keep_lexers(), "this vLLM makes its lexers elsewhere: each request makes six of them"
    assert parsing.keep_lexers()  # another model in the same process
    engines = [parser(tokenizer, None, chat_template_kwargs=kwargs) for kwargs in (THINKING, THINKING, {})]
    shapes = {id(engine.reasoning_parser._parser_engine._engine._lexer._shape) for engine in engines}
    assert len(shapes) == 1
    other = parser(tokenizer, None, chat_template_kwargs={"enable_thinking": False})
    assert id(other.reasoning_parser._parser_engine._engine._lexer._shape) not in shapes


def test_a_request_has_one_parser_and_no_other_requests(parser, tokenizer):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    serving = object.__new__(chat._Serving)  # of vLLM's chat no more is used than this
    serving.parser_cls, serving.model_config = parser, None
    first, second = (ChatCompletionRequest(messages=[{"role": "user", "content": "x"}]) for _ in range(2))
    dropped = serving._make_parser(first, tokenizer, THINKING)  # for its prompt, which then could not be rendered
    looked = serving._make_parser(second, tokenizer, THINKING)
    reply = serving._make_parser(second, tokenizer, THINKING)
    assert looked is reply is not dropped
    assert serving._make_parser(second, tokenizer, THINKING) is not reply  # the state of a reply is never used again


def test_parsers_that_count_right_are_left_alone():
    from vllm.parser.parser_manager import ParserManager

    tools_only = ParserManager.get_parser(tool_parser_name="qwen3_coder", enable_auto_tools=True, model_name="x")
    assert parsing.counting_exactly(tools_only) is tools_only
    assert parsing.counting_exactly(None) is None
