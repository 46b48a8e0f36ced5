"""Faults under load, in short: what `python -m triton_voice_chaos faults` does at length."""

from __future__ import annotations

from triton_voice_chaos.record import Call, settled, toll
from triton_voice_chaos.run import Asked, Run, run


def chaos(tiny, *faults: str) -> Run:
    options = ("--device", "cpu", "--parakeet", str(tiny.parakeet))
    return run(Asked(faults, ("parakeet",), seconds=3.0, serve_options=options))


def test_a_flood_and_cut_connections_touch_nobody_else_and_a_killed_model_comes_back(tiny):
    """`run` itself judges: nobody hung, every transcript is what it was before, slots and processes are given back."""
    result = chaos(tiny, "flood", "connections", "kill-parakeet")
    assert result.passed, result.as_json()["outcomes"]
    outcomes = {outcome.fault: outcome for outcome in result.outcomes}
    flood, connections, killed = (
        outcomes[name].tolls["parakeet"] for name in ("flood", "connections", "kill-parakeet")
    )
    assert flood.untouched
    assert flood.answered
    assert set(outcomes["flood"].notes["what the garbage got back"]["broken JSON"]) == {"refused"}
    assert connections.errors.keys() <= {"ServerGone", "SequenceLost"}
    assert killed.errors
    assert killed.back_s is not None
    assert any("parakeet died" in words and "restarting" in words for _, words in result.said)


def test_what_hangs_or_changes_or_stays_away_is_not_passed_over():
    """The judge itself, on calls that no healthy server gives."""

    def call(began: float, outcome: str) -> Call:
        return Call("parakeet", "direct", began, began + 0.1, outcome)

    fine = [call(t, "ok") for t in range(10)]
    assert toll(fine, 4.5).acceptable
    assert toll([*fine, call(5, "ServerGone")], 4.5).acceptable
    assert not toll([*fine, call(5, "hung")], 4.5).acceptable
    assert not toll([*fine, call(5, "wrong")], 4.5).acceptable
    assert not toll([*fine, call(20, "ServerGone")], 4.5).acceptable
    assert not toll([], 4.5).acceptable
    assert toll([*fine, call(5, "ServerGone")], 4.5).back_s == fine[6].ended - 4.5
    assert settled(fine, ("parakeet",), since=4.5, quiet_s=2, now=9)
    assert not settled(fine, ("parakeet", "magpie"), since=4.5, quiet_s=2, now=9)
