"""What vLLM 0.32's parsers leave to be desired: what they cost per request, and how they count thoughts.

vLLM makes its parsers anew for each request, six of them before the first token, and each time compiles the special
tokens of the tokenizer into a lexer. That lexer depends on the parser's configuration and on the tokenizer alone, and
nothing in it changes, so it is kept.

While a reply streams, vLLM counts its thoughts piece by piece and misses those that arrive in one piece with a special
token whose text is not shown, such as the end of the reply. Counted over the whole reply they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm.parser.abstract_parser import DelegatingParser, Parser
from vllm.parser.engine import streaming_parser_engine
from vllm.parser.engine.adapters import ParserEngineReasoningAdapter

#: The function of `streaming_parser_engine` that makes a lexer's tables: `(config, tokenizer) -> tables`.
_MAKER = "_build_drop_info"
#: vLLM's own configurations are a few for each parser; a plugin that makes another each time must not fill this.
_MOST_KEPT = 32


def keep_lexers() -> bool:
    """Have vLLM make each lexer's tables once; returns whether this vLLM makes them where it is looked for."""
    make: Callable[[Any, Any], Any] | None = getattr(streaming_parser_engine, _MAKER, None)
    if make is None:
        return False
    if not isinstance(make, _Kept):
        setattr(streaming_parser_engine, _MAKER, _Kept(make))
    return True


class _Kept:
    """Remembers what a function of a configuration and a tokenizer returned, by identity: neither can be hashed."""

    def __init__(self, make: Callable[[Any, Any], Any]):
        self._make = make
        self._made: dict[tuple[int, int], tuple[Any, Any, Any]] = {}

    def __call__(self, config: Any, tokenizer: Any) -> Any:
        key = id(config), id(tokenizer)
        if key not in self._made:
            if len(self._made) >= _MOST_KEPT:
                self._made.clear()
            # With the arguments, so that their ids are not given to others.
            self._made[key] = config, tokenizer, self._make(config, tokenizer)
        return self._made[key][2]


def counting_exactly(parser: type[Parser] | None) -> type[Parser] | None:
    """A parser's class with a right count of thoughts; unchanged if its count is right already.

    Args:
        parser: The class that vLLM composed of the parsers chosen.
    """
    if parser is None or not issubclass(parser, DelegatingParser):
        return parser
    reasoning = parser.reasoning_parser_cls
    if reasoning is None or not issubclass(reasoning, ParserEngineReasoningAdapter):
        return parser

    class Counting(parser):  # type: ignore[misc, valid-type]
        def __init__(self, tokenizer: Any, tools: Any = None, *args: Any, **kwargs: Any):
            super().__init__(tokenizer, tools, *args, **kwargs)
            self._another = lambda: reasoning(tokenizer, *args, **kwargs)
            self._thought = False

        def extract_reasoning_streaming(self, *args: Any, **kwargs: Any) -> Any:
            self._thought = True  # vLLM asks only while the thoughts have not ended, be it in the prompt
            return super().extract_reasoning_streaming(*args, **kwargs)

        def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
            # One that has not streamed reads all tokens at once.
            return self._another().count_reasoning_tokens(token_ids) if self._thought else 0

    return Counting
