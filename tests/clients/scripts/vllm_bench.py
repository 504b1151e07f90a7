"""`vllm bench serve` through completions (its default) and chat completions; only the sizes are small."""

import json
import os
import subprocess
import sys
from pathlib import Path

# The command of vLLM's CPU build does not start: it looks for the version of a package `vllm`.
BENCH = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
url, key, model, tokenizer = sys.argv[1:5]
SIZES = ["--num-prompts", "16", "--random-input-len", "64", "--random-output-len", "16"]

for options in ([], ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]):
    command = [sys.executable, "-c", BENCH, "--base-url", url.removesuffix("/v1")]
    result = ["--save-result", "--result-filename", "result.json"]
    subprocess.run(
        [*command, "--model", model, "--tokenizer", tokenizer, *SIZES, *options, *result],
        env={**os.environ, "OPENAI_API_KEY": key},
        check=True,
    )
    found = json.loads(Path("result.json").read_text())
    assert (found["completed"], found["failed"]) == (16, 0), found
    assert found["total_output_tokens"] > 0, found
