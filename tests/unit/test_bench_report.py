"""What every benchmark writes."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from triton_voice_bench.plot import plot
from triton_voice_bench.report import Report, cell, percentiles

CONTRACT = {"bench", "machine", "versions", "commit", "weights", "rows"}


def asr_report() -> Report:
    spread = {"p50": 12.0, "p90": 15.0, "p95": 20.0, "p99": 31.0}
    rows = [
        {"streams": n, "chunk_ms": spread, "final_ms": spread, "server_cpu_percent": 10.0 * n, "step_ms": 9.0}
        for n in (1, 4)
    ]
    rows.append({"streams": 16, "chunk_ms": None, "final_ms": None, "server_cpu_percent": None, "step_ms": None})
    return Report("asr", "random weights", {"latency_ms": 160, "mode": "paced"}, rows)


def test_percentiles_are_interpolated_and_absent_without_samples():
    assert percentiles(range(101)) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([1, 2])["p50"] == 1.5
    assert percentiles([]) is None


def test_the_file_has_the_published_fields_and_reads_back(tmp_path):
    report = asr_report()
    path = tmp_path / "new" / "asr.json"
    report.write(path)
    written = json.loads(path.read_text())
    assert set(written) >= CONTRACT
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["cpu"]
    assert written["versions"]["numpy"].startswith("1.")
    assert written["rows"][0]["chunk_ms"]["p99"] == 31.0
    assert Report.read(path) == report


def test_a_row_may_lack_what_could_not_be_measured():
    report = asr_report()
    assert cell(report.rows[0], "chunk_ms.p50") == 12.0
    assert cell(report.rows[2], "chunk_ms.p50") is None
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.table([("streams", "streams"), ("chunk ms", "chunk_ms"), ("never", "nothing")]))
    assert "12 15 20 31" in shown.get()
    assert "never" not in shown.get()


def test_the_plot_is_drawn_from_the_file(tmp_path):
    asr_report().write(tmp_path / "asr.json")
    plot(tmp_path / "asr.json", tmp_path / "plots" / "asr.png")
    assert (tmp_path / "plots" / "asr.png").read_bytes().startswith(b"\x89PNG")


def test_a_benchmark_without_a_drawing_is_refused_by_name(tmp_path):
    Report("unknown-bench", "", {}, []).write(tmp_path / "x.json")
    with pytest.raises(ValueError, match="unknown-bench"):
        plot(tmp_path / "x.json", tmp_path / "x.png")
