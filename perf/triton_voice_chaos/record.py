"""What clients saw, call by call, and what follows from it for one fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

OK = "ok"
HUNG = "hung"
"""Not answered, not even by an error, within the limit: the one thing that may never happen."""
WRONG = "wrong"
"""Answered as if all were well, but not with what the same request gave before the fault: lost in silence."""


@dataclass(frozen=True)
class Call:
    """One request as its client saw it. Times are the machine's monotonic clock, the same for all processes.

    Attributes:
        model: Whom it asked.
        client: Which group of clients sent it.
        began: When it was sent, seconds.
        ended: When it was answered or failed.
        outcome: `OK`, `HUNG`, `WRONG`, or the class of the SDK's error.
        detail: The error's sentence.
        cut: A stream of speech, or a reply, had already begun when it failed.
    """

    model: str
    client: str
    began: float
    ended: float
    outcome: str
    detail: str = ""
    cut: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was answered rightly."""
        return self.outcome == OK


@dataclass
class Toll:
    """What one fault cost the clients of one model.

    Attributes:
        answered: Calls that were answered rightly.
        errors: Calls that failed, by the SDK's error class.
        hung: Calls that were never answered.
        wrong: Calls answered wrongly.
        cut: Streams and replies that had begun and were cut off.
        first_error_s: From the fault to the first error that a client got; None if there was none.
        back_s: From the fault to the first right answer to a call that was sent after the last failure; None if nothing
            failed, or if it never came.
        came_back: Whether it answers again; true for a model that never stopped.
        examples: One sentence of each error class.
    """

    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    wrong: int = 0
    cut: int = 0
    first_error_s: float | None = None
    back_s: float | None = None
    came_back: bool = True
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def untouched(self) -> bool:
        """Whether no call failed in any way."""
        return not (self.errors or self.hung or self.wrong)

    @property
    def acceptable(self) -> bool:
        """Whether nothing hung, nothing was lost in silence, and the model came back."""
        return not self.hung and not self.wrong and self.came_back

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain objects."""
        return {**vars(self), "errors": dict(self.errors)}


def toll(calls: Iterable[Call], fault_at: float) -> Toll:
    """Adds up the calls of one model that ended after the fault.

    Args:
        calls: All of them, of one model, in any order.
        fault_at: When the fault was made.
    """
    result, failed = Toll(), list[Call]()
    after = sorted((call for call in calls if call.ended > fault_at), key=lambda call: call.ended)
    for call in after:
        if call.ok:
            result.answered += 1
            continue
        failed.append(call)
        result.cut += call.cut
        if call.outcome == HUNG:
            result.hung += 1
        elif call.outcome == WRONG:
            result.wrong += 1
        else:
            result.errors[call.outcome] += 1
        result.examples.setdefault(call.outcome, call.detail)
    if failed:
        result.first_error_s = failed[0].ended - fault_at
        again = [call.ended for call in after if call.ok and call.began > failed[-1].ended]
        result.came_back = bool(again)
        result.back_s = min(again) - fault_at if again else None
    else:
        result.came_back = result.answered > 0
    return result


def settled(calls: Sequence[Call], models: Sequence[str], since: float, quiet_s: float, now: float) -> bool:
    """Tells whether every model answers again and nothing has failed for a while.

    Args:
        calls: What was seen so far.
        models: Who has to answer.
        since: When the fault was over.
        quiet_s: How long nothing may have failed.
        now: The time.
    """
    failures = [call.ended for call in calls if not call.ok and call.ended > since]
    last = max(failures, default=since)
    if now - last < quiet_s:
        return False
    return all(any(call.ok and call.model == model and call.began > last for call in calls) for model in models)
