"""`guidellm benchmark` with synthetic prompts; only the sizes are small."""

import json
import subprocess
import sys
from pathlib import Path

url, key, model, tokenizer = sys.argv[1:5]
command = [sys.executable, "-m", "guidellm", "benchmark", "run", "--target", url.removesuffix("/v1"), "--model", model]
options = ["--processor", tokenizer, "--backend-kwargs", json.dumps({"api_key": key})]
sizes = ["--data", "prompt_tokens=64,output_tokens=16", "--profile", "synchronous", "--max-requests", "8"]
subprocess.run([*command, *options, *sizes, "--output-path", "benchmarks.json"], check=True)
(benchmark,) = json.loads(Path("benchmarks.json").read_text())["benchmarks"]
counts = benchmark["metrics"]["request_totals"]
print(counts)
assert (counts["successful"], counts["errored"]) == (8, 0), counts
