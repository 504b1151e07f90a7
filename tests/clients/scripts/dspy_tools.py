"""A signature with tools, answered with native tool calls."""

import sys

import dspy
from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition, register_provider

url, key, model = sys.argv[1:4]


class WithTools(dspy.Signature):
    """Answer the question with a tool."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    outputs: dspy.ToolCalls = dspy.OutputField()


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return "sunny, 21 degrees"


# DSPy sends tools only to models of which it knows, or is given, that they take them.
access = AccessPolicy(provider="weather", env_keys=("WEATHER_KEY",), base_url=url)
provider = ProviderDefinition.chat(access, compat=OpenAIChatCompat())
register_provider(provider, supports=ModelSupport(function_calling=True))
lm = dspy.LM(f"weather/{model}", api_key=key)
dspy.configure(lm=lm, adapter=dspy.ChatAdapter(use_native_function_calling=True))
found = dspy.Predict(WithTools)(question="What is the weather in Paris?", tools=[dspy.Tool(get_weather)])
(call,) = found.outputs.tool_calls
assert (call.name, call.args) == ("get_weather", {"city": "Paris"}), found
print(call.name, call.args)
