"""`vllm bench serve` through completions (its default) and chat completions; only the sizes are small."""

import json
import os
import subprocess
import sys
from pathlib import Path

url, key, model, tokenizer = sys.argv[1:5]
SIZES = ["--num-prompts", "16", "--random-input-len", "64", "--random-output-len", "16"]

for options in ([], ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]):
    command = [str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--base-url", url.removesuffix("/v1")]
    result = ["--save-result", "--result-filename", "result.json"]
    subprocess.run(
        [*command, "--model", model, "--tokenizer", tokenizer, *SIZES, *options, *result],
        env={**os.environ, "OPENAI_API_KEY": key},
        check=True,
    )
    found = json.loads(Path("result.json").read_text())
    assert (found["completed"], found["failed"]) == (16, 0), found
    assert found["total_output_tokens"] > 0, found
