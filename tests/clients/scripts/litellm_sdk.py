"""`litellm.completion` with a tool, whole and streamed."""

import json
import sys

import litellm

url, key, model = sys.argv[1:4]
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
request = {
    "model": f"openai/{model}",
    "api_base": url,
    "api_key": key,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": tools,
}
whole = litellm.completion(**request)
streamed = litellm.stream_chunk_builder(list(litellm.completion(**request, stream=True)))
for answer in (whole, streamed):
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather", answer
    assert json.loads(call.function.arguments) == {"city": "Paris"}, answer
    assert answer.choices[0].finish_reason == "tool_calls", answer
print(whole.choices[0].message.tool_calls[0].function)
