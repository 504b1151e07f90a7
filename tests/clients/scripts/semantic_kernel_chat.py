"""A plugin's function, called by the model's own choice."""

import asyncio
import sys

from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

url, key, model = sys.argv[1:4]
asked = []


class Weather:
    @kernel_function(description="Get the current weather for a city.")
    def get_weather(self, city: str) -> str:
        asked.append(city)
        return "sunny, 21 degrees"


async def main() -> None:
    kernel = Kernel()
    chat = OpenAIChatCompletion(ai_model_id=model, async_client=AsyncOpenAI(base_url=url, api_key=key))
    kernel.add_service(chat)
    kernel.add_plugin(Weather(), plugin_name="weather")
    settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())
    history = ChatHistory()
    history.add_user_message("What is the weather in Paris?")
    answer = await chat.get_chat_message_content(history, settings, kernel=kernel)
    assert asked == ["Paris"], asked
    assert "21 degrees" in str(answer), answer
    print(answer)


asyncio.run(main())
