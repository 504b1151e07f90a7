"""`cluster.yaml`: what it may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ray_jobs.cluster import settings
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import SpecError
from tests.cluster.builders import SETTINGS


def test_the_file_is_read_where_the_environment_names_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    found = settings.from_environment({"KITAE_CLUSTER": str(path)})
    assert found is not None
    assert found.teams["blue"].namespace == "kitae-blue"
    assert found.worker.gpu == 1
    assert settings.from_environment({}) is None
    with pytest.raises(SpecError, match="not readable"):
        settings.from_environment({"KITAE_CLUSTER": str(tmp_path / "none")})


def test_everything_that_is_wrong_is_told_at_once() -> None:
    wrong = {**SETTINGS, "imagee": "x", "worker": {"gpu": -1, "cpu": "four"}}
    with pytest.raises(SpecError) as caught:
        settings.parse(wrong)
    told = "\n".join(caught.value.details)
    assert all(name in told for name in ("imagee", "worker.gpu", "worker.cpu"))
    with pytest.raises(SpecError, match="1 field"):
        settings.parse(None)


def test_two_teams_cannot_have_one_queue() -> None:
    team = SETTINGS["teams"]["blue"]
    with pytest.raises(SpecError) as caught:
        settings.parse({**SETTINGS, "teams": {"blue": team, "red": team}})
    assert "blue and red have the same queue" in caught.value.details[0]


@pytest.mark.parametrize(
    ("priority", "wanted"),
    [(-100, "kitae-low"), (-1, "kitae-low"), (0, "kitae-normal"), (99, "kitae-normal"), (100, "kitae-high")],
)
def test_a_priority_has_the_highest_class_that_is_not_above_it(priority: int, wanted: str) -> None:
    assert settings.parse(SETTINGS).priority_class(priority) == wanted


def test_a_priority_below_all_classes_has_the_lowest_and_without_classes_none() -> None:
    found = ClusterSettings(image="i", priority_classes={"a": 10, "b": 20})
    assert found.priority_class(0) == "a"
    assert ClusterSettings(image="i").priority_class(0) is None
