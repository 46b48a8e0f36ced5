"""`TritonLLMService` against a real server whose model says what the test wants."""

from __future__ import annotations

import asyncio

import pytest
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    LLMThoughtEndFrame,
    LLMThoughtStartFrame,
    LLMThoughtTextFrame,
    LLMUpdateSettingsFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.utils.errors import ErrorCategory
from service_stage import staged

from llm_client import until_running
from pipecat_triton import TritonLLMService

CALL = "<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
PARAMETER = "<parameter={}>\n{}\n</parameter>\n"
ENDLESS = "word " * 300
"""At `step_ms` 20 it takes six seconds: certainly running when it is cancelled."""


def service(server, extra=None, **settings):
    return TritonLLMService(url=server.grpc, settings=TritonLLMService.Settings(extra=extra or {}, **settings))


def question(text="Hi", tools=None, **kwargs):
    messages = [{"role": "user", "content": text}]
    context = LLMContext(messages, tools=ToolsSchema(standard_tools=tools)) if tools else LLMContext(messages)
    return LLMContextFrame(context=context, **kwargs)


def said(stage):
    return "".join(frame.text for frame in stage.of(LLMTextFrame))


async def test_a_reply_streams_between_its_start_and_its_end_with_its_usage(server, says):
    async with staged(service(server, says("Hello there, how are you?"))) as stage:
        await stage.send(question())
        await stage.until_down(LLMFullResponseEndFrame)
    assert said(stage) == "Hello there, how are you?"
    assert len(stage.of(LLMTextFrame)) > 2
    names = stage.names()
    assert (names[0], names[-1]) == ("LLMFullResponseStartFrame", "LLMFullResponseEndFrame")
    (usage,) = stage.metrics("LLMUsageMetricsData")
    assert usage.value.prompt_tokens > 0 and usage.value.completion_tokens >= len(stage.of(LLMTextFrame))
    assert len([m for m in stage.metrics("TTFBMetricsData") if m.value]) == 1
    assert stage.metrics("ProcessingMetricsData")
    assert not stage.errors


async def test_thoughts_are_frames_of_their_own_and_never_text(server, says):
    llm = service(server, says("Let me see.</think>Hello there!"), reasoning=True)
    async with staged(llm) as stage:
        await stage.send(question())
        await stage.until_down(LLMFullResponseEndFrame)
    assert said(stage).strip() == "Hello there!"
    assert "".join(frame.text for frame in stage.of(LLMThoughtTextFrame)) == "Let me see."
    order = [type(f) for f in stage.of(LLMThoughtStartFrame, LLMThoughtTextFrame, LLMThoughtEndFrame, LLMTextFrame)]
    assert order.count(LLMThoughtStartFrame) == order.count(LLMThoughtEndFrame) == 1
    assert order[0] is LLMThoughtStartFrame
    assert order.index(LLMThoughtEndFrame) < order.index(LLMTextFrame)


async def test_a_thought_that_ends_the_reply_is_closed(server, says):
    async with staged(service(server, says("Still thinking"), reasoning=True)) as stage:
        await stage.send(question())
        await stage.until_down(LLMFullResponseEndFrame)
    assert said(stage) == ""
    assert len(stage.of(LLMThoughtEndFrame)) == 1


async def test_tool_calls_reach_their_handlers_with_typed_arguments(server, says):
    asked = []

    async def weather(params):
        asked.append(("get_weather", params.arguments))
        await params.result_callback({"sky": "blue"})

    async def stop(params):
        asked.append(("stop_timer", params.arguments))
        await params.result_callback("stopped")

    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    tools = [
        FunctionSchema("get_weather", "Weather.", properties, ["city"], handler=weather),
        FunctionSchema("stop_timer", "Stops the timer.", {}, [], handler=stop),
    ]
    call = CALL.format("get_weather", PARAMETER.format("city", 'São "Paulo"') + PARAMETER.format("days", 7))
    async with staged(service(server, says("I look.\n" + call + "\n" + CALL.format("stop_timer", "")))) as stage:
        await stage.send(question(tools=tools))
        await stage.until_down(FunctionCallResultFrame, 2)
    assert sorted(asked) == [("get_weather", {"city": 'São "Paulo"', "days": 7}), ("stop_timer", {})]
    assert said(stage).strip() == "I look."
    assert not stage.errors


async def test_an_interruption_stops_the_server(server, says):
    async with staged(service(server, says(ENDLESS, step_ms=20))) as stage:
        await stage.send(question())
        await stage.until_down(LLMTextFrame, 3)
        await until_running(server, 1)
        await stage.send(InterruptionFrame())
        await stage.until_down(InterruptionFrame)
        await until_running(server, 0)
        count = len(stage.of(LLMTextFrame))
        await stage.send(LLMUpdateSettingsFrame(delta=TritonLLMService.Settings(extra=says("Yes?"))), question())
        await stage.until(lambda: said(stage).endswith("Yes?"))
    assert len(stage.of(LLMTextFrame)) <= count + 3
    assert not stage.errors


async def test_a_speculative_reply_is_held_until_the_turn_ends(server, says):
    async with staged(service(server, says("Hello there!"))) as stage:
        await stage.send(question(speculation=True))
        await stage.until(lambda: stage.metrics("LLMUsageMetricsData"))
        assert not stage.of(LLMFullResponseStartFrame, LLMTextFrame)
        await stage.send(UserStoppedSpeakingFrame())
        await stage.until_down(LLMFullResponseEndFrame)
    assert said(stage) == "Hello there!"


async def test_a_withdrawn_speculative_reply_is_never_heard_and_stops_the_server(server, says):
    async with staged(service(server, says(ENDLESS, step_ms=20))) as stage:
        await stage.send(question(speculation=True))
        await until_running(server, 1)
        await stage.send(EagerEndOfTurnCancelFrame())
        await until_running(server, 0)
        await stage.send(UserStoppedSpeakingFrame())
        await stage.until_down(UserStoppedSpeakingFrame)
    assert said(stage) == ""


async def test_run_inference_answers_out_of_band(server, says):
    llm = service(server, says("A summary."))
    async with staged(llm) as stage:
        context = LLMContext([{"role": "user", "content": "Sum up."}])
        assert await llm.run_inference(context) == "A summary."
        assert await llm.run_inference(context, max_tokens=1, system_instruction="Be brief.") != "A summary."
    assert not stage.of(LLMTextFrame)


async def test_run_inference_follows_a_schema(server):
    schema = {
        "type": "object",
        "properties": {"done": {"type": "boolean"}},
        "required": ["done"],
        "additionalProperties": False,
    }
    llm = service(server, temperature=0.0)
    async with staged(llm):
        reply = await llm.run_inference(
            LLMContext([{"role": "user", "content": "Done?"}]), max_tokens=60, response_schema=schema
        )
    compact = "".join(reply.split())  # the model may go on with white space until its tokens are used up
    assert compact and any(f'{{"done":{value}}}'.startswith(compact) for value in ("true", "false"))


async def test_a_request_that_is_refused_among_good_ones_costs_only_itself(server, says):
    llm = service(server, says("Fine."))
    async with staged(llm) as stage:
        await stage.send(question())
        await stage.until_down(LLMFullResponseEndFrame)
        await stage.send(question("far too long " * 20_000))
        error = await stage.until_error()
        await stage.send(question())
        await stage.until_down(LLMFullResponseEndFrame, 3)
    assert error.category is ErrorCategory.APPLICATION
    assert llm.is_usable
    assert said(stage) == "Fine.Fine."


@pytest.mark.parametrize(
    ("settings", "words"), [({"temperature": -3.0}, "temperature"), ({"model": "parrot"}, "parrot")]
)
async def test_wrong_settings_are_permanent_until_they_change(server, says, settings, words):
    llm = service(server, says("Fine."), **settings)
    async with staged(llm) as stage:
        await stage.send(question())
        error = await stage.until_error()
        assert error.category is ErrorCategory.INVALID_REQUEST
        assert words in error.error
        assert not llm.is_usable
        mended = TritonLLMService.Settings(temperature=0.5, model="nemotron")
        await stage.send(LLMUpdateSettingsFrame(delta=mended), question())
        await stage.until_down(LLMTextFrame)
    assert llm.is_usable


async def test_no_server_is_a_lost_connection_and_the_service_stays_usable():
    llm = TritonLLMService(url="127.0.0.1:9")
    async with staged(llm) as stage:
        await stage.send(question())
        error = await stage.until_error()
        await stage.until_down(LLMFullResponseEndFrame)
    assert error.category is ErrorCategory.CONNECTIVITY
    assert llm.is_usable


async def test_a_reply_that_never_begins_is_given_up(server, says):
    llm = TritonLLMService(
        url=server.grpc,
        answer_timeout_s=0.05,
        settings=TritonLLMService.Settings(extra=says(ENDLESS, step_ms=500)),
    )
    timed_out = asyncio.Event()
    llm.add_event_handler("on_completion_timeout", lambda _: timed_out.set())
    async with staged(llm) as stage:
        await stage.send(question())
        error = await stage.until_error()
        await timed_out.wait()
        await until_running(server, 0)
    assert error.category is ErrorCategory.CONNECTIVITY
