"""`OpenAIChatGenerator` with a tool, and an `Agent`."""

import sys

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

url, key, model = sys.argv[1:4]
asked = []


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    asked.append(city)
    return "sunny, 21 degrees"


tool = create_tool_from_function(get_weather)
question = [ChatMessage.from_user("What is the weather in Paris?")]
chat = OpenAIChatGenerator(api_base_url=url, api_key=Secret.from_token(key), model=model)
pieces = []
for callback in (None, pieces.append):
    (call,) = chat.run(question, tools=[tool], streaming_callback=callback)["replies"][0].tool_calls
    assert (call.tool_name, call.arguments) == ("get_weather", {"city": "Paris"}), call
assert pieces
said = Agent(chat_generator=chat, tools=[tool]).run(messages=question)["messages"][-1].text
assert asked == ["Paris"], asked
assert "21 degrees" in said, said
print(said)
