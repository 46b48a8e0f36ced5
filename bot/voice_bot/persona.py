"""Who the bot is: its instructions, its greeting and what it can do. Change it here.

The names and results of the tools are a contract with the small language model, which is trained on them.
"""

from __future__ import annotations

import datetime
import zlib
from typing import Any
from zoneinfo import ZoneInfo

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.services.llm_service import FunctionCallParams

SYSTEM_PROMPT = (
    "You are a friendly voice assistant. You are heard, not read: answer in one or two short spoken sentences, without "
    "lists, markup, emoji or abbreviations. The user's words come from a speech recogniser; if they make no sense, "
    "ask. Use your tools for the time and the weather."
)
GREETING = "Hello! I am your voice assistant. How can I help you?"
APOLOGIES = {
    "de": "Entschuldigung, das hat zu lange gedauert. Bitte sagen Sie es noch einmal.",
    "en": "Sorry, that took too long. Please say it again.",
    "es": "Lo siento, eso ha tardado demasiado. Por favor, dígalo otra vez.",
    "fr": "Désolé, cela a pris trop de temps. Veuillez répéter, s'il vous plaît.",
    "hi": "माफ़ कीजिए, इसमें बहुत देर लग गई। कृपया फिर से कहिए।",
    "it": "Mi dispiace, ci è voluto troppo tempo. Per favore, lo ripeta.",
    "ja": "すみません、時間がかかりすぎました。もう一度お願いします。",
    "vi": "Xin lỗi, việc đó mất quá nhiều thời gian. Xin hãy nói lại.",
    "zh": "抱歉, 花的时间太长了。请再说一遍。",
}
"""Said when a model that hears or thinks gives no answer in time, by the conversation's language."""
LANGUAGE_NAMES = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian", "ja": "Japanese",
    "vi": "Vietnamese", "zh": "Mandarin",
}  # fmt: skip

CITIES = {
    "amsterdam": "Europe/Amsterdam",
    "beijing": "Asia/Shanghai",
    "berlin": "Europe/Berlin",
    "boston": "America/New_York",
    "cairo": "Africa/Cairo",
    "chicago": "America/Chicago",
    "dallas": "America/Chicago",
    "delhi": "Asia/Kolkata",
    "denver": "America/Denver",
    "london": "Europe/London",
    "los angeles": "America/Los_Angeles",
    "madrid": "Europe/Madrid",
    "mexico city": "America/Mexico_City",
    "moscow": "Europe/Moscow",
    "new york": "America/New_York",
    "oslo": "Europe/Oslo",
    "paris": "Europe/Paris",
    "rome": "Europe/Rome",
    "san francisco": "America/Los_Angeles",
    "sao paulo": "America/Sao_Paulo",
    "seattle": "America/Los_Angeles",
    "singapore": "Asia/Singapore",
    "sydney": "Australia/Sydney",
    "tokyo": "Asia/Tokyo",
    "toronto": "America/Toronto",
    "vienna": "Europe/Vienna",
}
"""Time zones by city, in lower case."""
CONDITIONS = {
    "sunny": (10, 35),
    "cloudy": (5, 25),
    "rainy": (5, 20),
    "windy": (5, 20),
    "snowy": (0, 5),
    "foggy": (0, 15),
}
"""Kinds of weather with their lowest and highest temperature in degrees Celsius."""


def system_prompt(language: str) -> str:
    """Returns the instructions for a conversation in a language."""
    if language == "en":
        return SYSTEM_PROMPT
    return f"{SYSTEM_PROMPT} Answer in {LANGUAGE_NAMES.get(language, language)}."


def apology(language: str) -> str:
    """Returns what is said in a language when no answer comes in time."""
    return APOLOGIES.get(language, APOLOGIES["en"])


def get_time(city: str | None = None, now: datetime.datetime | None = None) -> dict[str, Any]:
    """Tells the time.

    Args:
        city: One of `CITIES`; None for where the bot runs.
        now: The moment, with a time zone; None for the present.

    Returns:
        `{"city", "time"}`, the time as in `7:05 PM`; `{"city", "error"}` for a city that is not known.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    zone = None
    if city:
        name = CITIES.get(city.strip().lower())
        if name is None:
            return {"city": city, "error": "I do not know the time zone of that city."}
        zone = ZoneInfo(name)
    local = now.astimezone(zone)
    return {"city": city or "here", "time": f"{local.hour % 12 or 12}:{local.minute:02d} {local:%p}"}


def get_weather(city: str, day: str | None = None) -> dict[str, Any]:
    """Makes up the weather: an example of a tool that looks something up, without a network.

    The same city and day always have the same weather.

    Returns:
        `{"city", "day", "condition", "temperature"}`, the temperature in whole degrees Celsius.
    """
    day = day or "today"
    drawn = zlib.crc32(f"{city.strip().lower()}/{day.strip().lower()}".encode())
    condition = list(CONDITIONS)[drawn % len(CONDITIONS)]
    coldest, warmest = CONDITIONS[condition]
    degrees = coldest + drawn // len(CONDITIONS) % (warmest - coldest + 1)
    return {"city": city, "day": day, "condition": condition, "temperature": degrees}


async def _answer_time(params: FunctionCallParams) -> None:
    city = params.arguments.get("city")
    await params.result_callback(get_time(city if isinstance(city, str) else None))


async def _answer_weather(params: FunctionCallParams) -> None:
    city, day = params.arguments.get("city"), params.arguments.get("day")
    if not isinstance(city, str) or not city.strip():
        await params.result_callback({"error": "Say which city."})
        return
    await params.result_callback(get_weather(city, day if isinstance(day, str) else None))


def tools() -> ToolsSchema:
    """Returns what the language model may call, with the functions that answer."""
    city = {"type": "string", "description": "Name of a city, e.g. Paris"}
    return ToolsSchema(
        standard_tools=[
            FunctionSchema(
                name="get_time",
                description="The time now, here or in a city",
                properties={"city": city},
                required=[],
                handler=_answer_time,
            ),
            FunctionSchema(
                name="get_weather",
                description="The weather in a city (an invented example)",
                properties={"city": city, "day": {"type": "string", "description": "e.g. today, tomorrow, Friday"}},
                required=["city"],
                handler=_answer_weather,
            ),
        ]
    )
