"""A signature with tools, answered with tool calls, and a plain prediction."""

import sys

import dspy

url, key, model = sys.argv[1:4]


class WithTools(dspy.Signature):
    """Answer the question with a tool."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    outputs: dspy.ToolCalls = dspy.OutputField()


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return "sunny, 21 degrees"


dspy.configure(lm=dspy.LM(f"openai/{model}", api_base=url, api_key=key))
found = dspy.Predict(WithTools)(question="What is the weather in Paris?", tools=[dspy.Tool(get_weather)])
(call,) = found.outputs.tool_calls
assert (call.name, call.args) == ("get_weather", {"city": "Paris"}), found
print(call.name, call.args)
