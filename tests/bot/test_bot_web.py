"""The web app: what the page needs, who may converse, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import wave

import numpy as np
import pytest
from bot_page import served
from bot_room import QUESTION

from bot import Conversation
from voice_bot.settings import BotSettings

NOBODY = "127.0.0.1:9"
"""No server is there."""


def away(**settings) -> BotSettings:
    return BotSettings(server=NOBODY, **settings)


PATIENCE_S = 120


async def test_the_page_and_what_it_needs():
    async with served(away(max_conversations=3, greeting="Hi.", notice="Careful.", stun="stun:a:1")) as site:
        page = await site.http.get("/")
        assert page.status_code == 200 and "<html" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-cache"
        assert (await site.http.get("/ui/app.js")).status_code == 200
        assert (await site.http.get("/ui/../web.py")).status_code == 404
        assert (await site.http.get("/api/config")).json() == {
            "voices": ["aria", "jason", "john", "leo", "sofia"],
            "languages": ["en"],
            "voice": "aria",
            "language": "en",
            "ice_servers": [{"urls": "stun:a:1"}],
            "greeting": "Hi.",
            "limit": 3,
            "active": 0,
            "auth": False,
            "notice": "Careful.",
        }


async def test_health_tells_whether_the_server_answers(server):
    async with served(away()) as site:
        assert (await site.http.get("/api/health")).json() == {"status": "waiting", "models": {}}
    async with served(BotSettings(server=server.grpc)) as site:
        health = (await site.http.get("/api/health")).json()
        assert health == {"status": "ok", "models": {"parakeet": True, "nemotron": True, "magpie": True}}


async def test_turn_servers_and_their_password_are_for_those_with_the_token():
    settings = away(token="s3cret", stun="stun:a:1,turn:b:2", turn_username="u", turn_password="p")
    async with served(settings) as site:
        assert (await site.http.get("/api/config")).json()["ice_servers"] == [{"urls": "stun:a:1"}]
        trusted = (await site.browser("s3cret").http.get("/api/config")).json()
        assert trusted["ice_servers"] == [
            {"urls": "stun:a:1"},
            {"urls": "turn:b:2", "username": "u", "credential": "p"},
        ]
        assert trusted["auth"] is True


async def test_without_the_token_nobody_converses_or_reads():
    async with served(away(token="s3cret")) as site:
        for token in (None, "wrong", "s3cret2"):
            refused = await site.browser(token).connect()
            assert refused.status_code == 401 and refused.json() == {"detail": "This bot wants a token."}
        assert (await site.http.get("/api/session/x")).status_code == 401
        assert (await site.http.patch("/api/offer", json={"pc_id": "x", "candidates": []})).status_code == 401
        assert (await site.browser("s3cret").connect()).status_code == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"sdp": "nonsense", "type": "offer"}, "cannot be understood"),
        ({"sdp": "v=0", "type": "offer", "request_data": {"voice": "bob"}}, "There is no voice 'bob'; there are aria"),
        ({"sdp": "v=0", "type": "offer", "request_data": {"language": "xx"}}, "There is no language 'xx'"),
        ({"sdp": "v=0", "type": "answer"}, "offer"),
        ({"type": "offer"}, "sdp"),
    ],
)
async def test_bad_offers_are_refused_and_take_no_place(body, sentence):
    async with served(away(max_conversations=1)) as site:
        refused = await site.http.post("/api/offer", json=body)
        assert refused.status_code == 422 and sentence in refused.text
        assert site.sessions.active == 0
        assert (await site.browser().connect()).status_code == 200


async def test_candidates_of_unknown_connections_and_nonsense_are_refused():
    async with served(away()) as site:
        nobody = {"pc_id": "x", "candidates": []}
        assert (await site.http.patch("/api/offer", json=nobody)).status_code == 404
        browser = site.browser()
        await browser.connect()
        candidate = {"candidate": "nonsense", "sdp_mid": "0", "sdp_mline_index": 0}
        wrong = await site.http.patch("/api/offer", json={"pc_id": browser.pc_id, "candidates": [candidate]})
        assert wrong.status_code == 422
        candidate["candidate"] = "candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host"
        right = await site.http.patch("/api/offer", json={"pc_id": browser.pc_id, "candidates": [candidate]})
        assert right.status_code == 200


async def test_when_all_lines_are_busy_the_next_one_is_refused_until_somebody_goes():
    async with served(away(max_conversations=1)) as site:
        first, second = site.browser(), site.browser()
        await first.connect()
        await first.until_type("bot-ready")
        refused = await second.connect()
        assert refused.status_code == 503 and "All lines are busy" in refused.json()["detail"]
        assert (await site.http.get("/api/config")).json()["active"] == 1
        await first.close()
        await site.until_free()
        assert (await site.browser().connect()).status_code == 200


async def test_everything_of_a_conversation_is_freed_when_its_browser_goes():
    async with served(away()) as site:
        async with asyncio.timeout(PATIENCE_S):  # those of other tests, which only the garbage collector still knows
            while _conversations():
                await asyncio.sleep(0.1)
        browser = site.browser()
        before = asyncio.all_tasks()
        await browser.connect()
        await browser.until_type("bot-ready")
        assert _conversations() == 1
        await browser.close()
        await site.until_free()
        async with asyncio.timeout(PATIENCE_S):  # Pipecat's watch over the audio track ends by itself, seconds later
            while _conversations() or asyncio.all_tasks() - before:
                await asyncio.sleep(0.1)


async def test_a_conversation_in_the_browser(server, tmp_path):
    settings = BotSettings(server=server.grpc, reply_tokens=8, greeting="Hello.", record=tmp_path)
    async with served(settings) as site:
        browser = site.browser()
        await browser.connect()
        await browser.until_type("bot-ready")
        await browser.until_type("bot-started-speaking")
        await browser.until_type("bot-stopped-speaking")
        assert browser.loudest > 100, "the greeting could not be heard"
        browser.microphone.speech = QUESTION
        heard = await browser.until(lambda m: m.get("type") == "user-transcription" and m["data"]["final"])
        latency = await browser.until_server_says("turn-latency")
        assert latency["turn"] == 1
        assert sum(latency["stages"].values()) == pytest.approx(latency["total_ms"], abs=0.5)
        messages = (await site.http.get(f"/api/session/{browser.session}")).json()["messages"]
        assert messages[:2] == [
            {"role": "assistant", "text": "Hello."},
            {"role": "user", "text": heard["data"]["text"]},
        ]
        browser.send("client-message", {"t": "interrupt"})
        await browser.until(lambda m: m.get("type") in ("bot-interrupted", "bot-stopped-speaking"))

        # a reload: the same conversation over a new connection, before the old one is known to be gone
        reloaded = site.browser()
        assert (await reloaded.connect(session=browser.session)).status_code == 200
        assert reloaded.session == browser.session
        await reloaded.until_type("bot-ready")
        assert site.sessions.active == 1
        again = (await site.http.get(f"/api/session/{browser.session}")).json()["messages"]
        assert again[:2] == messages[:2]
        assert [m["text"] for m in again].count("Hello.") == 1, "greeted twice"
        await reloaded.close()
        await site.until_free()
    recordings = sorted(tmp_path.glob("*.wav"))
    assert recordings  # the second conversation may be over before a sound was heard
    with wave.open(str(recordings[0])) as file:
        assert file.getnchannels() == 2
        audio = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
    user, bot = (np.abs(audio[:, side].astype(np.int32)).max() for side in (0, 1))
    assert user > 1000 and bot > 100


async def test_voice_and_language_are_chosen_by_the_page():
    async with served(away(languages=("en", "de"))) as site:
        browser = site.browser()
        await browser.connect(voice="leo", language="de")
        await browser.until_type("bot-ready")
        browser.send("client-message", {"t": "set-voice", "d": {"voice": "sofia"}})
        answer = await browser.until_type("server-response")
        assert answer["data"] == {"t": "set-voice", "d": {"voice": "sofia"}}
        browser.send("client-message", {"t": "set-language", "d": {"language": "tlh"}})
        refused = await browser.until_type("error-response")
        assert refused["data"]["error"] == "There is no language 'tlh'; there are en, de."
        browser.send("client-message", {"t": "dance"})
        await browser.until(lambda m: m.get("type") == "error-response" and "'dance'" in m["data"]["error"])


async def test_while_the_server_is_away_the_page_hears_of_it():
    async with served(away()) as site:
        browser = site.browser()
        await browser.connect()
        error = await browser.until_type("error")  # the greeting
        assert "was not spoken" in error["data"]["error"]
        assert site.sessions.active == 1, "the conversation must wait for the server"


async def test_whoever_stops_the_bot_says_so_to_those_who_talk():
    async with served(away()) as site:
        browser = site.browser()
        await browser.connect()
        await browser.until_type("bot-ready")
    assert (await browser.until_server_says("session-ended"))["reason"] == "The bot is shutting down."
    assert site.sessions.active == 0


async def test_after_a_long_silence_the_line_is_given_to_others():
    async with served(away(idle_minutes=2 / 60, greeting="")) as site:
        browser = site.browser()
        await browser.connect()
        ended = await browser.until_server_says("session-ended")
        assert ended["reason"].startswith("Nobody said anything for")
        await site.until_free()


async def test_a_browser_that_never_comes_gives_its_place_back(monkeypatch):
    monkeypatch.setattr("voice_bot.web.CONNECT_TIMEOUT_S", 1.0)
    async with served(away(max_conversations=1)) as site:
        stranger = site.browser()
        body = {"sdp": await stranger.offer(), "type": "offer"}
        assert (await site.http.post("/api/offer", json=body)).status_code == 200
        assert site.sessions.active == 1
        await site.until_free()


async def test_an_ended_conversation_is_forgotten_in_time():
    async with served(away(keep_minutes=1 / 60)) as site:
        browser = site.browser()
        await browser.connect()
        await browser.until_type("bot-ready")
        await browser.close()
        await site.until_free()
        async with asyncio.timeout(30):
            while (await site.http.get(f"/api/session/{browser.session}")).status_code != 404:
                await asyncio.sleep(0.2)
        again = site.browser()
        await again.connect(session=browser.session)
        assert again.session != browser.session


def _conversations() -> int:
    gc.collect()
    return sum(type(thing) is Conversation for thing in gc.get_objects())  # a dead proxy has no isinstance
