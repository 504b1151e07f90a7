"""`guidellm run` with synthetic prompts; only the sizes are small."""

import json
import subprocess
import sys
from pathlib import Path

url, key, model, tokenizer = sys.argv[1:5]
command = [sys.executable, "-m", "guidellm", "run"]
server = f"kind=openai_http,target={url.removesuffix('/v1')},model={model},api_key={key}"
subprocess.run(
    [*command, "--backend", server, "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
     "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16", "--profile", "kind=synchronous",
     "--constraint", "kind=max_requests,count=8", "--output", "kind=json,path=benchmarks.json"],
    check=True,
)  # fmt: skip
(benchmark,) = json.loads(Path("benchmarks.json").read_text())["benchmarks"]
counts = benchmark["metrics"]["request_totals"]
print(counts)
assert (counts["successful"], counts["errored"]) == (8, 0), counts
