"""What strangers can ask of the bot's web server, how much, and what it tells about itself."""

from __future__ import annotations

import asyncio
import io
import urllib.parse

import httpx
import pytest
from bot_page import served
from loguru import logger
from prometheus_stage import names_on

from triton_voice.paths import project_root
from voice_bot import logs
from voice_bot.limits import MAX_ADDRESSES, MAX_BODY, WINDOW_S, RateLimit
from voice_bot.settings import BotSettings

TOKEN, PASSWORD = "a-token-that-nobody-knows", "a-turn-password"


def away(**settings) -> BotSettings:
    return BotSettings(server="127.0.0.1:9", **settings)


def from_(address: str) -> dict[str, str]:
    """As a proxy on this machine tells of somebody else's request."""
    return {"X-Forwarded-For": address}


async def test_one_address_cannot_take_every_line_and_this_machine_can():
    async with served(away(max_conversations=4, max_per_address=1)) as site:
        greedy, more, neighbour = (site.browser_from(address) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2"))
        here, also_here = site.browser(), site.browser()
        assert (await greedy.connect()).status_code == 200
        refused = await more.connect()
        assert refused.status_code == 503 and "from your address" in refused.json()["detail"]
        for browser in (neighbour, here, also_here):
            assert (await browser.connect()).status_code == 200
        page = (await site.http.get("/metrics")).text
        assert 'triton_voice_bot_refusals_total{reason="address"} 1.0' in page
        assert "triton_voice_bot_conversations_active 4.0" in page
        assert "triton_voice_bot_conversations_limit 4.0" in page
        await greedy.close()
        async with asyncio.timeout(60):
            while (await site.browser_from("10.0.0.1").connect()).status_code != 200:
                await asyncio.sleep(0.2)


async def test_a_token_cannot_be_guessed_at_speed():
    async with served(away(token=TOKEN, requests_per_minute=5)) as site:
        guesses = [
            await site.http.get("/api/session/x", headers={**from_("10.0.0.1"), "Authorization": f"Bearer {n}"})
            for n in range(8)
        ]
        assert [g.status_code for g in guesses] == [401] * 5 + [429] * 3
        assert 0 < int(guesses[-1].headers["retry-after"]) <= WINDOW_S
        assert (await site.http.get("/api/session/x", headers=from_("10.0.0.2"))).status_code == 401
        assert (await site.http.get("/metrics")).status_code == 401
        page = await site.http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert {"triton_voice_bot_answer_seconds_bucket", "triton_voice_bot_stage_seconds_count"} <= names_on(page.text)


def test_an_address_gets_its_minute_back_and_many_addresses_take_little_memory():
    now = [0.0]
    rate = RateLimit(2, lambda: now[0])
    assert [rate.wait_s("a"), rate.wait_s("a")] == [0, 0]
    now[0] = 20.0
    assert rate.wait_s("a") == WINDOW_S - 20 and rate.wait_s("b") == 0
    now[0] = WINDOW_S
    assert rate.wait_s("a") == 0
    for n in range(2 * MAX_ADDRESSES):
        rate.wait_s(str(n))
    assert len(rate._asked) == MAX_ADDRESSES


async def test_a_request_that_is_too_long_is_refused_before_it_is_read():
    async with served(away()) as site:
        sent = 0

        async def endless():
            nonlocal sent
            while sent < 100 * MAX_BODY:
                sent += 65536
                yield b"x" * 65536

        try:
            answer = await site.http.post("/api/offer", content=endless(), headers={"Content-Type": "application/json"})
            assert answer.status_code == 413
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            pass  # it hung up while we were still sending, which is as good
        assert sent < 100 * MAX_BODY
        assert (await site.http.get("/api/config")).status_code == 200
        many = {"pc_id": "x", "candidates": [{"candidate": "", "sdp_mid": "0", "sdp_mline_index": 0}] * 1000}
        assert (await site.http.patch("/api/offer", json=many)).status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", ""])
async def test_a_page_of_another_site_cannot_reach_the_bot_under_its_own_name(host):
    async with served(away()) as site:
        assert (await site.http.get("/api/config", headers={"Host": host})).status_code == 400
        assert (await site.http.get("/api/config", headers={"Host": "localhost:1234"})).status_code == 200
    async with served(away(allowed_hosts="spark.lan")) as site:
        assert (await site.http.get("/", headers={"Host": "spark.lan"})).status_code == 200
        assert (await site.http.get("/", headers={"Host": "localhost"})).status_code == 400


@pytest.mark.parametrize(
    "path", ["/ui/../voice_bot/web.py", "/ui/%2e%2e/bot.py", "/ui/..%2fbot.py", "/ui//etc/passwd", "/ui/%5c..%5cbot.py"]
)
async def test_the_page_server_hands_out_the_page_alone(path):
    async with served(away()) as site:
        url = urllib.parse.urlsplit(site.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)  # as it is: httpx would tidy the path
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.split()[1] in (b"404", b"400"), answer[:200]
        assert (project_root() / "bot/bot.py").read_bytes()[:40] not in answer


async def test_secrets_are_neither_shown_nor_logged():
    settings = away(token=TOKEN, turn_password=PASSWORD, turn_username="u", stun="turn:a:1")
    out = io.StringIO()
    logs.set_up("json", verbose=True, out=out)
    try:
        async with served(settings) as site:
            browser = site.browser(TOKEN)
            await browser.connect(session="somebody-elses-session")
            await site.browser("wrong").connect()
            logger.info(f"settings: {settings!r} {settings}")
            session = browser.session
        told = out.getvalue()
    finally:
        logger.remove()
    assert "settings" in told
    for secret in (TOKEN, PASSWORD, str(session)):
        assert secret not in told
