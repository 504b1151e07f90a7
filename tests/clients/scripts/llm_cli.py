"""The command `llm` with a model in `extra-openai-models.yaml` and a Python function as a tool."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

url, key, model = sys.argv[1:4]
FUNCTION = """
def get_weather(city: str) -> str:
    "Get the current weather for a city."
    return "sunny, 21 degrees"
"""

with TemporaryDirectory() as directory:
    entry = {"model_id": "weather", "model_name": model, "api_base": url, "api_key_name": "weather"}
    entry |= {"supports_tools": True}
    (Path(directory) / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    (Path(directory) / "keys.json").write_text(json.dumps({"weather": key}))
    for options in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "-m", "weather", "--functions", FUNCTION, "--td", *options]
        done = subprocess.run(
            [*command, "What is the weather in Paris?"],
            env={**os.environ, "LLM_USER_PATH": directory},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "get_weather({'city': 'Paris'})" in done.stderr, done.stderr
        assert "21 degrees" in done.stdout, done.stdout
    print(done.stdout)
