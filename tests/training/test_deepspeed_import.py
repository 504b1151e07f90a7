"""DeepSpeed is imported without MLflow, which stays importable."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import ray_jobs.models.load, ray_jobs.training.trainer
from ray_jobs.training.deepspeed_engine import import_deepspeed
assert import_deepspeed() is sys.modules["deepspeed"]
assert "mlflow" not in sys.modules
import mlflow
assert import_deepspeed() and sys.modules["mlflow"] is mlflow
"""


def test_a_worker_does_not_import_mlflow() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)
