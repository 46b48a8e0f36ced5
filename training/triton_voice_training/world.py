"""The small world: everything that the trained checkpoints hear, think and say.

A household assistant in English. Each intent below draws a request and knows the reply; a dialogue strings intents
together and keeps what must be remembered (a name, a shopping list, a timer). Recogniser, language model and
synthesiser are all trained on what this file generates, and judged on sentences of it that none of them has seen.

What is held out is decided by the text alone (`is_held_out`), so it is the same for every model, seed and machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "held_out"]

#: One sentence in so many is never trained on.
HELD_OUT_ONE_IN = 20
#: Shorter sentences are fixed phrases of small talk rather than combinations; they are always trained on.
HELD_OUT_MIN_WORDS = 4
#: Distinct sentences are drawn until so many draws in a row have brought nothing new.
PATIENCE = 20_000

NAMES = "Alice Bob Carol David Emma Frank Grace Henry Julia Kevin Laura Martin Nora Oscar Paul Rachel Sarah Thomas"
CITIES = "London Paris Berlin Madrid Tokyo Boston Chicago Denver Dallas Rome Oslo Vienna Sydney Toronto Seattle"
ROOMS = "kitchen bedroom office garage bathroom hallway living+room garden"
#: Things in a room: singular, except the first.
THINGS = "lights fan heater radio television"
COLORS = "red green blue white yellow orange purple"
FOODS = "milk bread cheese coffee tea water juice apples rice chicken fish pasta pizza soup salad eggs butter"
MUSIC = "jazz rock classical dance folk"
#: Kinds of weather with their lowest and highest temperature in degrees.
CONDITIONS = {
    "sunny": (10, 35),
    "cloudy": (5, 25),
    "rainy": (5, 20),
    "windy": (5, 20),
    "snowy": (0, 5),
    "foggy": (0, 15),
}
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"

names, cities, rooms = NAMES.split(), [*CITIES.split(), "New York"], [room.replace("+", " ") for room in ROOMS.split()]
things, colors, foods, music = THINGS.split(), COLORS.split(), FOODS.split(), MUSIC.split()
weekdays = WEEKDAYS.split()
days = ["today", "tomorrow", *(f"on {day}" for day in weekdays)]

GREETING = "Hello! I am your voice assistant. How can I help you?"
HELP = "I can help you with lights, timers, the weather, music, calls, sums and your shopping list."
OFF_TOPIC = "I am sorry, I can not help you with that."
NO_TOOLS = "I am sorry, I can not look that up right now."
WHICH_CITY = "In which city?"

JOKES = (
    "Why did the clock go to the kitchen? It had no time for soup.",
    "What did the milk say to the coffee? See you in the morning.",
    "Why is the fish so good at music? It knows the scales.",
)

SMALL_TALK = (
    ("Hello.", "Hello! How can I help you?"),
    ("Hi.", "Hello! How can I help you?"),
    ("Hello, how are you?", "I am fine, thank you."),
    ("How are you?", "I am fine, thank you."),
    ("Good morning.", "Good morning! How can I help you?"),
    ("Good evening.", "Good evening! How can I help you?"),
    ("Good night.", "Good night! See you tomorrow."),
    ("Who are you?", "I am your voice assistant."),
    ("What is your name?", "I am your voice assistant."),
    ("What can you do?", HELP),
    ("Can you help me?", HELP),
    ("Help me.", HELP),
    ("Thank you.", "You are welcome."),
    ("Thank you very much.", "You are welcome."),
    ("Thanks.", "You are welcome."),
    ("Goodbye.", "Goodbye! Have a nice day."),
    ("See you tomorrow.", "Goodbye! Have a nice day."),
    ("Yes.", "Okay."),
    ("No.", "Okay."),
    ("Okay.", "Okay."),
    ("Never mind.", "Okay."),
    ("Can you hear me?", "Yes, I can hear you."),
)

#: Sentences without a choice in them: always trained on.
FIXED = frozenset(
    [GREETING, HELP, OFF_TOPIC, NO_TOOLS, WHICH_CITY, *JOKES, *(text for pair in SMALL_TALK for text in pair)]
)

#: Requests from outside the world. Only the language model sees them, to learn that it should decline.
OUTSIDE = tuple(
    line.strip()
    for line in """
    Who won the football game last night? | What is the capital of Brazil? | Write a poem about the ocean. |
    How do I fix my bicycle? | Translate this letter into German. | Who is the president? | Book a flight to Hawaii. |
    How tall is the highest mountain? | What should I wear to the party? | Explain how engines work. |
    How many planets are there? | Order a taxi to the airport. | What is the meaning of life? | Read my newest email. |
    How do you bake a chocolate cake? | Tell me the latest news. | What is my bank balance? | Buy some new shoes. |
    Who painted that famous picture? | How far away is the moon? | Find a good movie for the weekend. |
    What is the price of gold? | Which horse is the fastest? | Solve this riddle for me. |
    How do airplanes fly? | What does this strange word mean? | Should I invest my money? | Start the washing machine. |
    Can you drive my car to work? | Who wrote that old book? | Where did I leave my keys? | Is my dog sick? |
    Recommend a restaurant near the station. | When does the museum open? | How do I learn to swim? | Draw a cat. |
    Water the plants. | What happened in the war? | Print my documents. | Open the front door for the guests. |
    Count the stars in the sky.
    """.replace("\n", " ").split("|")
)


def number(value: int) -> str:
    """Returns a number from 0 to 999 in words, as the synthesiser's normaliser spells it."""
    ones, tens = ONES.split(), TENS.split()
    if value >= 100:
        return f"{ones[value // 100]} hundred" + (f" {number(value % 100)}" if value % 100 else "")
    if value >= 20:
        return tens[value // 10 - 2] + (f" {ones[value % 10]}" if value % 10 else "")
    return ones[value]


def capital(text: str) -> str:
    """Returns the text with its first letter upper case."""
    return text[:1].upper() + text[1:]


def is_held_out(text: str) -> bool:
    """Says whether a sentence is kept for judging: a fixed one in `HELD_OUT_ONE_IN` of all combinations."""
    words = text.lower().split()
    if len(words) < HELD_OUT_MIN_WORDS or text in FIXED:
        return False
    return hashlib.sha256(" ".join(words).encode()).digest()[0] % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Call:
    """A tool call and what the tool answers; names and result shapes are those of the bot's own tools."""

    name: str
    arguments: Mapping[str, str]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One exchange.

    Attributes:
        intent: Name of the intent.
        user: What the user says, as the recogniser writes it: numbers in words.
        reply: What the assistant answers; times and temperatures from a tool stay in digits.
        thought: What a reply that thinks first puts into its reasoning tags.
        call: The tool call that comes before the reply, if any.
        accepted: Other replies that are as good.
    """

    intent: str
    user: str
    reply: str
    thought: str
    call: Call | None = None
    accepted: tuple[str, ...] = ()


@dataclass
class Memory:
    """What a dialogue remembers."""

    name: str = ""
    shopping: list[str] = field(default_factory=list)
    timer: str = ""
    asked_for_city: bool = False
    last_reply: str = ""


Intent = Callable[[random.Random, Memory], Turn]


def _polite(rng: random.Random, request: str) -> tuple[str, str]:
    """Makes some requests polite; the reply's first word answers to it."""
    if rng.random() < 0.3:
        return (f"Please {request}." if rng.random() < 0.5 else f"Could you {request}?"), "Of course"
    return capital(request) + ("" if request.endswith("?") else "."), "Okay"


def lights(rng: random.Random, memory: Memory) -> Turn:
    """Turn on the kitchen lights."""
    room, thing, way = rng.choice(rooms), rng.choice(things), rng.choice(["on", "off"])
    form = rng.choice(["turn {way} the {room} {thing}", "turn {way} the {thing} in the {room}",
                       "switch the {room} {thing} {way}", "switch {way} the {thing} in the {room}"])  # fmt: skip
    user, yes = _polite(rng, form.format(way=way, room=room, thing=thing))
    verb = "are" if thing == "lights" else "is"
    return Turn("lights", user, f"{yes}, the {room} {thing} {verb} {way}.", f"Switch {way} the {room} {thing}.")


def color(rng: random.Random, memory: Memory) -> Turn:
    """Make the bedroom lights blue."""
    room, shade = rng.choice(rooms), rng.choice(colors)
    form = rng.choice(["make the {room} lights {shade}", "set the {room} lights to {shade}"])
    user, yes = _polite(rng, form.format(room=room, shade=shade))
    return Turn("color", user, f"{yes}, the {room} lights are {shade}.", f"Make the {room} lights {shade}.")


def dim(rng: random.Random, memory: Memory) -> Turn:
    """Set the office lights to forty percent."""
    room, level = rng.choice(rooms), number(10 * rng.randint(1, 9))
    form = rng.choice(["dim the {room} lights to {level} percent", "set the {room} lights to {level} percent"])
    user, yes = _polite(rng, form.format(room=room, level=level))
    return Turn("dim", user, f"{yes}, the {room} lights are at {level} percent.", f"Dim the {room} lights to {level}.")


def timer(rng: random.Random, memory: Memory) -> Turn:
    """Set a timer for ten minutes."""
    count, unit = number(rng.choice([*range(2, 21), 25, 30, 40, 45, 50])), rng.choice(["minute", "second", "hour"])
    form = rng.choice(["set a timer for {count} {unit}s", "start a timer for {count} {unit}s",
                       "start a {count} {unit} timer", "give me {count} {unit}s on the timer"])  # fmt: skip
    user, yes = _polite(rng, form.format(count=count, unit=unit))
    memory.timer = f"{count} {unit}s"
    return Turn("timer", user, f"{yes}, your timer is set for {memory.timer}.", f"Set a timer for {memory.timer}.")


def timer_left(rng: random.Random, memory: Memory) -> Turn:
    """Is my timer running?"""
    user = rng.choice(["Is my timer running?", "Do I have a timer?", "What about my timer?"])
    reply = f"Yes, your timer is set for {memory.timer}." if memory.timer else "No, there is no timer."
    return Turn("timer_left", user, reply, f"The timer is {memory.timer}." if memory.timer else "There is no timer.")


def timer_stop(rng: random.Random, memory: Memory) -> Turn:
    """Stop the timer."""
    user, _ = _polite(rng, rng.choice(["stop the timer", "cancel the timer", "cancel my timer"]))
    reply = "Your timer is off." if memory.timer else "There is no timer to stop."
    thought = f"Stop the timer for {memory.timer}." if memory.timer else "There is no timer."
    memory.timer = ""
    return Turn("timer_stop", user, reply, thought)


def alarm(rng: random.Random, memory: Memory) -> Turn:
    """Wake me up at six thirty tomorrow."""
    hour, minute, day = (
        number(rng.randint(1, 12)),
        rng.choice(["", " fifteen", " thirty", " forty five"]),
        rng.choice(days),
    )
    form = rng.choice(["wake me up at {at} {day}", "set an alarm for {at} {day}", "set my alarm to {at} {day}"])
    at = hour + minute
    user, yes = _polite(rng, form.format(at=at, day=day))
    return Turn("alarm", user, f"{yes}, your alarm is set for {at} {day}.", f"Set an alarm for {at} {day}.")


def _weather_call(city: str, day: str, rng: random.Random) -> Call:
    condition = rng.choice(list(CONDITIONS))
    weather = {"city": city, "day": day, "condition": condition, "temperature": rng.randint(*CONDITIONS[condition])}
    return Call("get_weather", {"city": city, "day": day}, weather)


def _weather_reply(call: Call) -> str:
    city, day, condition, degrees = (call.result[key] for key in ("city", "day", "condition", "temperature"))
    unit = "degree" if degrees == 1 else "degrees"
    if day == "today":
        return f"It is {condition} in {city}, {degrees} {unit}."
    return f"It will be {condition} in {city} {'' if day == 'tomorrow' else 'on '}{day}, {degrees} {unit}."


def weather(rng: random.Random, memory: Memory) -> Turn:
    """What is the weather in Paris tomorrow?"""
    city, when = rng.choice(cities), rng.choice(["", *days])
    form = rng.choice(["What is the weather in {city}{when}?", "How is the weather in {city}{when}?",
                       "What's the weather like in {city}{when}?", "Tell me the weather in {city}{when}."])  # fmt: skip
    call = _weather_call(city, when.removeprefix("on ") or "today", rng)
    user = form.format(city=city, when=f" {when}" if when else "")
    return Turn("weather", user, _weather_reply(call), f"I need the weather in {city}.", call)


def weather_where(rng: random.Random, memory: Memory) -> Turn:
    """What is the weather? The next request names the city."""
    memory.asked_for_city = True
    user = rng.choice(
        ["What is the weather?", "How is the weather?", "What's the weather like?", "Tell me the weather."]
    )
    return Turn("weather_where", user, WHICH_CITY, "They did not say which city.")


def weather_city(rng: random.Random, memory: Memory) -> Turn:
    """In Paris."""
    memory.asked_for_city = False
    city = rng.choice(cities)
    call = _weather_call(city, "today", rng)
    user = rng.choice(["In {city}.", "{city}.", "In {city}, please."]).format(city=city)
    return Turn("weather_city", user, _weather_reply(call), f"I need the weather in {city}.", call)


def rain(rng: random.Random, memory: Memory) -> Turn:
    """Will it rain in Boston on Sunday?"""
    city, when = rng.choice(cities), rng.choice(days)
    form = rng.choice(["Will it rain in {city} {when}?", "Do I need an umbrella in {city} {when}?"])
    call = _weather_call(city, when.removeprefix("on "), rng)
    yes = "Yes" if call.result["condition"] == "rainy" else "No"
    reply = f"{yes}, {_weather_reply(call).replace('It ', 'it ', 1)}"
    return Turn("rain", form.format(city=city, when=when), reply, f"I need the weather in {city}.", call)


def clock(rng: random.Random, memory: Memory) -> Turn:
    """What time is it in Tokyo?"""
    time = f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d} {rng.choice(['AM', 'PM'])}"
    if rng.random() < 0.3:
        user = rng.choice(["What time is it?", "What is the time?", "Tell me the time."])
        return Turn("clock", user, f"It is {time}.", "I need the time.",
                    Call("get_time", {}, {"city": "here", "time": time}))  # fmt: skip
    city = rng.choice(cities)
    form = rng.choice(["What time is it in {city}?", "What is the time in {city}?", "Tell me the time in {city}."])
    call = Call("get_time", {"city": city}, {"city": city, "time": time})
    return Turn("clock", form.format(city=city), f"It is {time} in {city}.", f"I need the time in {city}.", call)


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def shopping_add(rng: random.Random, memory: Memory) -> Turn:
    """Add milk and eggs to my shopping list."""
    items = rng.sample(foods, rng.choice([1, 1, 2]))
    form = rng.choice(["add {items} to my shopping list", "put {items} on my shopping list", "put {items} on the list"])
    user, yes = _polite(rng, form.format(items=_listed(items)))
    memory.shopping += [item for item in items if item not in memory.shopping]
    verb = "are" if len(items) > 1 or items[0] in ("apples", "eggs") else "is"
    return Turn("shopping_add", user, f"{yes}, {_listed(items)} {verb} on your list.", f"Add {_listed(items)}.")


def shopping_read(rng: random.Random, memory: Memory) -> Turn:
    """What is on my shopping list?"""
    user = rng.choice(["What is on my shopping list?", "What's on the list?", "Read my shopping list."])
    if not memory.shopping:
        return Turn("shopping_read", user, "Your shopping list is empty.", "The list is empty.")
    items = _listed(memory.shopping)
    return Turn("shopping_read", user, f"On your list you have {items}.", f"The list has {items}.")


def shopping_clear(rng: random.Random, memory: Memory) -> Turn:
    """Clear my shopping list."""
    user, yes = _polite(rng, rng.choice(["clear my shopping list", "clear the list"]))
    memory.shopping = []
    return Turn("shopping_clear", user, f"{yes}, your shopping list is empty.", "Clear the list.")


def phone(rng: random.Random, memory: Memory) -> Turn:
    """Call Alice."""
    who = rng.choice(names)
    user, yes = _polite(rng, rng.choice(["call {who}", "call {who} now", "phone {who}"]).format(who=who))
    return Turn("phone", user, f"{yes}, I am calling {who}.", f"Call {who}.")


def message(rng: random.Random, memory: Memory) -> Turn:
    """Send a message to Bob saying I am late."""
    who, what = rng.choice(names), rng.choice(["hello", "good morning", "good night", "I am late", "thank you"])
    if rng.random() < 0.4:
        what = f"see you {rng.choice(days)}"
    form = rng.choice(["send a message to {who} saying {what}", "tell {who} {what}"])
    user, yes = _polite(rng, form.format(who=who, what=what))
    return Turn("message", user, f"{yes}, I told {who} {what}.", f"Send {who} the message {what}.")


def remind(rng: random.Random, memory: Memory) -> Turn:
    """Remind me to call Nora tomorrow."""
    task = rng.choice(["call {}", "meet {}", "thank {}"]).format(rng.choice(names))
    if rng.random() < 0.4:
        task = f"buy {rng.choice(foods)}"
    day = rng.choice(days)
    user, yes = _polite(rng, f"remind me to {task} {day}")
    return Turn("remind", user, f"{yes}, I will remind you to {task} {day}.", f"Remind them to {task} {day}.")


def sums(rng: random.Random, memory: Memory) -> Turn:
    """How much is twelve plus seven?"""
    sign = rng.choice(["plus", "minus", "times"])
    if sign == "times":
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        result = a * b
    else:
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        if sign == "minus":
            a, b = max(a, b), min(a, b)
        result = a + b if sign == "plus" else a - b
    form = rng.choice(["How much is {sum}?", "What is {sum}?", "Tell me {sum}."])
    said = f"{number(a)} {sign} {number(b)}"
    return Turn("sums", form.format(sum=said), f"{capital(said)} is {number(result)}.", f"{said} is {number(result)}.")


def play(rng: random.Random, memory: Memory) -> Turn:
    """Play some jazz music in the kitchen."""
    kind, room = rng.choice(music), rng.choice(["", *rooms])
    where = f" in the {room}" if room else ""
    form = rng.choice(["play some {kind} music{where}", "play {kind} music{where}"])
    user, yes = _polite(rng, form.format(kind=kind, where=where))
    return Turn("play", user, f"{yes}, I am playing {kind} music{where}.", f"Play {kind} music{where}.")


def music_stop(rng: random.Random, memory: Memory) -> Turn:
    """Stop the music."""
    what, reply = rng.choice([("stop the music", "the music is off"), ("make the music louder", "the music is louder"),
                              ("make the music quieter", "the music is quieter")])  # fmt: skip
    user, yes = _polite(rng, what)
    return Turn("music_stop", user, f"{yes}, {reply}.", capital(f"{what}."))


def introduce(rng: random.Random, memory: Memory) -> Turn:
    """My name is Alice."""
    memory.name = rng.choice(names)
    start = rng.choice(["", "Hello, ", "Hi, "])
    user = capital(f"{start}{'my' if start else 'My'} name is {memory.name}.")
    return Turn("introduce", user, f"Nice to meet you, {memory.name}.", f"The name is {memory.name}.")


def recall(rng: random.Random, memory: Memory) -> Turn:
    """What is my name?"""
    user = rng.choice(["What is my name?", "Do you know my name?", "What's my name?", "Tell me my name."])
    if not memory.name:
        return Turn("recall", user, "I do not know your name.", "They did not say their name.")
    return Turn("recall", user, f"Your name is {memory.name}.", f"The name is {memory.name}.")


def small_talk(rng: random.Random, memory: Memory) -> Turn:
    """Hello, how are you?"""
    user, reply = rng.choice(SMALL_TALK)
    return Turn("small_talk", user, reply, "This is small talk.")


def joke(rng: random.Random, memory: Memory) -> Turn:
    """Tell me a joke."""
    user, _ = _polite(rng, rng.choice(["tell me a joke", "tell me something funny"]))
    kind = JOKES[0] if "joke" in user else JOKES[1]
    return Turn("joke", user, kind, "They want a joke.", accepted=JOKES)


def repeat(rng: random.Random, memory: Memory) -> Turn:
    """Can you repeat that?"""
    user = rng.choice(["Can you repeat that?", "Say that again.", "What did you say?"])
    return Turn("repeat", user, memory.last_reply or "I did not say anything.", "Say it again.")


def outside(rng: random.Random, memory: Memory) -> Turn:
    """Something from outside the small world; the language model's alone."""
    return Turn("outside", rng.choice(OUTSIDE), OFF_TOPIC, "That is not something I can do.")


#: Intents with their weights: how often they are drawn.
INTENTS: Mapping[Intent, float] = {
    lights: 3, color: 1.5, dim: 1, timer: 2.5, timer_left: 0.7, timer_stop: 0.7, alarm: 2, weather: 3, rain: 2,
    weather_where: 0.7, clock: 2, shopping_add: 2.5, shopping_read: 1, shopping_clear: 0.4, phone: 1, message: 1.5,
    remind: 2, sums: 3,
    play: 1.5, music_stop: 0.5, introduce: 1, recall: 1, small_talk: 2, joke: 0.4, repeat: 0.6,
}  # fmt: skip


def turn(rng: random.Random, memory: Memory, off_topic: float = 0.0) -> Turn:
    """Draws the next exchange of a dialogue and remembers what it changed."""
    if memory.asked_for_city:
        drawn = weather_city(rng, memory)
    elif rng.random() < off_topic:
        drawn = outside(rng, memory)
    else:
        drawn = rng.choices(list(INTENTS), list(INTENTS.values()))[0](rng, memory)
    memory.last_reply = drawn.reply
    return drawn


def dialogue(rng: random.Random, turns: int, off_topic: float = 0.05) -> list[Turn]:
    """Draws a dialogue of so many exchanges."""
    memory = Memory()
    return [turn(rng, memory, off_topic) for _ in range(turns)]


def dialogues(split: Split, count: int, seed: int = 0, turns: tuple[int, int] = (1, 6)) -> Iterator[list[Turn]]:
    """Draws dialogues of one split.

    A training dialogue holds no sentence that is held out, of the user or of the assistant; a held-out dialogue ends
    with a request that is.

    Args:
        split: Which.
        count: How many.
        seed: The same seed gives the same dialogues.
        turns: Least and most exchanges.

    Yields:
        The exchanges of one dialogue.
    """
    rng = random.Random(f"{split} dialogues {seed}")
    while count:
        drawn = dialogue(rng, rng.randint(*turns))
        if split == "train":
            keep = not any(is_held_out(text) for each in drawn for text in (each.user, each.reply))
        else:
            keep = is_held_out(drawn[-1].user)
        if keep:
            count -= 1
            yield drawn


def _distinct(split: Split, count: int, seed: int, what: Callable[[Turn], str], fixed: tuple[str, ...]) -> list[str]:
    rng, dry = random.Random(f"{split} {seed}"), 0
    found = dict.fromkeys(fixed if split == "train" else ())
    memory = Memory()
    while len(found) < count and dry < PATIENCE:
        memory = Memory() if rng.random() < 0.2 else memory
        text = what(turn(rng, memory))
        dry += 1
        if text not in found and is_held_out(text) == (split == "held_out"):
            found[text], dry = None, 0
    return list(found)


def requests(split: Split, count: int, seed: int = 0) -> list[str]:
    """Returns up to `count` distinct sentences that users say, numbers in words."""
    return _distinct(split, count, seed, lambda each: each.user, ())


def replies(split: Split, count: int, seed: int = 0) -> list[str]:
    """Returns up to `count` distinct replies, as the language model writes them (times and temperatures in digits)."""
    return _distinct(split, count, seed, lambda each: each.reply, (GREETING, OFF_TOPIC, NO_TOOLS))
