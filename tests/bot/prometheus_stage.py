"""A real Prometheus that watches a test's server and bot, with the project's own configuration."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from triton_voice.paths import project_root
from triton_voice.server.process import free_port

MONITORING = project_root() / "docker/monitoring"
PATIENCE_S = 60
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def expressions() -> list[tuple[str, str]]:
    """Every query of the dashboard and every alert's: whose, and what."""
    board = json.loads((MONITORING / "grafana/dashboards/triton-voice.json").read_text())
    rules = [r for g in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for r in g["rules"]]
    shown = [(f"{p['title']}: {t['legendFormat']}", t["expr"]) for p in board["panels"] for t in p.get("targets", ())]
    return shown + [(rule["alert"], rule["expr"]) for rule in rules]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels without its rows."""
    board = json.loads((MONITORING / "grafana/dashboards/triton-voice.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def metrics_in(expression: str) -> set[str]:
    """The names of metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\()?", bare)
    return {name for name, called in found if not called and name.lower() not in WORDS}


def names_on(page: str) -> set[str]:
    """The names of metrics on a page for Prometheus."""
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{| )", page, re.MULTILINE))


class Prometheus:
    """A running one.

    Attributes:
        url: Its API.
    """

    def __init__(self, url: str):
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """Calls the API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> list[dict[str, Any]]:
        """The series of a panel's query now, Grafana's variables filled in."""
        filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        result: list[dict[str, Any]] = self.ask("query", query=filled)["result"]
        return result


@contextlib.asynccontextmanager
async def prometheus(folder: Path, triton: str, bot: str, scrape_s: int = 1) -> AsyncIterator[Prometheus]:
    """Runs Prometheus with the project's configuration, its targets and its scrape interval exchanged.

    Args:
        folder: For its configuration and data.
        triton: `host:port` of Triton's metrics.
        bot: `host:port` of the bot.
        scrape_s: Seconds between two scrapes.
    """
    shutil.copy(MONITORING / "alerts.yml", folder)
    port = free_port()
    config = (MONITORING / "prometheus.yml").read_text().replace("5s", f"{scrape_s}s")
    for name, target in {"server:8002": triton, "bot:7860": bot, "localhost:9090": f"127.0.0.1:{port}"}.items():
        assert name in config
        config = config.replace(f'"{name}"', f'"{target}"')
    (folder / "prometheus.yml").write_text(config)
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                if len((await asyncio.to_thread(running.ask, "query", query="up == 1"))["result"]) == 3:
                    break
            assert time.monotonic() < deadline, (folder / "log").read_text()
            await asyncio.sleep(0.2)
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
