"""300 requests at once with the asynchronous client's default retries; none may be lost."""

import asyncio
import sys

import openai

url, key, model = sys.argv[1:4]
REQUESTS = 300


async def main() -> None:
    client = openai.AsyncOpenAI(base_url=url, api_key=key)
    question = [{"role": "user", "content": "Say hello."}]
    answers = await asyncio.gather(
        *(client.chat.completions.create(model=model, messages=question, max_tokens=4) for _ in range(REQUESTS)),
        return_exceptions=True,
    )
    lost = [repr(answer) for answer in answers if isinstance(answer, BaseException)]
    assert not lost, f"{len(lost)} of {REQUESTS} were lost, the first: {lost[0]}"
    assert all(answer.choices[0].message.content for answer in answers)
    print(f"{len(answers)} answers")


asyncio.run(main())
