"""When a client that plays at once has run dry."""

from __future__ import annotations

import importlib.util

from triton_voice.paths import project_root

SPEC = importlib.util.spec_from_file_location("playout", project_root() / "model_repository/magpie/1/playout.py")


def test_only_a_piece_that_comes_after_the_silence_began_is_late():
    assert SPEC is not None and SPEC.loader is not None
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    now = [10.0]
    playout = module.Playout(lambda: now[0])
    told = []
    for moment, audio_s in ((10.0, 0.1), (10.05, 0.2), (10.29, 0.1), (10.45, 0.5), (10.9, 0.1), (11.04, 0.1)):
        now[0] = moment
        told.append(playout.sent(audio_s))
    # 10.0 plays to 10.1, then to 10.3, then to 10.4; dry until 10.45, which plays to 10.95, then to 11.05.
    assert told == [False, False, False, True, False, False]
