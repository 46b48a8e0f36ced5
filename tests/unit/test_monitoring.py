"""The files for Prometheus and Grafana: valid, consistent with each other, and the alerts go off when they should."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from itertools import combinations

import pytest
import yaml

from triton_voice.paths import project_root

MONITORING = project_root() / "docker/monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is in Debian's package prometheus")


def dashboard():
    return json.loads((MONITORING / "grafana/dashboards/triton-voice.json").read_text())


def promtool(*words: str) -> None:
    done = subprocess.run([str(PROMTOOL), *words], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_its_configuration_and_the_alerts():
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_each_alert_goes_off_when_it_should_and_none_on_a_good_day():
    promtool("test", "rules", "alerts_test.yml")
    fired = (MONITORING / "alerts_test.yml").read_text()
    for alert in alerts():
        assert alert["alert"] in fired, f"{alert['alert']} is not tried"


def alerts():
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_dashboard_is_the_one_that_its_program_makes():
    made = runpy.run_path(str(MONITORING / "dashboard.py"))["dashboard"]()
    assert made == dashboard(), "run `python docker/monitoring/dashboard.py`"


def test_grafana_finds_the_dashboard_and_its_source():
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/triton-voice.yaml").read_text())
    (source,) = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
    assert source["type"] == "prometheus" and source["isDefault"]
    board = dashboard()
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}
    ids = [panel["id"] for panel in board["panels"]]
    titles = [panel["title"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and len(titles) == len(set(titles))
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat") and panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(letters) == len(set(letters))
        for thing in (panel, *panel["targets"]):
            assert thing["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_lies_on_another_or_beside_the_page():
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def test_the_collectors_pipeline_is_made_of_what_it_defines():
    collector = yaml.safe_load((MONITORING / "otel-collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind]), f"{kind} are not all defined"
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")
