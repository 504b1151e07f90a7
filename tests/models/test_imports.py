"""transformers and DeepSpeed are imported without packages that nothing here uses and that stay importable."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRANSFORMERS = """
import sys
from ray_jobs.models.imports import import_transformers
assert import_transformers().AutoModelForCausalLM
import transformers.generation.candidate_generator
assert "sklearn" not in sys.modules
import sklearn.metrics
assert import_transformers()
assert sys.modules["sklearn"] is sklearn
"""
DEEPSPEED = """
import sys
import ray_jobs.models.load, ray_jobs.training.trainer
from ray_jobs.models.imports import import_deepspeed
assert import_deepspeed() is sys.modules["deepspeed"]
assert "mlflow" not in sys.modules
import mlflow
assert import_deepspeed() and sys.modules["mlflow"] is mlflow
"""


@pytest.mark.parametrize("script", [TRANSFORMERS, DEEPSPEED], ids=["transformers", "deepspeed"])
def test_a_worker_imports_only_what_it_uses(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
