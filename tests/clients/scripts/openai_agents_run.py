"""An agent with a tool, through the Responses API (the default) and through chat completions, whole and streamed."""

import asyncio
import sys

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI

url, key, model = sys.argv[1:4]
asked = []


@function_tool
def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    asked.append(city)
    return "sunny, 21 degrees"


async def main() -> None:
    client = AsyncOpenAI(base_url=url, api_key=key)
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        agent = Agent(name="Assistant", model=kind(model=model, openai_client=client), tools=[get_weather])
        result = await Runner.run(agent, "What is the weather in Paris?")
        assert "21 degrees" in result.final_output, result
        streamed = Runner.run_streamed(agent, "What is the weather in Paris?")
        async for _ in streamed.stream_events():
            pass
        assert "21 degrees" in streamed.final_output, streamed
    assert asked == ["Paris"] * 4, asked
    print(result.final_output)


asyncio.run(main())
