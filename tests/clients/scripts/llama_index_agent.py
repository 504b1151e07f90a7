"""A `FunctionAgent` over `OpenAILike`, whose documentation sets the two flags for servers other than OpenAI."""

import asyncio
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, key, model = sys.argv[1:4]
asked = []


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    asked.append(city)
    return "sunny, 21 degrees"


async def main() -> None:
    llm = OpenAILike(api_base=url, api_key=key, model=model, is_chat_model=True, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(get_weather)
    answer = await llm.achat_with_tools([tool], user_msg="What is the weather in Paris?")
    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"}), call
    said = await FunctionAgent(tools=[get_weather], llm=llm).run("What is the weather in Paris?")
    assert asked == ["Paris"], asked
    assert "21 degrees" in str(said), said
    print(said)


asyncio.run(main())
