"""`OpenAIModel` with a tool, and a `ToolCallingAgent` that calls it (it sends `tool_choice: required`)."""

import sys

from smolagents import OpenAIModel, ToolCallingAgent, tool

url, key, model = sys.argv[1:4]
asked = []


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
        city: The city.
    """
    asked.append(city)
    return "sunny, 21 degrees"


chat = OpenAIModel(model_id=model, api_base=url, api_key=key)
question = [{"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]}]
answer = chat.generate(question, tools_to_call_from=[get_weather], tool_choice="auto")
(call,) = answer.tool_calls
assert call.function.name == "get_weather", answer
assert "Paris" in str(call.function.arguments), answer

ToolCallingAgent(tools=[get_weather], model=chat, max_steps=2).run("What is the weather in Paris?")
assert asked, "the agent did not call the tool"
print(asked)
