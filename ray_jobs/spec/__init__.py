"""The job file: one YAML document, one frozen schema, every default. Knows no store, model or cluster.

A section is a file; the fields' docstrings are the descriptions of the exported JSON schema.
"""

from ray_jobs.spec.compute import ComputeSection
from ray_jobs.spec.data import DataSection
from ray_jobs.spec.evaluation import EvaluationSection
from ray_jobs.spec.job import JobSpec
from ray_jobs.spec.reading import json_schema, load_spec, parse_spec, read_yaml
from ray_jobs.spec.search import BudgetSection, Range, SearchSection
from ray_jobs.spec.section import NAME_RULE, Name, SpecSection, is_name
from ray_jobs.spec.serving import ServingSection
from ray_jobs.spec.training import Precision, TrainingSection

__all__ = [
    "NAME_RULE", "BudgetSection", "ComputeSection", "DataSection", "EvaluationSection", "JobSpec", "Name", "Precision",
    "Range", "SearchSection", "ServingSection", "SpecSection", "TrainingSection", "is_name", "json_schema", "load_spec",
    "parse_spec", "read_yaml",
]  # fmt: skip
