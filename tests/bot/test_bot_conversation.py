"""Whole conversations with the real server."""

from __future__ import annotations

import asyncio
import json

import pytest
from bot_room import QUESTION, conversing, snippet
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    FunctionCallResultFrame,
    InterruptionFrame,
    TTSTextFrame,
    UserBackchannelFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)

from voice_bot import persona
from voice_bot.latency import STAGES
from voice_bot.settings import TurnTaking

LONG = "The first part of this answer is long. The second part of it is longer still. And the third part ends it all."
CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"


async def test_a_reply_that_does_not_come_in_time_is_apologised_for(server, says):
    replies = [says("Too late.", step_ms=4000)]
    async with conversing(server.grpc, replies=replies, answer_timeout_s=1.0, apology="Oh dear.") as guest:
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        assert guest.transcript[-1] == ("assistant", "Oh dear.")


async def test_two_turns_with_a_greeting(server, says):
    async with conversing(
        server.grpc,
        hears=["What is the time?", "And in Paris?"],
        replies=[says("It is noon."), says("The same.")],
        greet=True,
        greeting="Hello there.",
    ) as guest:
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 3)
        assert guest.transcript == [
            ("assistant", "Hello there."),
            ("user", "What is the time?"),
            ("assistant", "It is noon."),
            ("user", "And in Paris?"),
            ("assistant", "The same."),
        ]
        assert guest.events.errors == []
        assert [latency.turn for latency in guest.latencies] == [1, 2]
        for latency in guest.latencies:
            assert tuple(latency.stages) == STAGES
            assert sum(latency.stages.values()) == pytest.approx(latency.total_ms, abs=0.5)
            assert latency.stages["endpointing_ms"] == pytest.approx(200, abs=1)
        answered = guest.events.when(UserStoppedSpeakingFrame)
        assert guest.sound(answered), "the answer could not be heard"


async def test_barge_in_keeps_the_words_that_were_heard_and_silences_the_rest(server, says):
    async with conversing(
        server.grpc, hears=["Tell me more.", "Stop it now please."], replies=[says(LONG), says("All right.")]
    ) as guest:
        await guest.say()
        await guest.events.until(lambda: len(guest.events.of(TTSTextFrame)) >= 3)
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
        (user, question), (bot, heard), *rest = guest.transcript
        assert (user, question, bot) == ("user", "Tell me more.", "assistant")
        assert LONG.startswith(heard) and heard != LONG
        assert rest == [("user", "Stop it now please."), ("assistant", "All right.")]
        began, stopped = guest.events.when(BotStartedSpeakingFrame), guest.events.when(BotStoppedSpeakingFrame)
        assert guest.sound(began, stopped)
        assert guest.sound(*_after_the_stop(guest, 0)) == [], "audio of the old answer after the stop"
        assert guest.events.errors == []
    await _nothing_runs(server)


async def test_two_barge_ins_in_a_row(server, says):
    async with conversing(
        server.grpc,
        hears=["One.", "Stop, tell me two.", "No, three please."],
        replies=[says(LONG), says(LONG), says("Three.")],
    ) as guest:
        await guest.say()
        for count in (1, 2):
            await guest.events.until_frame(BotStartedSpeakingFrame, count)
            await asyncio.sleep(0.5)
            await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 3)
        assert [text for role, text in guest.transcript if role == "user"] == [
            "One.",
            "Stop, tell me two.",
            "No, three please.",
        ]
        assert guest.transcript[-1] == ("assistant", "Three.")
        cut_off = [text for role, text in guest.transcript[:-1] if role == "assistant"]
        assert all(LONG.startswith(text) and text != LONG for text in cut_off), cut_off
        assert guest.sound(*_after_the_stop(guest, 1)) == []
    await _nothing_runs(server)


async def test_silence_asks_nothing(server, says):
    async with conversing(server.grpc, replies=[says("Yes?")]) as guest:
        await asyncio.sleep(2)
        assert guest.events.of(VADUserStartedSpeakingFrame, UserStartedSpeakingFrame) == []
        assert guest.llm.requests == 0 and guest.transcript == []


async def test_a_sound_without_words_ends_its_turn_and_the_next_one_is_answered(server, says):
    async with conversing(server.grpc, hears=["", "What is the time?"], replies=[says("Noon.")]) as guest:
        await guest.say(snippet(0.8))
        await guest.events.until_frame(UserStoppedSpeakingFrame)
        assert guest.llm.requests == 0 and guest.transcript == []
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        assert guest.transcript == [("user", "What is the time?"), ("assistant", "Noon.")]


async def test_a_cough_while_the_bot_thinks_does_not_cost_the_answer(server, says):
    async with conversing(
        server.grpc, hears=["What is the time?", ""], replies=[says(" ".join(["slow"] * 60), 100), says("Noon.")]
    ) as guest:
        await guest.say()
        await guest.events.until_frame(UserStoppedSpeakingFrame)
        assert not guest.events.of(BotStartedSpeakingFrame)
        await guest.say(snippet(0.8))
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        assert guest.transcript == [("user", "What is the time?"), ("assistant", "Noon.")]
    await _nothing_runs(server)


@pytest.mark.parametrize("said", ["Mm-hm.", "Yeah, okay.", "I see. Uh-huh."])
async def test_a_backchannel_does_not_interrupt_and_is_forgotten(server, says, said):
    async with conversing(
        server.grpc, hears=["Tell me more.", said, "Thanks."], replies=[says(LONG), says("Bye.")]
    ) as guest:
        await guest.say()
        await guest.events.until_frame(BotStartedSpeakingFrame)
        await asyncio.sleep(0.3)
        await guest.say(snippet(0.8))
        assert (await guest.events.until_frame(UserBackchannelFrame)).text == said
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        assert guest.transcript == [("user", "Tell me more."), ("assistant", LONG)]
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
        assert guest.transcript[2:] == [("user", "Thanks."), ("assistant", "Bye.")]


async def test_one_real_word_across_the_bot_interrupts(server, says):
    async with conversing(
        server.grpc, hears=["Tell me more.", "Paris?"], replies=[says(LONG), says("Yes, Paris.")]
    ) as guest:
        await guest.say()
        await guest.events.until_frame(BotStartedSpeakingFrame)
        await asyncio.sleep(0.3)
        await guest.say(snippet(0.8))
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
        assert guest.transcript[-2:] == [("user", "Paris?"), ("assistant", "Yes, Paris.")]


async def test_words_that_interrupt_stand_behind_the_answer_that_they_cut(server, says):
    """As on a busy machine: the interruption needs longer through the pipeline than the words to the conversation."""
    async with conversing(
        server.grpc, hears=["Tell me more.", "Paris?"], replies=[says(LONG), says("Yes, Paris.")]
    ) as guest:

        async def dawdle(processor, frame):
            if isinstance(frame, InterruptionFrame):
                await asyncio.sleep(0.5)

        await guest.say()
        await guest.events.until(lambda: len(guest.events.of(TTSTextFrame)) >= 2)
        guest.conversation.services.tts.add_event_handler("on_before_process_frame", dawdle)
        await guest.say(snippet(0.8))
        await guest.events.until_frame(BotStoppedSpeakingFrame, 2)
        assert [role for role, _ in guest.transcript] == ["user", "assistant"] * 2
        assert [text for role, text in guest.transcript if role == "user"] == ["Tell me more.", "Paris?"]


async def test_a_tool_is_called_and_its_result_spoken_of(server, says):
    async with conversing(
        server.grpc, hears=["How is the weather in Paris?"], replies=[says(CALL)], after_tool=says("It is fine.")
    ) as guest:
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        (result,) = guest.events.of(FunctionCallResultFrame)
        assert result.function_name == "get_weather"
        assert result.result == persona.get_weather("Paris")
        assert guest.transcript[0] == ("user", "How is the weather in Paris?")
        assert guest.transcript[-1] == ("assistant", "It is fine.")
        told = [m for m in guest.memory.context.messages if m["role"] == "tool"]
        assert [json.loads(m["content"]) for m in told] == [persona.get_weather("Paris")]


async def test_the_user_who_goes_on_is_answered_once(server, says):
    """A pause in mid-sentence: whatever was begun for the first half is dropped, and nobody hears of it."""
    async with conversing(
        server.grpc,
        hears=["I would like", "a table for two."],
        replies=[says("A table.")],
        turn=TurnTaking(incomplete_timeout_s=2.0),
    ) as guest:
        await guest.say(snippet(1.0))
        await guest.events.until_frame(VADUserStoppedSpeakingFrame)
        await guest.say()
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        said = " ".join(text for role, text in guest.transcript if role == "user")
        assert said == "I would like a table for two."
        assert [text for role, text in guest.transcript if role == "assistant"] == ["A table."]


async def test_the_last_words_survive_the_beginning_of_their_own_turn(server, says):
    """As on a busy machine: the final transcript is queued behind the interim one that begins the turn."""
    async with conversing(server.grpc, replies=[says("Yes.")]) as guest:
        await guest.conversation.services.stt.rush("Is it", "Is it now?")
        await guest.events.until_frame(BotStoppedSpeakingFrame)
        assert guest.transcript == [("user", "Is it now?"), ("assistant", "Yes.")]


async def test_ten_conversations_at_once_do_not_mix(server, says):
    async def one(number: int) -> list[tuple[str, str]]:
        async with conversing(server.grpc, hears=[f"Question {number}?"], replies=[says(f"Answer {number}.")]) as guest:
            await guest.say(QUESTION)
            await guest.events.until_frame(BotStoppedSpeakingFrame)
            assert guest.events.errors == []
            return guest.transcript

    for number, transcript in enumerate(await asyncio.gather(*(one(number) for number in range(10)))):
        assert transcript == [("user", f"Question {number}?"), ("assistant", f"Answer {number}.")]
    await _nothing_runs(server)


async def test_a_long_conversation_does_not_grow(server, says):
    async with conversing(server.grpc, hears=["More?"], replies=[says("Yes.")], history=6) as guest:
        tasks, messages = [], []
        for turn in range(1, 11):
            await guest.say(snippet(0.8))
            await guest.events.until_frame(BotStoppedSpeakingFrame, turn)
            await asyncio.sleep(0.1)
            tasks.append(len(asyncio.all_tasks()))
            messages.append(len(guest.memory.context.messages))
        assert max(messages) <= 6 + 1
        assert guest.memory.context.messages[0]["role"] == "user"
        assert max(tasks[5:]) <= max(tasks[:5])
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _after_the_stop(guest, index: int) -> tuple[float, float]:
    """From the n-th end of the bot's speech until the user has finished: a time that belongs to the user alone."""
    return guest.events.when(BotStoppedSpeakingFrame, index) + 0.05, guest.events.when(VADUserStoppedSpeakingFrame, -1)


async def _nothing_runs(server) -> None:
    """The server has no work left: what was cut off was cancelled there too. Models publish twice a second."""

    def state() -> tuple[float, float]:
        return sum(map(server.metric, RUNNING)), server.metric("magpie_step_seconds_count")

    now = await asyncio.to_thread(state)
    for _ in range(20):
        await asyncio.sleep(1)
        before, now = now, await asyncio.to_thread(state)
        if now == before and now[0] == 0:
            return
    raise AssertionError("the server still works on something that nobody waits for")


RUNNING = ("parakeet_active_streams", "triton_voice_llm_requests_running", "vllm:num_requests_running")
