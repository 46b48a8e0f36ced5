"""The attention prior: keeps each utterance moving forward through its text, for all slots at once.

Vectorised from NeMo's `MagpieTTSModel.get_most_attended_text_timestep`, `construct_inference_prior` (first segment of a
text) and `construct_multi_chunk_prior` (later ones), which loop over items with `.item()` at every frame; the results
are equal (tests/unit/test_magpie_alignment.py, test_magpie_longform.py).
"""

from __future__ import annotations

from dataclasses import dataclass
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
#: Distance from the end of the text at which "near the end" begins, in the first segment.
NEAR_END = 2


@dataclass(frozen=True)
class EndRules:
    """What the alignment says of the end of each slot's segment at this step; masks (n,).

    Attributes:
        may_not: The end-of-speech token is forbidden.
        must: It is forced.
        cut: The segment ends with this step's frames even without the token: more text follows.
    """

    may_not: Tensor
    must: Tensor
    cut: Tensor


@dataclass(frozen=True)
class SegmentPlace:
    """Where a segment's text is among what the decoder sees.

    Attributes:
        length: Tokens that the decoder sees: history, then the segment's own.
        begin: First of the segment's own.
        attended: Where the segment before left off, in these positions; 1 for the first segment.
        is_first: Nothing was spoken before.
        is_last: No more text is known to follow.
    """

    length: int
    begin: int = 0
    attended: int = 1
    is_first: bool = True
    is_last: bool = True


class AlignmentTracker:
    """Where each slot's speech is in its text, and the attention prior for its next step.

    Args:
        slots: Number of slots.
        max_text: Longest text in tokens.
        parameters: NeMo's `ModelInferenceParameters`.
        chunked: NeMo's `ChunkedInferenceConfig`: what differs in later segments.
        device: Of all tensors.
    """

    def __init__(self, slots: int, max_text: int, parameters: Any, chunked: Any, device: torch.device) -> None:
        self._window: int = parameters.attention_prior_lookahead_window
        self._epsilon: float = parameters.attention_prior_epsilon
        self._enabled: bool = parameters.apply_attention_prior
        self._start_step: int = parameters.start_prior_after_n_audio_steps
        self._enforce_ends: bool = not parameters.ignore_finished_sentence_tracking
        self._chunked = chunked
        self._positions = torch.arange(max_text, device=device)
        # By distance to the attended position: suppressed, the one before, itself, the ones ahead, suppressed.
        suppressed = self._epsilon**2
        self._weights = torch.tensor([suppressed, *chunked.prior_weights, suppressed], device=device)
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
        #: Whether the slot's segment is the first of its text, and whether it is the last, (slots,).
        self.is_first = torch.ones(slots, dtype=torch.bool, device=device)
        self.is_last = torch.ones(slots, dtype=torch.bool, device=device)

    def _state(self) -> tuple[Tensor, ...]:
        placed = self.text_length, self.is_first, self.is_last
        return *placed, self.attended, self.visits, self.steps_near_end, self.prior, self.active

    def reset(self, slot: int, place: SegmentPlace) -> None:
        """Begins a segment in a slot."""
        self.text_length[slot] = place.length
        self.is_first[slot], self.is_last[slot] = place.is_first, place.is_last
        # A segment that was cut before its speech arrived anywhere leaves off outside of what the next one sees, where
        # upstream fails with an IndexError: go on with the new text.
        self.attended[slot] = place.attended if place.attended >= 0 else place.begin
        self.visits[slot] = 0
        self.steps_near_end[slot] = 0
        self.prior[slot] = 1
        self.active[slot] = not place.is_first and self._enabled
        if not place.is_first:
            ahead = self._chunked.prior_weights_init[: place.length - place.begin]
            self.prior[slot] = self._epsilon
            self.prior[slot, : place.begin] = self._epsilon**2
            self.prior[slot, place.begin : place.begin + len(ahead)] = torch.tensor(ahead, device=self.prior.device)

    def move(self, source: int, target: int) -> None:
        """Copies a slot's state."""
        for tensor in self._state():
            tensor[target] = tensor[source]

    def update(self, scores: Tensor, steps: Tensor) -> EndRules:
        """Follows the newest frame and makes the prior for the next.

        Args:
            scores: Attention of the newest frame over the text, (n, text), for slots 0 to n-1; `text` may be anything
                from the longest live text to `max_text`.
            steps: Steps of the segment taken before this one, (n,).

        Returns:
            What this means for the ends of the segments.
        """
        live, width = scores.shape
        is_first, is_last = self.is_first[:live], self.is_last[:live]
        running = ~is_first | (steps >= self._start_step)
        attended = torch.where(running, self._most_attended(scores), self.attended[:live])
        self.attended[:live] = attended
        nobody = torch.zeros_like(running)
        if not self._enabled:
            return EndRules(nobody, nobody, nobody)
        self.visits[:live].scatter_add_(1, attended[:, None], running[:, None].long())
        self.active[:live] = running
        prior = torch.where(is_first[:, None], self._first_prior(attended, width), self._later_prior(attended, width))
        self.prior[:live, :width] = prior

        chunked, length, near_end = self._chunked, self.text_length[:live], self.steps_near_end[:live]
        is_near = attended >= length - torch.where(is_first, NEAR_END, chunked.near_end_threshold)
        near_end.copy_(torch.where(running & ((near_end > 0) | is_near), near_end + 1, near_end))
        cut = ~is_last & (near_end >= chunked.forceful_chunk_end_threshold)
        if not self._enforce_ends:
            return EndRules(nobody, nobody, cut)
        later_limit = torch.where(is_last, chunked.finished_limit_with_eot, chunked.finished_limit_without_eot)
        limit = torch.where(is_first, MAY_END_STEPS, later_limit)
        may_not = running & (attended < length - TAIL) & (near_end <= limit)
        must = near_end >= torch.where(is_first, MUST_END_STEPS, chunked.finished_limit_with_eot)
        return EndRules(may_not, must, cut)

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

    def _first_prior(self, attended: Tensor, width: int) -> Tensor:
        """The prior of first segments: a window is open, the rest is dimmed, (n, width)."""
        live = attended.shape[0]
        length = self.text_length[:live]
        positions = self._positions[:width]
        first = (attended - 1).clamp_min(1)
        last = torch.minimum(attended + self._window, length - 1)
        is_open = (positions == first[:, None]) | ((positions >= attended[:, None]) & (positions <= last[:, None]))
        is_open |= length[:, None] <= SHORT_TEXT
        is_open &= positions > self._last_worn(live, width)
        return torch.where(is_open, 1.0, self._epsilon)

    def _later_prior(self, attended: Tensor, width: int) -> Tensor:
        """The prior of later segments: fading ahead, suppressed behind and far ahead, (n, width)."""
        live = attended.shape[0]
        positions = self._positions[:width]
        distance = positions - attended[:, None] + 2  # 1 is the position before, 2 the attended one
        prior = self._weights[distance.clamp(0, len(self._weights) - 1)]
        is_short = self.text_length[:live, None] <= self._chunked.short_sentence_threshold
        prior = torch.where(is_short, 1.0, prior)
        # Position 0 is never the one before.
        prior = torch.where((attended[:, None] == 1) & (positions == 0) & ~is_short, self._weights[0], prior)
        return torch.where(positions <= self._last_worn(live, width, first=1), self._epsilon**2, prior)

    def _last_worn(self, live: int, width: int, first: int = 0) -> Tensor:
        """The last text position, from `first` on, that was attended too often; -1 if there is none, (n, 1)."""
        positions = self._positions[:width]
        worn = (self.visits[:live, :width] >= CLOSED_VISITS) & (positions >= first)
        return torch.where(worn, positions, -1).amax(dim=1, keepdim=True)
