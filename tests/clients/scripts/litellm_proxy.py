"""LiteLLM's proxy in front of the model, asked by the official client, whole and streamed."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import openai

url, key, model = sys.argv[1:4]
PROXY_KEY = "sk-local"
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
question = [{"role": "user", "content": "What is the weather in Paris?"}]


def wait_for(address: str, proxy: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{address}/health/liveliness", timeout=5).close()
            return
        except OSError:
            assert proxy.poll() is None, f"the proxy ended with {proxy.returncode}"
            assert time.monotonic() < deadline, "the proxy does not answer"
            time.sleep(0.5)


with TemporaryDirectory() as directory:
    config = Path(directory) / "config.yaml"
    parameters = {"model": f"openai/{model}", "api_base": url, "api_key": key}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "weather", "litellm_params": parameters}],
                "general_settings": {"master_key": PROXY_KEY},
            }
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = str(Path(sys.executable).with_name("litellm"))
    proxy = subprocess.Popen([command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)])
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, proxy)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=PROXY_KEY)
        answer = client.chat.completions.create(model="weather", messages=question, tools=tools)
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"}), answer
        with client.chat.completions.stream(model="weather", messages=question, tools=tools) as stream:
            (call,) = stream.get_final_completion().choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"}), call
        print(call.function)
    finally:
        proxy.terminate()
        proxy.wait(30)
