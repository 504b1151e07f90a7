"""`ChatOpenAI` with a bound tool, whole and streamed, and an agent that runs the tool."""

import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, key, model = sys.argv[1:4]
asked = []


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    asked.append(city)
    return "sunny, 21 degrees"


chat = ChatOpenAI(base_url=url, api_key=key, model=model)
bound = chat.bind_tools([get_weather])
(call,) = bound.invoke("What is the weather in Paris?").tool_calls
assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"}), call

whole = None
for piece in bound.stream("What is the weather in Paris?"):
    whole = piece if whole is None else whole + piece
assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", {"city": "Paris"})], whole

agent = create_agent(chat, tools=[get_weather])
state = agent.invoke({"messages": [{"role": "user", "content": "What is the weather in Paris?"}]})
assert asked == ["Paris"], asked
assert "21 degrees" in state["messages"][-1].content, state
print(state["messages"][-1].content)
