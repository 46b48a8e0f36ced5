"""The attention prior: keeps each utterance moving forward through its text, for all slots at once.

Vectorised from NeMo's `MagpieTTSModel.get_most_attended_text_timestep` and `construct_inference_prior`, which loop over
items with `.item()` at every frame; the results are equal (tests/unit/test_magpie_alignment.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Visits after which a text position counts as an attention sink and the search starts behind it.
SINK_VISITS = 8
#: Visits after which a text position and all before it are closed.
CLOSED_VISITS = 10
#: Texts up to this many tokens have no prior.
SHORT_TEXT = 5
#: The search never lands on the last tokens of the text (closing punctuation and end token).
TAIL = 3
#: Steps near the end of the text after which the model may end, and after which it must.
MAY_END_STEPS, MUST_END_STEPS = 5, 20


class AlignmentTracker:
    """Where each slot's speech is in its text, and the attention prior for its next step.

    Args:
        slots: Number of slots.
        max_text: Longest text in tokens.
        parameters: NeMo's `ModelInferenceParameters`.
        device: Of all tensors.
    """

    def __init__(self, slots: int, max_text: int, parameters: Any, device: torch.device) -> None:
        self._window: int = parameters.attention_prior_lookahead_window
        self._epsilon: float = parameters.attention_prior_epsilon
        self._enabled: bool = parameters.apply_attention_prior
        self._start_step: int = parameters.start_prior_after_n_audio_steps
        self._enforce_ends: bool = not parameters.ignore_finished_sentence_tracking
        self._positions = torch.arange(max_text, device=device)
        self.text_length = torch.ones(slots, dtype=torch.long, device=device)
        #: Text position that the newest frame attends to most, (slots,).
        self.attended = torch.ones(slots, dtype=torch.long, device=device)
        #: How often each text position was the most attended, (slots, max_text).
        self.visits = torch.zeros(slots, max_text, dtype=torch.long, device=device)
        #: Steps since the speech first came near the end of the text, (slots,); 0 before.
        self.steps_near_end = torch.zeros(slots, dtype=torch.long, device=device)
        #: Multiplies attention probabilities at the next step, (slots, max_text).
        self.prior = torch.ones(slots, max_text, device=device)
        #: Whether the prior applies to the slot yet, (slots,).
        self.active = torch.zeros(slots, dtype=torch.bool, device=device)

    def _state(self) -> tuple[Tensor, ...]:
        return self.text_length, self.attended, self.visits, self.steps_near_end, self.prior, self.active

    def reset(self, slot: int, text_length: int) -> None:
        """Begins a new utterance of `text_length` tokens in a slot."""
        self.text_length[slot] = text_length
        self.attended[slot] = 1
        self.visits[slot] = 0
        self.steps_near_end[slot] = 0
        self.prior[slot] = 1
        self.active[slot] = False

    def move(self, source: int, target: int) -> None:
        """Copies a slot's state."""
        for tensor in self._state():
            tensor[target] = tensor[source]

    def update(self, scores: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Follows the newest frame and makes the prior for the next.

        Args:
            scores: Attention of the newest frame over the text, (n, text), for slots 0 to n-1; `text` may be anything
                from the longest live text to `max_text`.
            steps: Steps taken before this one, (n,).

        Returns:
            Two masks (n,): slots whose speech must not end at this step, and slots whose speech must.
        """
        live, width = scores.shape
        nobody = torch.zeros(live, dtype=torch.bool, device=scores.device)
        if not self._enabled:
            return nobody, nobody
        running = steps >= self._start_step
        attended = torch.where(running, self._most_attended(scores), self.attended[:live])
        self.attended[:live] = attended
        self.visits[:live].scatter_add_(1, attended[:, None], running[:, None].long())
        self.active[:live] = running
        self.prior[:live, :width] = self._make_prior(attended, width)

        length = self.text_length[:live]
        near_end = self.steps_near_end[:live]
        near_end.copy_(torch.where(running & ((near_end > 0) | (attended >= length - 2)), near_end + 1, near_end))
        if not self._enforce_ends:
            return nobody, nobody
        unfinished = running & (attended < length - TAIL) & (near_end <= MAY_END_STEPS)
        return unfinished, near_end >= MUST_END_STEPS

    def _most_attended(self, scores: Tensor) -> Tensor:
        """Finds the most attended text position in a window that begins at the last one, (n,)."""
        live, width = scores.shape
        length = self.text_length[:live]
        begin = self.attended[:live]
        begin = begin + (self.visits[:live].gather(1, begin[:, None])[:, 0] >= SINK_VISITS).long()
        end = torch.minimum(begin + self._window, length - TAIL)
        positions = self._positions[:width]
        inside = (positions >= begin[:, None]) & (positions < end[:, None])
        best = scores.masked_fill(~inside, -1.0).argmax(dim=1)
        return torch.where(begin < end, best, length - 1)

    def _make_prior(self, attended: Tensor, width: int) -> Tensor:
        live = attended.shape[0]
        length = self.text_length[:live]
        positions = self._positions[:width]
        first = (attended - 1).clamp_min(1)
        last = torch.minimum(attended + self._window, length - 1)
        is_open = (positions == first[:, None]) | ((positions >= attended[:, None]) & (positions <= last[:, None]))
        is_open |= length[:, None] <= SHORT_TEXT
        worn = self.visits[:live, :width] >= CLOSED_VISITS
        last_worn = torch.where(worn, positions, -1).amax(dim=1)
        is_open &= positions > last_worn[:, None]
        return torch.where(is_open, 1.0, self._epsilon)
