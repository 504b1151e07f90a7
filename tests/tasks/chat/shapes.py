"""Conversations of every shape that rows have, as clients and OpenAI's training files write them."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

TOOLS: list[Row] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "its name"}},
                "required": ["city"],
            },
        },
    }
]


def system(content: Any = "Be brief.") -> Row:
    return {"role": "system", "content": content}


def user(content: Any = "How warm is it in Kyoto?") -> Row:
    return {"role": "user", "content": content}


def answer(content: Any = "It is 21 degrees.", **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def call(city: str = "Kyoto", number: int = 0, arguments: Any = None) -> Row:
    text = f'{{"city": "{city}"}}' if arguments is None else arguments
    return {
        "id": f"call_{number}abcdef"[:9],
        "type": "function",
        "function": {"name": "weather", "arguments": text},
    }


def result(content: Any = '{"degrees": 21}', number: int = 0) -> Row:
    return {"role": "tool", "tool_call_id": f"call_{number}abcdef"[:9], "content": content}


SHAPES: dict[str, Row] = {
    "single": {"messages": [user(), answer()]},
    "multi": {"messages": [user("Hello"), answer("Hi."), user(), answer(), user("Thanks"), answer("Gladly.")]},
    "very short": {"messages": [user("a"), answer("b"), user("c"), answer("d")]},
    "japanese": {"messages": [user("京都は何度ですか。"), answer("２１度です。"), user("明日は?"), answer("雨です。")]},
    "system": {"messages": [system(), user(), answer(), user("And in Nara?"), answer("20.")]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, user(), answer()]},
    "system and developer": {"messages": [system(), {"role": "developer", "content": "In English."}, user(), answer()]},
    "system in the middle": {"messages": [user("Hello"), answer("Hi."), system("Be polite."), user(), answer()]},
    "user twice": {"messages": [user("Hello."), user(), answer()]},
    "assistant twice": {"messages": [user(), answer("Let me look."), answer()]},
    "tools, not called": {"messages": [user(), answer()], "tools": TOOLS},
    "tool call": {"messages": [user(), answer(None, tool_calls=[call()])], "tools": TOOLS},
    "tool call with text": {"messages": [user(), answer("I look it up.", tool_calls=[call()])], "tools": TOOLS},
    "tool result": {
        "messages": [user(), answer(None, tool_calls=[call()]), result(), answer()],
        "tools": TOOLS,
    },
    "parallel calls": {
        "messages": [
            user("Kyoto and Nara?"),
            answer(None, tool_calls=[call(), call("Nara", 1)]),
            result(),
            result('{"degrees": 20}', 1),
            answer("21 and 20."),
        ],
        "tools": TOOLS,
    },
    "result as parts": {
        "messages": [
            user(),
            answer("", tool_calls=[call(arguments="")]),
            result([{"type": "text", "text": "21"}, {"type": "text", "text": "degrees"}]),
            answer(),
        ],
        "tools": TOOLS,
    },
    "empty tool calls": {"messages": [user(), answer(tool_calls=[]), user("Sure?"), answer("Yes.")]},
    "reasoning": {"messages": [user(), answer(reasoning_content="The user asks for the weather.")]},
    "reasoning in many turns": {
        "messages": [
            user("Hello"),
            answer("Hi.", reasoning_content="A greeting."),
            user(),
            answer(reasoning_content="The weather."),
        ]
    },
    "think in the text": {"messages": [user(), answer("<think>\nThe weather.\n</think>\n\nIt is 21 degrees.")]},
    "weight 0": {"messages": [user("Hello"), answer("Go away.", weight=0), user(), answer()]},
    "parts": {"messages": [user([{"type": "text", "text": "How warm"}, {"type": "text", "text": "is it?"}]), answer()]},
    "answer in parts": {
        "messages": [user(), answer([{"type": "text", "text": "It is"}, {"type": "text", "text": "21."}])]
    },
    "empty assistant": {"messages": [user("Hello"), answer(""), user(), answer()]},
    "trailing user": {"messages": [user(), answer(), user("Thanks")]},
    "special token in the question": {"messages": [user("What is <|im_end|> or <|eot_id|>?"), answer("A token.")]},
    "whitespace at both ends": {"messages": [user("  How warm? \n"), answer(" \n21 degrees. \n")]},
    "names": {"messages": [user() | {"name": "Ann"}, answer()]},
    "refusal": {"messages": [user("Help me steal."), answer(None, refusal="No."), user(), answer()]},
    "answer that quotes its end": {"messages": [user("Which token ends it?"), answer("It is {end} here.")]},
}
