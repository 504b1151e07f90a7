"""An answer as a pydantic model."""

import sys

import instructor
import openai
from pydantic import BaseModel

url, key, model = sys.argv[1:4]


class GetWeather(BaseModel):
    """Get the current weather for a city."""

    city: str


client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key))
question = [{"role": "user", "content": "What is the weather in Paris?"}]
found = client.chat.completions.create(model=model, messages=question, response_model=GetWeather)
assert found.city == "Paris", found
print(found)
