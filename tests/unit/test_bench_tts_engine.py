"""The synthesiser's benchmarks without a server: the simulated player, and the engine beside do_tts."""

import pytest

from triton_voice_bench import tts_engine
from triton_voice_bench.plot import plot
from triton_voice_bench.tts import Player
from triton_voice_bench.tts_engine import TtsEngineBench


def test_a_player_that_gets_its_audio_in_time_never_runs_dry():
    player = Player()
    for number in range(10):
        player.receive(seconds=0.2, now=100.0 + 0.15 * number)
    assert player.underruns == 0


def test_a_player_runs_dry_once_for_each_gap_and_goes_on():
    player = Player()
    for now in (0.0, 0.3, 0.45, 1.0):  # dry at 0.2 and at 0.7
        player.receive(seconds=0.2, now=now)
    assert player.underruns == 2


@pytest.fixture(scope="module")
def report(tiny):
    asked = TtsEngineBench((1, 2), 0.5, checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu")
    return tts_engine.run(asked, "random weights")


def test_a_row_for_each_batch_with_floor_and_do_tts_in_the_same_run(report):
    assert report.bench == "tts-engine"
    assert [row["batch"] for row in report.rows] == [1, 2]
    for row in report.rows:
        assert row["frames"] == 11
        assert set(row["step_percentiles_ms"]) == set(row["first_audio_ms"]) == {"p50", "p90", "p95", "p99"}
        for field in ("step_ms", "floor_ms", "times_floor", "rtfx", "reference_ms", "reference_rtfx", "speedup"):
            assert row[field] > 0


def test_the_floor_is_the_weights_over_the_bandwidth(report):
    floor_ms = report.settings["weight_bytes"] / report.settings["bandwidth_gb_s"] / 1e6
    assert report.rows[0]["floor_ms"] == pytest.approx(floor_ms, abs=1e-3)


def test_it_is_drawn(report, tmp_path):
    report.write(tmp_path / "tts.json")
    plot(tmp_path / "tts.json", tmp_path / "tts.png")
    assert (tmp_path / "tts.png").stat().st_size > 10_000
