"""The same preparation in one process, with `datasets` and `datasketch`: the peer of `prepare_rows`.

    python -m benchmarks.datasets_recipe ROWS.jsonl DIRECTORY

Repairs, the search for personal data and the features of outliers are the same functions. Near duplicates are found by
MinHash LSH over the same n-grams with as many permutations, and dropped by the estimated similarity.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.data.clean.characters import visible
from ray_jobs.data.clean.mojibake import repaired
from ray_jobs.data.clean.ngrams import gram_set
from ray_jobs.data.clean.outliers import features, outliers
from ray_jobs.data.clean.personal_data import find

SIMILARITY, PERMUTATIONS = 0.8, 128


def main(source: str, directory: str) -> None:
    from datasets import disable_progress_bars, load_dataset  # type: ignore[import-not-found]  # the peer's environment
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]  # as above

    disable_progress_bars()
    rows = load_dataset("json", data_files=source, split="train", cache_dir=f"{directory}/cache")
    kinds: Counter[str] = Counter()

    def cleaned(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [visible(repaired(text)) for text in batch["text"]]
        for text in texts:
            kinds.update({finding.kind for finding in find(text)})
        return {"text": texts}

    rows = rows.map(cleaned, batched=True)
    seen: set[bytes] = set()
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)

    def is_new(row: dict[str, str], number: int) -> bool:
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
        if digest in seen:
            return False
        seen.add(digest)
        found = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda gram: int(gram) & 0xFFFFFFFF)
        found.update_batch(gram_set(row["text"]).tolist())
        if index.query(found):
            return False
        index.insert(str(number), found)
        return True

    rows = rows.filter(is_new, with_indices=True)
    labels: dict[bytes, set[str]] = {}
    for row in rows:
        labels.setdefault(hashlib.sha256(row["text"].encode()).digest(), set()).add(row["label"])
    values = np.concatenate([features(batch["text"]) for batch in rows.iter(10_000)])
    rows = rows.class_encode_column("label")
    first = rows.train_test_split(0.1, seed=0, stratify_by_column="label")
    second = first["test"].train_test_split(0.5, seed=0, stratify_by_column="label")
    for name, side in (("train", first["train"]), ("validation", second["train"]), ("test", second["test"])):
        side.to_json(Path(directory) / f"{name}.jsonl")
    conflicts = sum(len(each) > 1 for each in labels.values())
    print(f"{len(rows):,} rows, {conflicts} conflicts, {len(outliers(values))} outliers, {dict(kinds)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
