"""From text to the token ids of one utterance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magpie_engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel


class TextEncoder:
    """Turns text into token ids, as upstream's `chunk_text_for_inference` does for one piece.

    Words outside the pronunciation dictionary are spelled in letters; characters that the checkpoint does not know are
    left out.

    Args:
        model: The restored model.
        max_tokens: Longest text, end token included.
    """

    def __init__(self, model: MagpieTTSModel, max_tokens: int) -> None:
        self._tokenizer = model.tokenizer
        self._end = model.eos_id
        self._max_tokens = max_tokens

    def encode(self, text: str, tokenizer: str) -> list[int]:
        """Encodes one utterance.

        Args:
            text: What to say.
            tokenizer: Name of the tokenizer for the language.

        Returns:
            Token ids with the end token last; empty if no character of the text is known.

        Raises:
            InvalidRequestError: The text is longer than the encoder takes.
        """
        tokens = self._tokenizer.encode(text=text, tokenizer_name=tokenizer)
        if not tokens:
            return []
        if len(tokens) + 1 > self._max_tokens:
            raise InvalidRequestError(
                f"the text is {len(tokens) + 1} tokens long; at most {self._max_tokens} are possible: "
                "send it in sentences"
            )
        return [*tokens, self._end]
