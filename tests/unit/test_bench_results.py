"""`bench all`, `report`, `compare` and `capacity` on a real file of a machine (a quick run on two busy cores)."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from triton_voice.cli import bench, bench_results
from triton_voice.errors import InvalidInput
from triton_voice_bench import capacity, capacity_estimate, capacity_view, compare, hardware, markdown, suite
from triton_voice_bench.capacity import Assumptions, Curve
from triton_voice_bench.report import Report
from triton_voice_bench.results import BENCHES, Entry, Results, row_key
from triton_voice_bench.suite import Job, Source

MACHINE = Path(__file__).parent / "results" / "two-busy-cores.json"
COMMAND = Path(sys.executable).parent / "triton-voice"


@pytest.fixture
def results():
    return Results.read(MACHINE)


def run(*arguments):
    return subprocess.run([str(COMMAND), "bench", *map(str, arguments)], capture_output=True, text=True, timeout=120)


# The file ----------------------------------------------------------------------------------------------------------


def test_the_file_holds_every_benchmark_in_the_published_format_and_reads_back(results, tmp_path):
    content = json.loads(MACHINE.read_text())
    assert set(content) >= {"machine", "versions", "commit", "benches"}
    assert tuple(content["benches"]) == BENCHES
    for entry in content["benches"].values():
        assert set(entry["report"]) >= {"bench", "machine", "versions", "commit", "weights", "rows"}
        assert entry["command"].startswith("triton-voice bench ")
        assert entry["busy"] is True, "others were at work, and it was noticed"
    results.write(tmp_path / "again.json")
    again = Results.read(tmp_path / "again.json")
    assert again.benches == results.benches


def test_a_single_benchmarks_file_is_taken_too_and_anything_else_refused(results, tmp_path):
    results.report("asr").write(tmp_path / "asr.json")
    single = Results.read(tmp_path / "asr.json")
    assert list(single.benches) == ["asr"] and single.report("asr").rows == results.report("asr").rows
    (tmp_path / "x.json").write_text('{"rows": 3}')
    for path in (tmp_path / "x.json", tmp_path / "nowhere.json"):
        with pytest.raises(InvalidInput, match=path.name):
            Results.read(path)


# bench all ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_of_commands_that_a_person_could_type(results):
    for has_gpu in (False, True):
        for mode in suite.MODES:
            jobs = suite.plan(mode, Source(models=Path("/weights")), has_gpu)
            assert tuple(job.bench for job in jobs) == BENCHES
    commands = typer.main.get_command(bench.app).commands
    for source in (Source(server="host:1", metrics="http://host/metrics"), Source(models=Path("/w"), device="cpu")):
        for job in (*suite.plan("quick", source, False), *suite.plan("standard", source, True)):
            known = {option for parameter in commands[job.bench].params for option in parameter.opts}
            known |= {option for parameter in commands[job.bench].params for option in parameter.secondary_opts}
            assert {option for option in job.options if option.startswith("--")} <= known, job.command
    with pytest.raises(InvalidInput, match="nothing"):
        suite.plan("quick", Source(), False, only=("nothing",))


def test_the_time_that_a_command_took_is_the_next_estimate_and_what_is_measured_is_not_again(results):
    jobs = suite.plan("quick", Source(), False, earlier=results)
    assert [job.estimate_s for job in jobs] == [results.benches[b].circumstances["seconds"] for b in BENCHES]
    commit = results.report("asr").commit
    assert suite.pending(jobs, results, commit) == []
    results.benches["tts"].failure = "it fell over"
    results.benches["llm"].command = "triton-voice bench llm --tokens 9"
    assert [job.bench for job in suite.pending(jobs, results, commit)] == ["tts", "llm"]
    assert len(suite.pending(jobs, results, "another commit")) == len(BENCHES)


def test_one_that_fails_leaves_the_earlier_result_and_does_not_stop_the_others(results, tmp_path):
    before = copy.deepcopy(results.benches)
    jobs = [Job("asr", ("--streams", "none"), "quick", 1.0), Job("tts", ("--streams", "0"), "quick", 1.0)]
    seen = []
    watcher = suite.Watcher(begins=lambda job: seen.append(job.bench))
    failed = suite.run(jobs, tmp_path / "m.json", tmp_path / "logs", results, watcher)
    assert failed == seen == ["asr", "tts"]
    written = Results.read(tmp_path / "m.json")
    assert written.report("asr") == before["asr"].report and written.benches["llm"] == before["llm"]
    assert "give positive numbers" in written.benches["asr"].failure
    assert "logs/asr.log" in written.benches["asr"].failure


def test_a_benchmark_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "TIMEOUT_LEAST_S", 0.0)
    entry = suite.execute(Job("asr", ("--server", "127.0.0.1:9"), "quick", 0.01), tmp_path / "asr.log")
    assert entry.report is None and "still at it" in entry.failure


def test_other_work_on_the_machine_is_noticed(tmp_path):
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hardware.psutil.cpu_count())
    ]
    try:
        with hardware.observed() as seen:
            subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert seen.busy_before_percent > hardware.BUSY_BEFORE_PERCENT
    assert any("in use before" in warning for warning in seen.warnings())
    assert seen.as_json()["load_before"] and seen.seconds > 0


def test_a_spark_shows_no_memory_of_its_own_for_the_gpu_and_a_card_does(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for printed, memory, power in (
        ("NVIDIA GB10, 580.95.05, [N/A], [N/A], P8", None, {"gpu_pstate": "P8"}),
        ("NVIDIA H200, 580.159.04, 143771, 700.00, P0", 140.4, {"gpu_power_limit_w": 700.0, "gpu_pstate": "P0"}),
    ):
        tool.write_text(f"#!/bin/sh\necho '{printed}'\n")
        tool.chmod(0o755)
        machine = hardware.machine()
        assert machine["gpu"] == printed.split(", ")[0] and machine["driver"].startswith("580.")
        assert (machine["gpu_memory_gib"], machine["gpus"]) == (memory, 1)
        assert power.items() <= machine["power"].items()


# The page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_benchmark_its_command_its_doubts_and_its_plot(results, tmp_path):
    results.benches["llm"].failure = "the engine died (exit code 1)"
    page = markdown.write(results, tmp_path).read_text()
    for name, entry in results.benches.items():
        assert f"`{entry.command}`" in page
        assert f"| {name} | quick |" in page
    assert page.count("To be doubted") == len(results.benches)
    assert "the newest attempt failed: the engine died" in page
    assert "What the machine can serve" in page
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"!\[", page)) == len(BENCHES)  # memory has none, the capacity has one


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="no benchmark has a result"):
        markdown.write(Results("new", {"asr": Entry(failure="no")}), tmp_path)


# compare -----------------------------------------------------------------------------------------------------------


def changed(results, bench, **factors):
    """A copy in which some figures of a benchmark are multiplied."""
    other = copy.deepcopy(results)
    other.name = "other"
    for row in other.report(bench).rows:
        for name, factor in factors.items():
            value = row[name]
            row[name] = {k: v * factor for k, v in value.items()} if isinstance(value, dict) else value * factor
    return other


def test_the_same_is_within_noise(results):
    found = compare.compare(results, results)
    assert {difference.verdict for difference in found.differences} == {"within noise"}
    assert {difference.bench for difference in found.differences} == set(BENCHES)


def test_more_time_is_worse_and_more_speed_is_better(results):
    slower = compare.compare(results, changed(results, "llm", first_token_ms=1.5, tokens_per_s=0.5))
    assert {d.figure for d in slower.regressions(0.1)} == {
        "first_token_ms.p50",
        "first_token_ms.p95",
        "tokens_per_s",
    }
    assert slower.regressions(0.6) == []
    faster = compare.compare(results, changed(results, "llm", first_token_ms=0.5, tokens_per_s=1.5))
    assert faster.count("better") == slower.count("worse") and faster.count("worse") == 0
    small = compare.compare(results, changed(results, "llm", first_token_ms=1.05))
    assert small.count("worse") == 0
    assert compare.compare(results, changed(results, "llm", first_token_ms=1.05), 0.01).count("worse") > 0


def test_what_one_of_them_lacks_is_told_and_other_settings_are_not_compared(results):
    other = copy.deepcopy(results)
    other.name = "other"
    del other.benches["turn"]
    other.report("asr").settings["latency_ms"] = 560
    lost = other.report("tts").rows.pop()
    other.report("llm").machine["gpu"] = "NVIDIA GB10"
    other.report("llm").weights = "the published checkpoints"
    other.benches["llm"].began = "9999"
    found = compare.compare(results, other)
    notes = "\n".join(found.notes)
    assert "turn: other has no result" in notes
    assert "asr: not compared, because the settings differ: latency_ms 160 and 560" in notes
    assert "machine: gpu None and NVIDIA GB10" in notes and "llm: weights: " in notes
    alone = [d for d in found.differences if d.verdict == "only in the first"]
    assert [(d.bench, d.row) for d in alone] == [("tts", f"streams {dict(row_key(lost))['streams']}")]


def test_the_command_ends_with_1_on_a_regression_and_writes_markdown(results, tmp_path):
    changed(results, "asr", final_ms=2.0).write(tmp_path / "slower.json")
    table = tmp_path / "compared.md"
    done = run("compare", MACHINE, tmp_path / "slower.json", "--fail-on-regression", "10%", "--markdown", table)
    assert done.returncode == 1, done.stdout
    assert "worse by more than 10%" in done.stderr and "final_ms.p50" in done.stderr
    assert "| asr | streams 1 | final_ms.p50 |" in table.read_text()


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_a_share_may_be_told_in_percent(text, share):
    assert bench_results.share("--threshold", text) == pytest.approx(share)
    with pytest.raises(InvalidInput, match="--threshold much"):
        bench_results.share("--threshold", "much")


# capacity ----------------------------------------------------------------------------------------------------------


def test_a_step_is_interpolated_between_what_was_measured_and_goes_on_beyond():
    curve = Curve.of([(8, 20.0), (1, 6.0), (4, 12.0)], "asr-engine")
    assert [curve.at(size) for size in (0.5, 1, 4, 6, 8, 16)] == pytest.approx([6, 6, 12, 16, 20, 36])
    assert Curve.of([(1, 9.0), (4, 5.0)], "x").at(4) == 9.0, "a larger batch counts as no faster"
    assert Curve.of([], "x") is None


def test_callers_keep_within_two_steps():
    flat = Curve.of([(1, 10.0), (100, 109.0)], "x")  # 9 + n
    callers = capacity.callers(flat, 160.0, 100.0)
    assert callers == int(41 * 160 / 50)  # 2 (9 + 41) = 100
    assert capacity.callers(flat, 160.0, 19.0) == 0
    assert capacity.callers(flat, 160.0, 100.0, 0.5) == callers // 2


def test_conversations_fit_the_planned_share_and_not_one_more(results):
    found = capacity_estimate.estimate(results, Assumptions(utilisation=0.6, deviations=1.0))
    assert not found.missing and set(found.demands) == {"parakeet", "magpie", "nemotron"}
    if "memory" not in found.bound_by:
        assert sum(found.load(found.conversations).values()) <= 0.6 < sum(found.load(found.conversations + 1).values())
    assert found.memory_limit >= found.conversations
    easier = capacity_estimate.estimate(
        results, Assumptions(utilisation=0.6, deviations=1.0, turn_s=60.0, bot_share=0.05)
    )
    assert easier.conversations > found.conversations
    shown = "\n".join(capacity_view.markdown(found))
    assert "60 % of the device's time" in shown and "other work" in shown


def test_the_model_gives_way_to_what_the_server_reached(results):
    report = results.report("asr")
    agreed = capacity_estimate.estimate(results).demands["parakeet"].check
    assert agreed.factor == 1.0 or agreed.failed is not None
    report.rows = [{**report.rows[0], "streams": n, "kept_up": n if n < 3 else 0} for n in (1, 2, 3)]
    found = capacity_estimate.estimate(results).demands["parakeet"]
    assert (found.check.served, found.check.failed) == (2, 3)
    assert found.check.factor > 1.0 and "too optimistic" in found.check.verdict
    assert found.alone <= 3


def test_another_machine_is_only_estimated_from_a_gpu_and_says_so(results):
    with pytest.raises(InvalidInput, match="processor"):
        capacity_estimate.estimate(results, other=capacity_estimate.SPARK)
    engine = results.report("asr-engine")
    engine.settings |= {"device": "cuda", "bandwidth_gb_s": 4117.0, "weight_bytes": 1_234_857_730}
    with pytest.raises(InvalidInput, match="not the published shapes"):
        capacity_estimate.estimate(results, other=capacity_estimate.SPARK)
    engine.weights = "full checkpoints, random weights"
    best, worst = (
        capacity_estimate.estimate(results, other=capacity_estimate.SPARK, bound=bound)
        for bound in capacity_estimate.BOUNDS
    )
    for found in (best, worst):
        assert capacity_estimate.ESTIMATE in capacity_view.summary(found)[0] and "273" in found.estimate
    here = Report(**vars(engine)).rows[0]["step_ms"]
    assert worst.demands["parakeet"].curve.at(1) == pytest.approx(here * 4117 / 273)
    assert best.demands["parakeet"].curve.at(1) == pytest.approx(here + 1234.857730 * (1 / 273 - 1 / 4117), rel=1e-3)


def test_what_was_not_measured_is_named_with_its_command(results, tmp_path):
    results.report("asr-engine").write(tmp_path / "asr-engine.json")
    done = run("capacity", tmp_path / "asr-engine.json", "--plot", tmp_path / "capacity.png")
    assert done.returncode == 0, done.stderr
    assert "bench all --only llm" in done.stdout and "parakeet" in done.stdout
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
