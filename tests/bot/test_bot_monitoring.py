"""What Grafana would show of a real conversation, asked of a real Prometheus."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import urllib.request

import pytest
from bot_page import served
from bot_room import QUESTION
from prometheus_stage import expressions, metrics_in, names_on, panels, prometheus

from voice_bot.settings import BotSettings

GPU = re.compile(r"nv_gpu_\w+")
"""Triton's metrics of a GPU, which a machine without one does not have."""
PROMETHEUS_OWN = {"up", "ALERTS"}
PATIENCE_S = 120


async def metrics_page(url: str) -> str:
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())


async def test_every_metric_of_dashboard_and_alerts_exists(server):
    async with served(BotSettings(server=server.grpc)) as site:
        page = await metrics_page(server.server.metrics_url) + await metrics_page(f"{site.url}/metrics")
    there = names_on(page) | PROMETHEUS_OWN
    for whose, expression in expressions():
        missing = {name for name in metrics_in(expression) - there if not GPU.fullmatch(name)}
        assert not missing, f"{whose}: there is no metric {', '.join(sorted(missing))}"


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
async def test_every_panel_shows_a_conversation(server, tmp_path):
    settings = BotSettings(server=server.grpc, reply_tokens=12, greeting="Hello.")
    async with served(settings) as site:
        metrics = server.server.metrics_url.removeprefix("http://").split("/")[0]
        async with prometheus(tmp_path, metrics, site.url.removeprefix("http://")) as watching:
            browser = site.browser()
            await browser.connect()
            await browser.until_type("bot-stopped-speaking")
            browser.microphone.speech = QUESTION
            await browser.until_server_says("turn-latency")

            async def silent() -> list[str]:
                found = []
                for panel in panels():
                    for target in panel["targets"]:
                        if any(GPU.fullmatch(name) for name in metrics_in(target["expr"])):
                            continue
                        series = await asyncio.to_thread(watching.value, target["expr"])
                        if not any(not math.isnan(float(one["value"][1])) for one in series):
                            found.append(f"{panel['title']}: {target['expr']}")
                return found

            async with asyncio.timeout(PATIENCE_S):
                while missing := await silent():
                    await asyncio.sleep(1)
            assert not missing
            rules = await asyncio.to_thread(watching.ask, "rules")
            broken = [r["name"] for g in rules["groups"] for r in g["rules"] if r["health"] not in ("ok", "unknown")]
            assert broken == []
