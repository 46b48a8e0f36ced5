"""The bot's page in a real browser, in front of the real bot and the real server."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

from browser_stage import INSECURE_HOST, PAUSE_S, Bot, Visitor

Visit = Callable[..., Visitor]
Shoot = Callable[[Visitor, str], None]
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "small": (320, 568)}
QUESTION_S = 3.3
SOUND = 1e-3
"""Energy (full scale squared x seconds) that speech has after a few words, and silence has not."""


def shoot_all(visitor: Visitor, shoot: Shoot, name: str) -> None:
    """Screenshots on both sizes, light and dark; on none of them the page may be wider than the screen."""
    for size, (width, height) in SIZES.items():
        visitor.page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            visitor.page.emulate_media(color_scheme=scheme)
            shoot(visitor, f"{name}-{size}-{scheme}")
        assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    width, height = SIZES["desktop"]
    visitor.page.set_viewport_size({"width": width, "height": height})


def test_page_loads_from_this_machine_alone(visit: Visit, bot: Bot, shoot: Shoot):
    visitor = visit()
    page = visitor.page
    policy = page.request.get(bot.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy
    assert page.locator("#notice").inner_text() == "These weights are random."
    assert page.locator("#voice").input_value() == bot.get("config")["voice"]
    assert page.locator("#language option").all_inner_texts() == ["English"]
    assert page.get_by_role("button", name="Connect").is_enabled()
    assert page.get_by_role("main", name="Conversation").is_visible()
    shoot_all(visitor, shoot, "idle")
    assert {request.split("?")[0] for request in visitor.requests} > {f"{bot.url}/", f"{bot.url}/ui/app.js"}
    assert visitor.errors == []


def test_conversation(visit: Visit, shoot: Shoot):
    visitor = visit("question")
    page = visitor.page
    visitor.connect()
    visitor.expect(".turn.assistant .heard")  # the greeting, word by word
    visitor.until("() => document.querySelector('.turn.user .interim')?.textContent.length > 3")
    visitor.expect_state("user")
    shoot(visitor, "interim-words")
    visitor.until("() => document.querySelector('.turn.user .text').textContent.length > 3")
    visitor.expect(".turn.user + .turn.assistant .heard")  # the reply
    visitor.expect_state("assistant")
    summary = visitor.expect("details.latency summary").inner_text()
    total = int(re.sub(r"\D", "", summary))
    parts = [int(re.sub(r"\D", "", text)) for text in page.locator("details.latency dd").all_inner_texts()]
    assert 0 < sum(parts) <= total + len(parts)
    assert page.locator("details.latency .part").count() == len(parts)
    heard = visitor.audio()["heard"]
    assert heard > SOUND

    page.select_option("#voice", "leo")
    visitor.until("() => document.querySelector('#announcer').textContent.includes('Voice: Leo')")
    shoot_all(visitor, shoot, "conversation")
    page.click("#connect")
    visitor.expect_phase("idle")
    assert page.locator(".unfinished").count() == 0
    assert visitor.errors == []


def test_stop_silences_the_assistant(visit: Visit, bot: Bot, shoot: Shoot):
    visitor = visit()
    page = visitor.page
    visitor.connect()
    visitor.until("() => document.querySelectorAll('.turn.assistant .heard').length > 3")
    page.evaluate(  # at that very moment: the page is silent for a while only, and a busy browser may be asked later
        "document.querySelector('#stop').addEventListener('click', "
        "() => { window.hushed = document.querySelector('#speaker').muted; })"
    )
    page.click("#stop")
    assert page.evaluate("window.hushed")  # what the browser still holds back
    assert visitor.expect(".turn.assistant .cut").inner_text() == "stopped"
    visitor.expect_state("listening")
    visitor.wait_for_silence()
    said = visitor.said("assistant")
    assert len(said) == 1 and "greetings" not in said[0]  # its last word was not heard, so it is not shown
    assert page.evaluate("!document.querySelector('#speaker').muted")
    shoot(visitor, "stopped")
    session = page.evaluate("sessionStorage.getItem('triton-voice.session')")
    remembered = [message["text"] for message in bot.get(f"session/{session}")["messages"]]
    assert len(remembered) == 1 and said[0].startswith(remembered[0])
    assert len(said[0].split()) - len(remembered[0].split()) <= 1  # one word may sound at the very moment
    assert visitor.errors == []


def test_a_word_reported_after_the_cut_belongs_to_the_reply_that_was_cut(visit: Visit):
    """The bot's news of a word and of an interruption can cross; no second reply may begin with the same words."""
    visitor = visit()
    turns = visitor.page.evaluate("""async () => {
      const { Transcript } = await import("./ui/transcript.js");
      const list = document.createElement("ol");
      const transcript = new Transcript(list, () => {});
      const hear = (segment_id, words) => transcript.botOutput({
        segment_id, text: words, will_be_spoken: true, spoken_progress: { accumulated_text: words },
      });
      transcript.botStarted();
      hear(1, "Hello. I am the");
      transcript.botInterrupted("stopped");
      hear(1, "Hello. I am the voice");
      transcript.botStopped();
      transcript.botStarted();
      hear(2, "Yes?");
      return [...list.children].map((turn) => turn.innerText);
    }""")
    assert turns == ["Assistant: Hello. I am the voice stopped", "Assistant: Yes?"]


def test_mute(visit: Visit):
    visitor = visit("question")
    page = visitor.page
    visitor.connect()
    page.click("#mute")
    page.keyboard.press("Escape")  # the greeting does not matter here
    assert page.get_by_role("button", name="Unmute").is_visible()
    visitor.expect_state("muted")
    before = visitor.audio()["spoken"]
    page.wait_for_timeout((PAUSE_S + QUESTION_S) * 1000)
    assert visitor.audio()["spoken"] - before < SOUND
    turns = len(visitor.said("user"))
    page.click("#mute")
    visitor.until("count => document.querySelectorAll('.turn.user').length > count", turns)
    assert visitor.audio()["spoken"] > before
    assert visitor.errors == []


def test_keyboard_alone(visit: Visit):
    visitor = visit()
    page = visitor.page
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle, "
            "document.activeElement.matches(':focus-visible')]"
        )
        assert focus[1:] != ["none", True], f"the focus on {focus[0]} cannot be seen"
        reached.append(focus[0])
    assert reached == ["voice", "language", "conversation", "mute", "connect", "stop"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # on Connect
    visitor.expect_phase("connected")
    visitor.expect_state("assistant")
    page.keyboard.press("Escape")
    assert visitor.expect(".turn.assistant .cut").inner_text() == "stopped"
    page.keyboard.press("Alt+m")
    visitor.expect_state("muted")
    page.keyboard.press("Alt+m")
    visitor.expect_state("listening")
    page.keyboard.press("Alt+c")
    visitor.expect_phase("idle")
    assert page.evaluate("document.activeElement.id") == "connect"
    assert visitor.errors == []


def test_reload_keeps_the_conversation(visit: Visit):
    visitor = visit()
    visitor.connect()
    visitor.until("() => document.querySelector('.turn.assistant')?.textContent.includes('greetings')")
    visitor.expect_state("listening")
    said = visitor.said("assistant")
    visitor.page.reload()
    visitor.expect(".turn.assistant")
    assert visitor.said("assistant") == said
    visitor.connect()  # the only place was this page's own: it is given to it again
    visitor.page.wait_for_timeout(1000)
    assert visitor.said("assistant") == said  # taken up again, without a second greeting
    visitor.page.click("#connect")
    visitor.page.click("#start-over")
    assert visitor.page.locator("#welcome").is_visible()
    visitor.page.reload()
    visitor.expect("#voice:enabled")
    assert visitor.page.locator("#welcome").is_visible()
    assert visitor.errors == []


def test_full_bot_refuses_politely(visit: Visit, bot: Bot, shoot: Shoot):
    first, second = visit(), visit()
    first.connect()
    second.page.click("#connect")
    second.expect_problem("All lines are busy")
    second.expect_phase("idle")
    shoot(second, "refused")
    first.page.click("#connect")
    bot.wait_until_free()
    second.connect()
    assert second.page.locator("#problem").is_hidden()


def test_lost_connection_comes_back_by_itself(visit: Visit, bot: Bot, shoot: Shoot):
    visitor = visit()
    visitor.connect()
    visitor.expect(".turn.assistant .heard")
    bot.stop(signal.SIGKILL)
    visitor.expect_phase("reconnecting")
    visitor.expect_problem("Trying again until you cancel.")
    shoot(visitor, "reconnecting")
    bot.start()
    visitor.expect_phase("connected")
    assert visitor.page.locator("#problem").is_hidden()
    assert visitor.expect(".note").inner_text() == "The server has forgotten what was said above."
    visitor.expect(".note + .turn.assistant .heard")  # and greets anew


def test_bot_that_is_stopped_and_started(visit: Visit, bot: Bot):
    visitor = visit()
    visitor.connect()
    bot.stop()
    visitor.expect_phase("idle")
    visitor.expect_problem("The server does not answer.")
    bot.start()
    visitor.expect("#problem", state="hidden")
    visitor.connect()


def test_microphone_denied(visit: Visit, bot: Bot, shoot: Shoot):
    visitor = visit(microphone=False)
    visitor.page.click("#connect")
    visitor.expect_problem("The microphone is blocked for this page.")
    visitor.expect_phase("idle")
    shoot(visitor, "microphone-denied")


def test_insecure_origin(visit: Visit, bot: Bot):
    visitor = visit(url=f"http://{INSECURE_HOST}:{bot.port}/")
    visitor.expect_problem("only over https or on localhost")
    visitor.page.click("#connect")
    visitor.expect_phase("idle")


def test_token_and_a_server_that_is_away(visit: Visit, tmp_path: Path, shoot: Shoot):
    lonely = Bot(tmp_path, "--server", "127.0.0.1:1", "--token", "open sesame")
    lonely.start()
    try:
        visitor = visit(url=lonely.url)
        page = visitor.page
        visitor.expect_problem("The speech models are not ready")
        page.click("#connect")
        shoot(visitor, "token")
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.keyboard.press("Enter")
        visitor.until("() => document.querySelector('#token-reason').textContent.includes('not accept')")
        page.get_by_role("textbox", name="Token").fill("open sesame")
        page.keyboard.press("Enter")
        visitor.expect_phase("connected")
        visitor.expect("#problem:visible")  # the greeting cannot be spoken
        page.click("#connect")
        visitor.expect_phase("idle")
    finally:
        lonely.stop()
