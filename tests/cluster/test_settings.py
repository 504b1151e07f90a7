"""`cluster.yaml`: its fields and its validation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ray_jobs.cluster import settings
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import SpecError
from tests.cluster.builders import SETTINGS


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    found = settings.from_environment({"KITAE_CLUSTER": str(path)})
    assert found is not None
    assert found.teams["blue"].namespace == "kitae-blue"
    assert found.worker.gpu == 1
    assert settings.from_environment({}) is None
    with pytest.raises(SpecError, match="not readable"):
        settings.from_environment({"KITAE_CLUSTER": str(tmp_path / "none")})


def test_every_problem_is_reported_at_once() -> None:
    wrong = {**SETTINGS, "imagee": "x", "worker": {"gpu": -1, "cpu": "four"}}
    with pytest.raises(SpecError) as caught:
        settings.parse(wrong)
    details = "\n".join(caught.value.details)
    assert all(name in details for name in ("imagee", "worker.gpu", "worker.cpu"))
    with pytest.raises(SpecError, match="1 field"):
        settings.parse(None)


def test_two_teams_cannot_share_a_queue() -> None:
    team = SETTINGS["teams"]["blue"]
    with pytest.raises(SpecError) as caught:
        settings.parse({**SETTINGS, "teams": {"blue": team, "red": team}})
    assert "blue and red share the queue" in caught.value.details[0]


@pytest.mark.parametrize(
    ("priority", "wanted"),
    [(-100, "kitae-low"), (-1, "kitae-low"), (0, "kitae-normal"), (99, "kitae-normal"), (100, "kitae-high")],
)
def test_a_priority_maps_to_the_highest_class_not_above_it(priority: int, wanted: str) -> None:
    assert settings.parse(SETTINGS).priority_class(priority) == wanted


def test_a_priority_below_all_classes_and_no_classes() -> None:
    found = ClusterSettings(image="i", priority_classes={"a": 10, "b": 20})
    assert found.priority_class(0) == "a"
    assert ClusterSettings(image="i").priority_class(0) is None
