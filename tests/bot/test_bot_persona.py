"""The bot's tools, and its example of a weather service."""

from __future__ import annotations

import datetime

import pytest

from bot import Conversation
from voice_bot import persona
from voice_bot.memory import Memory
from voice_bot.settings import BotSettings, TurnTaking

EVENING = datetime.datetime(2026, 1, 15, 18, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("city", "time"),
    [
        ("Paris", "7:05 PM"),
        ("new york", "1:05 PM"),
        ("Tokyo ", "3:05 AM"),
        ("delhi", "11:35 PM"),
        ("London", "6:05 PM"),
    ],
)
def test_the_time_in_a_city(city, time):
    assert persona.get_time(city, EVENING) == {"city": city, "time": time}


def test_noon_and_midnight_are_twelve():
    noon = EVENING.replace(hour=12, minute=0)
    assert persona.get_time("London", noon)["time"] == "12:00 PM"
    assert persona.get_time("London", noon.replace(hour=0))["time"] == "12:00 AM"


def test_the_time_without_a_city_is_this_machines():
    now = EVENING.astimezone()
    assert persona.get_time(None, EVENING)["time"] == f"{now.hour % 12 or 12}:05 {now:%p}"


def test_a_city_that_is_not_known_is_said_to_be():
    assert "error" in persona.get_time("Atlantis", EVENING)


def test_every_city_has_a_time():
    for city in persona.CITIES:
        assert "time" in persona.get_time(city, EVENING)


def test_the_weather_depends_on_city_and_day_alone():
    today = persona.get_weather("Paris")
    assert list(today) == ["city", "day", "condition", "temperature"]
    assert today == persona.get_weather("Paris", "today")
    assert {k: persona.get_weather("paris ", "Today")[k] for k in ("condition", "temperature")} == {
        k: today[k] for k in ("condition", "temperature")
    }
    drawn = [persona.get_weather(city, day) for city in persona.CITIES for day in ("today", "tomorrow", "Friday")]
    assert {w["condition"] for w in drawn} == set(persona.CONDITIONS)
    for each in drawn:
        coldest, warmest = persona.CONDITIONS[each["condition"]]
        assert coldest <= each["temperature"] <= warmest


def test_the_language_model_is_told_of_both_tools_and_of_the_language():
    declared = {tool.name: tool.to_default_dict()["parameters"] for tool in persona.tools().standard_tools}
    assert declared["get_time"]["required"] == []
    assert declared["get_weather"]["required"] == ["city"]
    assert set(declared["get_weather"]["properties"]) == {"city", "day"}
    assert persona.system_prompt("en") == persona.SYSTEM_PROMPT
    assert persona.system_prompt("de").endswith("Answer in German.")


@pytest.mark.parametrize("language", persona.LANGUAGE_NAMES)
def test_the_bot_says_in_the_conversations_language_that_it_has_no_answer(language):
    said = apology(language)
    assert said and (said == apology("en")) == (language == "en")


def test_what_the_bot_says_without_an_answer_can_be_set_or_left_out():
    assert apology("de", apology="Moment!") == "Moment!"
    assert apology("de", apology="") == ""
    assert apology("tlh") == apology("en")  # a language that nobody has translated it to


def apology(language, **settings):
    memory = Memory("aria", language)
    return Conversation(BotSettings(**settings), TurnTaking(), memory, None, None, None).apology
