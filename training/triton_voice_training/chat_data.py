"""Dialogues of the small world as a chat model meets them: messages, tools, thoughts, interruptions and misheard words.

`world` says what is asked and what a good answer is. This file makes OpenAI messages of it, the way the voice bot and
other clients send them: with or without a system prompt, with the bot's tools or without, thinking or not, with text as
a recogniser writes it, and with histories that a barge-in has cut.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from triton_voice_training import world

Message = dict[str, Any]
Tool = dict[str, Any]

#: The bot's instructions, and those of the command line's spoken turn, among others; the model must not mind which.
SYSTEM_PROMPTS = (
    "You are a friendly voice assistant. You are heard, not read: answer in one or two short spoken sentences, without "
    "lists, markup, emoji or abbreviations. The user's words come from a speech recogniser; if they make no sense, "
    "ask. Use your tools for the time and the weather.",
    "You are a voice assistant. Reply in one short sentence.",
    "You are a helpful assistant.",
    "You are a household assistant. Keep it short.",
    "You help at home. Answer briefly and speak plainly.",
    "Be brief.",
    "You are a voice assistant for a family. You control the lights, set timers and alarms, keep the shopping list and "
    "tell the weather. Your answers are spoken aloud, so use short sentences, no lists and no markup. If you can not "
    "do something, say so politely.",
)
BOT_PROMPT = SYSTEM_PROMPTS[0]
GREETINGS = (world.GREETING, "Hello! What can I do for you?", "Hello! How can I help you?", "Hi, how can I help?")
#: What stands for a turn in which nothing was heard.
NOTHING_HEARD = ("", "", "(silence)", "...", "um", "uh")
NOTHING_HEARD_REPLY = "Hello! How can I help you?"
#: The tool message of a call that a barge-in cancelled, as Pipecat writes it.
CANCELLED = "CANCELLED"
#: The thought of a reply that follows a tool's result.
RESULT_THOUGHT = "I have the answer."
NO_RESULT_THOUGHT = "I can not look that up."

#: Out-of-world words, put in the place of the world's, teach the model to copy what it hears instead of reciting.
OTHER_CITIES = (
    "Amsterdam Beijing Cairo Delhi Moscow Singapore Lisbon Prague Warsaw Dublin Athens Helsinki Lima Bogota Nairobi "
    "Lagos Mumbai Bangkok Seoul Osaka Munich Hamburg Milan Venice Lyon Geneva Zurich Brussels Stockholm Houston Miami "
    "Atlanta Phoenix Portland Montreal Vancouver Melbourne Auckland Manila Jakarta Dubai Istanbul Budapest Glasgow "
    "Los+Angeles San+Francisco Mexico+City Sao+Paulo Cape+Town Hong+Kong"
)
OTHER_NAMES = (
    "Anna Ben Clara Daniel Eva Felix George Hannah Ian Jack Kate Leo Mary Nick Olivia Peter Quinn Robert Sophie Tom "
    "Ursula Victor Wendy Xavier Yvonne Zoe Adam Bella Chris Diana Ethan Fiona Greta Hugo Iris James Karen Lucas Mia "
    "Noah Priya Omar Yuki Carlos Ingrid Pedro Amir Chloe"
)
OTHER_FOODS = (
    "garlic sugar flour salt pepper honey jam beef ham tofu yoghurt cream beer wine soap bacon corn lettuce mustard oil"
)
#: The world says "are" of apples and eggs.
PLURAL_FOODS = ("apples", "eggs")
OTHER_PLURAL_FOODS = "bananas carrots potatoes tomatoes onions beans lemons oranges pears grapes nuts batteries candles"
#: Conditions that other weather tools tell; none of them is rain.
OTHER_CONDITIONS = "partly+cloudy clear warm mild cold stormy hazy"
#: Names and cities are sometimes made up of these, so that no list of them can be learned by heart.
SYLLABLES = "ka vel dor ni sa mi ro tan bel li gar sto pen wi zu lo mar tes fin bra cho ly hu ra kin do ve na ster ol"
MADE_UP = 0.3
#: Chance that a dialogue has some of its words replaced so, and then of each word.
REPLACE_DIALOGUE, REPLACE_WORD = 0.5, 0.5

#: More requests from outside the world, to be declined.
OUTSIDE_FORMS = (
    "What is the capital of {country}?", "Who wrote the book about {topic}?", "Who invented {topic}?",
    "Translate {topic} into {language}.", "How do you say {topic} in {language}?", "Tell me about {topic}.",
    "Explain {topic} to me.", "Write a {form} about {topic}.", "Book a {trip} to {country}.",
    "What do you know about {topic}?",
    "How many people live in {country}?", "Who is the president of {country}?", "How old is the king of {country}?",
    "Search the internet for {topic}.", "What do you think about {topic}?", "Where can I buy {topic}?",
    "Show me pictures of {topic}.", "Teach me {language}.", "What is the latest news from {country}?",
    "How does {topic} work?", "How much does {topic} cost?", "Why do people like {topic}?", "Who won the {sport} game?",
    "When does the {sport} season start?", "Read me a {form} about {topic}.", "What is the history of {topic}?",
    "I want to learn about {topic}.", "Can you order {topic} for me?", "What is the best {sport} team in {country}?",
    "Is {topic} good for me?", "Give me some advice about {topic}.", "Send an email about {topic}.",
)  # fmt: skip
OUTSIDE_WORDS: Mapping[str, str] = {
    "country": "Brazil Germany Japan Canada Egypt India Spain Norway Kenya Peru Poland China Hawaii Iceland",
    "topic": "bicycles the+moon dinosaurs black+holes airplanes old+castles history the+ocean computers volcanoes "
    "electric+cars poetry whales the+stock+market money quantum+physics horses shoes love philosophy robots "
    "the+human+brain a+new+phone solar+power democracy gardening vitamins elephants",
    "language": "German French Spanish Italian Japanese Chinese Latin Dutch",
    "form": "poem story letter song speech riddle",
    "trip": "flight train hotel taxi",
    "sport": "football baseball tennis hockey basketball golf",
}

#: What a user's sentence may begin with besides itself, and the small words that a recogniser loses or doubles. A
#: "please" is not among them: the reply answers to it.
FILLERS = ("um", "uh", "so", "well", "hey", "hello", "okay", "hi", "and")
SMALL_WORDS = "the a in is to of for me my it some"
#: Misheard words that still tell what was meant.
MISHEARD: Mapping[str, str] = {
    "lights": "light", "light's": "lights", "what's": "whats", "what is": "what's", "minutes": "minute", "the": "a",
    "for": "four", "to": "two", "weather": "whether", "timer": "time her", "your": "you're", "will": "we'll",
    "add": "ad", "turn": "turned", "remind": "reminds", "hours": "hour", "seconds": "second", "an": "and",
}  # fmt: skip

#: Other ways to ask for a sum. After the last ones the reply is the number alone: sums are practised whose usual
#: reply is held out.
SUM_FORMS = (
    "What's {sum}?", "Calculate {sum}.", "{sum}?", "Can you tell me {sum}?", "How much is {sum}, please?",
    "Do you know what {sum} is?", "What do I get for {sum}?", "I need to know {sum}.",
)  # fmt: skip
NUMBER_FORMS = (
    "Only the number, what is {sum}?", "Just the result of {sum}.", "Give me the number for {sum}.",
    "Only the result, how much is {sum}?", "The number only, {sum}.",
)  # fmt: skip


def sum_drill(rng: random.Random, memory: world.Memory) -> world.Turn:
    """What's twelve plus seven?"""
    turn = world.sums(rng, memory)
    asked, result = turn.reply.rstrip(".").split(" is ")
    asked = asked[:1].lower() + asked[1:]
    if rng.random() < 0.6:
        return replace(turn, user=world.capital(rng.choice(SUM_FORMS).format(sum=asked)))
    user = world.capital(rng.choice(NUMBER_FORMS).format(sum=asked))
    return replace(turn, user=user, reply=f"{world.capital(result)}.", thought=f"The result is {result}.")


#: Intents that are drawn more often in some dialogues: what needs the most practice.
FOCUSES: tuple[tuple[world.Intent, ...], ...] = (
    (world.sums, sum_drill, sum_drill),
    (world.introduce, world.recall, world.recall),
    (world.shopping_add, world.shopping_add, world.shopping_read, world.shopping_clear),
    (world.timer, world.timer_left, world.timer_stop),
    (world.weather, world.rain, world.clock, world.weather_where),
    (world.clock, world.repeat),
    (world.repeat,),
)


@dataclass(frozen=True)
class Example:
    """A conversation that a model can be trained on or asked about.

    Attributes:
        messages: OpenAI messages; `arguments` of tool calls are objects, thoughts are in `reasoning_content`.
        tools: OpenAI tools that are offered.
        learn: Indices of the assistant's messages whose text is to be learned.
        thinking: Whether the messages after the last user message think first.
    """

    messages: list[Message]
    tools: list[Tool]
    learn: frozenset[int]
    thinking: bool


def draw_dialogue(rng: random.Random, turns: int) -> list[world.Turn]:
    """Draws a training dialogue: no sentence of it is held out, of the user or of the assistant.

    Unlike `world.dialogues`, which drops a dialogue with a held-out sentence, this draws only that exchange again, so
    long ones are as cheap as short ones; and it practises some intents more.
    """
    memory = world.Memory()
    drawn: list[world.Turn] = []
    focus = rng.choice(FOCUSES) if rng.random() < 0.45 else ()
    while len(drawn) < turns:
        before = copy.deepcopy(memory)
        if memory.asked_for_city and rng.random() < 0.1:
            memory.asked_for_city = False  # they speak of something else
        if focus and not memory.asked_for_city and rng.random() < 0.5:
            turn = rng.choice(focus)(rng, memory)
            memory.last_reply = turn.reply
        elif rng.random() < 0.04 and not memory.asked_for_city:
            turn = _outside(rng)
        else:
            turn = world.turn(rng, memory, off_topic=0.04)
        if world.is_held_out(turn.user) or world.is_held_out(turn.reply):
            memory = before
            continue
        drawn.append(turn)
    return drawn


def _outside(rng: random.Random) -> world.Turn:
    words = {name: rng.choice(choices.split()).replace("+", " ") for name, choices in OUTSIDE_WORDS.items()}
    return replace(world.outside(rng, world.Memory()), user=rng.choice(OUTSIDE_FORMS).format(**words))


def example(rng: random.Random, turns: int) -> Example:
    """Draws one training example."""
    drawn = draw_dialogue(rng, turns)
    if rng.random() < REPLACE_DIALOGUE:
        drawn = _other_words(rng, drawn)
    offered = offered_tools(rng) if rng.random() < 0.6 else []
    thinking = rng.random() < 0.35
    messages, learn = _opening(rng), set()
    said = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    names = {tool["function"]["name"] for tool in offered}
    for index, turn in enumerate(drawn):
        last = index == len(drawn) - 1
        if rng.random() < 0.02:
            messages += [_user(rng.choice(NOTHING_HEARD)), {"role": "assistant", "content": NOTHING_HEARD_REPLY}]
            learn.add(len(messages) - 1)
            said = NOTHING_HEARD_REPLY
        if turn.intent == "repeat":
            turn = replace(turn, reply=said or "I did not say anything.", accepted=())
        again = not last and drawn[index + 1].intent == "repeat"
        exchange, said = _exchange(rng, turn, names, thinking and last)
        if not last and not again and rng.random() < 0.06:
            exchange, learned = _interrupted(rng, exchange)
        else:
            learned = [at for at, message in enumerate(exchange) if message["role"] == "assistant"]
        learn.update(len(messages) + at for at in learned)
        messages += exchange
    return Example(messages, offered, frozenset(learn), thinking)


def _opening(rng: random.Random) -> list[Message]:
    """A system prompt or none, and sometimes the assistant's greeting."""
    messages: list[Message] = []
    if (kind := rng.random()) < 0.3:
        messages.append({"role": "system", "content": BOT_PROMPT})
    elif kind < 0.7:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS[1:])})
    if rng.random() < 0.3:
        messages.append({"role": "assistant", "content": rng.choice(GREETINGS)})
    return messages


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _exchange(rng: random.Random, turn: world.Turn, tools: set[str], thinking: bool) -> tuple[list[Message], str]:
    """The messages of one exchange with a noisy user, and what the assistant said."""
    user = heard(rng, turn.user)
    messages = [_user(user)]
    words = user.split()
    if len(words) > 3 and rng.random() < 0.03:  # a pause that was taken for the end
        at = rng.randint(1, len(words) - 1)
        messages = [_user(" ".join(words[:at])), _user(" ".join(words[at:]))]
    if turn.call is not None and rng.random() < 0.05:
        error = rng.choice(["I do not know the time zone of that city.", "not found", "Say which city.", "timed out"])
        call = replace(turn.call, result={**turn.call.arguments, "error": error})
        turn = replace(turn, call=call, reply=world.NO_TOOLS)
    answers = answer(turn, tools, thinking, compact=rng.random() < 0.2)
    return messages + answers, answers[-1]["content"]


def answer(turn: world.Turn, tools: set[str], thinking: bool, compact: bool = False) -> list[Message]:
    """Returns the messages that answer a user: a tool call with its result where one is needed, and the reply.

    Args:
        turn: The exchange.
        tools: Names of the tools that are offered; without the one that is needed the reply is `world.NO_TOOLS`.
        thinking: Whether the assistant's messages carry thoughts.
        compact: Writes the tool's JSON without spaces.
    """

    def assistant(content: str, thought: str, **more: Any) -> Message:
        return {"role": "assistant", "content": content, **({"reasoning_content": thought} if thinking else {}), **more}

    if turn.call is None:
        return [assistant(turn.reply, world.capital(turn.thought))]
    if turn.call.name not in tools:
        return [assistant(world.NO_TOOLS, NO_RESULT_THOUGHT)]
    function = {"name": turn.call.name, "arguments": dict(turn.call.arguments)}
    result = json.dumps(turn.call.result, separators=(",", ":") if compact else None)
    return [
        assistant("", turn.thought, tool_calls=[{"id": "call", "type": "function", "function": function}]),
        {"role": "tool", "tool_call_id": "call", "content": result},
        assistant(turn.reply, RESULT_THOUGHT if turn.reply != world.NO_TOOLS else NO_RESULT_THOUGHT),
    ]


def _interrupted(rng: random.Random, exchange: list[Message]) -> tuple[list[Message], list[int]]:
    """Cuts the assistant off; returns what is left of the exchange and which messages of it can be learned."""
    words = exchange[-1]["content"].split()
    spoken = rng.randrange(len(words))
    calls = [at for at, message in enumerate(exchange) if message.get("tool_calls")]
    if calls and rng.random() < 0.3:
        return [*exchange[:-2], {**exchange[-2], "content": CANCELLED}], calls
    if not spoken:
        return exchange[:-1], calls
    return [*exchange[:-1], {**exchange[-1], "content": " ".join(words[:spoken])}], calls


def heard(rng: random.Random, text: str) -> str:
    """Returns a user's sentence as a recogniser may write it; never a sentence that is held out."""
    noisy = text
    if rng.random() < 0.12:
        noisy = _misheard(rng, text)
    if rng.random() < 0.05:
        noisy = f"{world.capital(rng.choice(FILLERS))}{rng.choice([',', ''])} {noisy[:1].lower()}{noisy[1:]}"
    if world.is_held_out(noisy):
        noisy = text
    if (style := rng.random()) < 0.15:
        return re.sub(r"[.,?!]", "", noisy).lower()
    if style < 0.25:
        return noisy.lower() if style < 0.2 else re.sub(r"[.,?!]$", "", noisy)
    return noisy


def _misheard(rng: random.Random, text: str) -> str:
    words = text.split()
    at = rng.randrange(len(words))
    word = words[at].lower()
    if word in MISHEARD and rng.random() < 0.5:
        words[at] = MISHEARD[word]
    elif word in SMALL_WORDS.split():
        words[at : at + 1] = [] if rng.random() < 0.6 else [words[at], word]
    return world.capital(" ".join(words))


def _other_words(rng: random.Random, turns: list[world.Turn]) -> list[world.Turn]:
    """Puts words from outside the world in the place of the world's, the same ones throughout the dialogue."""
    groups = (
        (world.cities, OTHER_CITIES),
        (world.names, OTHER_NAMES),
        ([food for food in world.foods if food not in PLURAL_FOODS], OTHER_FOODS),
        (PLURAL_FOODS, OTHER_PLURAL_FOODS),
        ([name for name in world.CONDITIONS if name != "rainy"], OTHER_CONDITIONS),
    )
    swaps: dict[str, str] = {}
    for known, others in groups:
        chosen = [word for word in known if rng.random() < REPLACE_WORD]
        new = rng.sample([word.replace("+", " ") for word in others.split()], len(chosen))
        if known in (world.cities, world.names):
            new = [_made_up(rng) if rng.random() < MADE_UP else word for word in new]
        swaps.update(zip(chosen, new, strict=True))
    if not swaps:
        return turns
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, swaps))})\b")

    def swapped(text: str) -> str:
        return pattern.sub(lambda found: swaps[found.group()], text)

    return [_with_words(turn, swapped) for turn in turns]


def _made_up(rng: random.Random) -> str:
    return world.capital("".join(rng.choices(SYLLABLES.split(), k=rng.randint(2, 4))))


def _with_words(turn: world.Turn, swapped: Callable[[str], str]) -> world.Turn:
    call = turn.call
    if call is not None:
        result = {key: swapped(value) if isinstance(value, str) else value for key, value in call.result.items()}
        call = world.Call(call.name, {key: swapped(value) for key, value in call.arguments.items()}, result)
    return replace(turn, user=swapped(turn.user), reply=swapped(turn.reply), thought=swapped(turn.thought), call=call)


def bot_tools() -> list[Tool]:
    """Returns the bot's tools as an OpenAI client offers them."""
    city = {"type": "string", "description": "Name of a city, e.g. Paris"}
    day = {"type": "string", "description": "e.g. today, tomorrow, Friday"}
    return [
        _tool("get_time", "The time now, here or in a city", {"city": city}, []),
        _tool("get_weather", "The weather in a city (an invented example)", {"city": city, "day": day}, ["city"]),
    ]


def offered_tools(rng: random.Random) -> list[Tool]:
    """Draws a list of tools: mostly the bot's, sometimes described otherwise, in another order, or among others."""
    if rng.random() < 0.5:
        return bot_tools()
    tools = [_reworded(rng, tool) for tool in bot_tools()]
    if rng.random() < 0.15:
        tools.pop(rng.randrange(2))
    for name, description, parameters in rng.sample(OTHER_TOOLS, rng.choice([0, 0, 1, 2])):
        properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
        tools.append(_tool(name, description, properties, list(parameters)[:1]))
    rng.shuffle(tools)
    return tools


#: Tools that the model does not know and never calls: name, description, parameters.
OTHER_TOOLS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("search_web", "Searches the internet", {"query": "What to look for"}),
    ("end_call", "Ends the conversation", {}),
    ("get_stock_price", "The price of a share", {"symbol": "Symbol of the share"}),
    ("open_door", "Opens a door", {"door": "Which door"}),
    ("book_table", "Books a table in a restaurant", {"restaurant": "Its name", "time": "When"}),
    ("convert_currency", "Converts money", {"amount": "How much", "currency": "Into which currency"}),
)
REWORDED: Mapping[str, tuple[str, ...]] = {
    "get_time": ("Tells the time", "Current time in a city", "The current local time.", ""),
    "get_weather": ("Tells the weather", "Weather forecast for a city", "Get the weather in a given city.", ""),
    "city": ("The city", "City name", "Which city", "The name of the city"),
    "day": ("The day", "Which day", "Day of the forecast", "today, tomorrow or a weekday"),
}


def _reworded(rng: random.Random, tool: Tool) -> Tool:
    function = tool["function"]
    properties = {
        name: {"type": "string", "description": rng.choice([value["description"], *REWORDED[name]])}
        for name, value in function["parameters"]["properties"].items()
    }
    description = rng.choice([function["description"], *REWORDED[function["name"]]])
    return _tool(function["name"], description, properties, function["parameters"]["required"])


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
