"""An agent with a tool, whole and streamed."""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, key, model = sys.argv[1:4]
asked = []
agent = Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key=key)))


@agent.tool_plain
def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    asked.append(city)
    return "sunny, 21 degrees"


async def main() -> None:
    result = await agent.run("What is the weather in Paris?")
    assert "21 degrees" in result.output, result
    async with agent.run_stream("What is the weather in Paris?") as stream:
        assert "21 degrees" in await stream.get_output()
    assert asked == ["Paris", "Paris"], asked
    print(result.output)


asyncio.run(main())
