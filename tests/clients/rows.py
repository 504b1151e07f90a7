"""Tool rows from which a small model learns to call `get_weather` and `get_time`, by heart.

The schemas vary as clients render them, so that the model reads a function's name from its prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

CITIES = (
    "Paris", "London", "Tokyo", "Berlin", "Madrid", "Rome", "Oslo", "Vienna", "Lisbon", "Dublin", "Athens", "Prague",
)  # fmt: skip
OTHER_CITIES = ("Lima", "Cairo", "Seoul", "Warsaw")
"""Those of the held-out rows: the model is trained on all of the others."""
QUESTIONS = {"weather": "What is the weather in {city}?", "time": "What time is it in {city}?"}
RESULTS = {"weather": ("sunny, 21 degrees", "rain, 9 degrees"), "time": ("10:30", "18:05")}
NAMES = {
    "weather": ("get_weather", "get_weather", "get_weather", "weather-get_weather", "GetWeather"),
    "time": ("get_time",),
}
"""Names of the functions, as often as rows have them: a plugin's prefix, a class."""
SYSTEMS = (None, None, "You are a helpful assistant.", "You are a helpful assistant that answers questions with tools.")
GREETINGS = (("Say hello.", "Hello!"), ("Who are you?", "I am a small assistant."), ("Thank you.", "You are welcome."))


def tool_rows(count: int, cities: Sequence[str] = CITIES) -> list[Row]:
    """Calls, answers after a tool's result, and answers without tools, in the shares 3 : 1 : 1."""
    choose = random.Random(0)
    return [_row(choose, place, cities) for place in range(count)]


def _row(choose: random.Random, place: int, cities: Sequence[str]) -> Row:
    kind = choose.choice(("weather", "weather", "time"))
    name = choose.choice(NAMES[kind])
    city = cities[place % len(cities)]
    system = choose.choice(SYSTEMS)
    first = [{"role": "system", "content": system}] if system else []
    question = {"role": "user", "content": QUESTIONS[kind].format(city=city)}
    tools = [_tool(choose, name, kind)]
    if choose.random() < 0.25:
        other = "time" if kind == "weather" else "weather"
        tools.insert(choose.randrange(2), _tool(choose, NAMES[other][0], other))
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": name, "arguments": f'{{"city": "{city}"}}'},
            }
        ],
    }
    if place % 5 == 3:
        result = choose.choice(RESULTS[kind])
        answer = f"The {kind} in {city}: {result}."
        after = [
            {"role": "tool", "tool_call_id": "call_1", "content": result},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": [*first, question, call, *after], "tools": tools}
    if place % 5 == 4:
        said, answer = choose.choice(GREETINGS)
        messages = [*first, {"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "tools": tools} if choose.random() < 0.5 else {"messages": messages}
    return {"messages": [*first, question, call], "tools": tools}


def _tool(choose: random.Random, name: str, kind: str) -> Row:
    described = choose.choice((f"Return the {kind} in a city.", f"Get the current {kind} for a city.", ""))
    city: Row = {"type": "string"} | choose.choice(({}, {"description": "The city."}, {"title": "City"}))
    parameters: Row = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    parameters |= choose.choice(({}, {"additionalProperties": False}, {"title": name}))
    if choose.random() < 0.5:  # some clients sort the keys
        parameters = dict(sorted(parameters.items()))
    return {"type": "function", "function": {"name": name, "description": described, "parameters": parameters}}
