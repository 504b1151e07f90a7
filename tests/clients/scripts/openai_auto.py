"""A tool call of the model's own choice, whole and streamed; its result; the same through the Responses API."""

import json
import sys

import openai

url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=url, api_key=key)
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
messages = [{"role": "user", "content": "What is the weather in Paris?"}]

answer = client.chat.completions.create(model=model, messages=messages, tools=tools, tool_choice="auto")
choice = answer.choices[0]
assert choice.finish_reason == "tool_calls", answer
(call,) = choice.message.tool_calls
assert (call.type, call.function.name) == ("function", "get_weather"), answer
assert json.loads(call.function.arguments) == {"city": "Paris"}, answer

name, arguments, ends = "", "", []
for chunk in client.chat.completions.create(
    model=model, messages=messages, tools=tools, tool_choice="auto", stream=True
):
    for part in chunk.choices:
        for piece in part.delta.tool_calls or []:
            assert piece.index == 0, chunk
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
        ends += [part.finish_reason] if part.finish_reason else []
assert (name, json.loads(arguments), ends) == ("get_weather", {"city": "Paris"}, ["tool_calls"]), (name, arguments)

result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
final = client.chat.completions.create(model=model, messages=[*messages, choice.message, result], tools=tools)
assert "21 degrees" in (final.choices[0].message.content or ""), final

flat = [{"type": "function", **tools[0]["function"]}]
response = client.responses.create(model=model, input="What is the weather in Paris?", tools=flat)
(item,) = [item for item in response.output if item.type == "function_call"]
assert (item.name, json.loads(item.arguments)) == ("get_weather", {"city": "Paris"}), response
print(openai.__version__, final.choices[0].message.content)
