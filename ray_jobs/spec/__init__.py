"""The job file: one YAML document, one frozen schema, every default. Knows no store, model or cluster.

The fields' docstrings are the descriptions of the exported JSON schema.
"""

from ray_jobs.spec.job import DEFAULT_TEAM, JobSpec
from ray_jobs.spec.reading import json_schema, load_spec, parse_spec, parse_yaml, read_yaml
from ray_jobs.spec.search import BudgetSection, SearchSection
from ray_jobs.spec.section import SpecSection
from ray_jobs.spec.sections import (
    NAME_RULE,
    TRACKING_CREDENTIALS,
    ComputeSection,
    DataSection,
    EvaluationSection,
    MlflowSection,
    Name,
    Precision,
    ServingSection,
    TrackingSection,
    TrainingSection,
    WandbSection,
    is_name,
)
from ray_jobs.spec.space import Range

__all__ = [
    "DEFAULT_TEAM", "NAME_RULE", "TRACKING_CREDENTIALS", "BudgetSection", "ComputeSection", "DataSection",
    "EvaluationSection", "JobSpec", "MlflowSection", "Name", "Precision", "Range", "SearchSection", "ServingSection",
    "SpecSection", "TrackingSection", "TrainingSection", "WandbSection", "is_name", "json_schema", "load_spec",
    "parse_spec", "parse_yaml", "read_yaml",
]  # fmt: skip
