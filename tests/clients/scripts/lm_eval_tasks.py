"""`lm_eval` on local tasks: generation through chat completions, log-likelihoods through completions."""

import json
import os
import subprocess
import sys
from pathlib import Path

url, key, model, tokenizer = sys.argv[1:5]
ROWS = [{"question": "Say hello.", "choices": ["Hello!", "Zebra."], "gold": 0} for _ in range(4)]
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test"}
TASKS = {
    "generated": DATA
    | {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
    },
    "chosen": DATA
    | {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    },
}
RUNS = {
    "generated": ("local-chat-completions", "chat/completions", ["--apply_chat_template"]),
    "chosen": ("local-completions", "completions", []),
}

Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
for task, (kind, route, options) in RUNS.items():
    Path(f"{task}.yaml").write_text(json.dumps({"task": task, **TASKS[task]}))
    arguments = f"model={model},base_url={url}/{route},tokenizer={tokenizer}"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments, "--tasks", f"{task}.yaml",
         "--output_path", f"results-{task}", *options],
        env={**os.environ, "OPENAI_API_KEY": key},
        check=True,
    )  # fmt: skip
    (file,) = Path(f"results-{task}").rglob("*.json")
    scores = json.loads(file.read_text())["results"][task]
    print(task, scores)
    assert any(value >= 0.5 for name, value in scores.items() if name.startswith(("acc", "exact_match"))), scores
