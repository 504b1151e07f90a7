"""The commands `promote`, `rollback`, `traffic`, `share` and `unshare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ray_jobs import deploy, registry
from ray_jobs.__main__ import cli
from ray_jobs.cli import session
from ray_jobs.deploy import records, traffic
from ray_jobs.deploy.traffic import Bounds
from ray_jobs.registry import shares
from ray_jobs.storage import Workspace
from tests.serving.inference.rollouts import API_NAME, JOB, champion, policy_of
from tests.serving.routing import deploy_version, register_next


@pytest.fixture
def kitae(store: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command on the test's store."""
    monkeypatch.setattr(session, "open_store", lambda *, check=True: store)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_the_commands_start_a_canary_promote_and_roll_back(
    kitae: Callable[..., Result], store: Workspace, greeter: str
) -> None:
    assert "the alias alone decides" in kitae("traffic", greeter).output
    assert "receives a copy" in kitae("promote", greeter, "2", "--shadow").output
    started = kitae("promote", greeter, "2", "--canary", "10", "--max-p95-s", "2.0").output
    assert started.startswith("greeter@2 answers 10 % of the requests to greeter@champion; it stops automatically if")
    assert policy_of(store).canary is not None
    assert policy_of(store).canary.bounds == Bounds(max_p95_s=2.0)  # type: ignore[union-attr]  # asserted above
    shown = kitae("traffic", greeter).output
    assert "canary   greeter@2, 10 % of greeter@champion" in shown
    assert "shadow" not in shown
    assert "canary   greeter@2" in kitae("models", greeter).output
    document = json.loads(kitae("traffic", greeter, "--json").output)
    assert (document["aliases"], document["policy"]["canary"]["percent"]) == ({"champion": "1"}, 10.0)
    assert "canary 2 ended" in kitae("rollback", greeter).output
    assert kitae("promote", greeter, "2").output == "greeter@champion is version 2, before 1\n"
    assert "undone automatically" in kitae("promote", greeter, "3", "--max-error-rate", "0.2").output
    watch = policy_of(store).watch
    assert watch is not None
    assert (watch.version, watch.back_to, watch.bounds.max_error_rate) == ("3", "2", 0.2)
    assert kitae("rollback", greeter).output == "greeter@champion is version 2 again, before 3\n"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--canary", "10", "--shadow"], "either a canary or a shadow"),
        (["--shadow", "--max-p95-s", "1"], "a shadow has no bounds"),
        (["--canary", "10", "--watch-s", "60"], "for a whole promotion"),
        (["--canary", "0"], "0<x<=100"),
    ],
)
def test_conflicting_options_are_refused(
    kitae: Callable[..., Result], store: Workspace, greeter: str, options: list[str], match: str
) -> None:
    refused = kitae("promote", greeter, "2", *options)
    assert refused.exit_code == 2
    assert match in refused.output
    assert (champion(store), traffic.read(store, greeter)) == ("1", None)


def test_a_model_with_its_own_engine_is_redeployed_when_its_alias_moves(
    kitae: Callable[..., Result], store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed: list[str] = []

    def deploy_it(store: Workspace, ref: str, *_: Any, **__: Any) -> deploy.Deployed:
        deployed.append(ref)
        return deploy.Deployed("whole", registry.get(store, ref).version, None, "http://here/v1", recorded_only=False)

    monkeypatch.setattr(deploy, "deploy", deploy_it)
    for _ in range(2):
        deploy_version(store, register_next(store, "whole", adapter=False))
    registry.set_alias(store, "whole", "champion", "2")
    assert "whole (version 1) answers" in kitae("promote", "whole", "1").output
    assert "greeter" not in kitae("promote", "whole", "2").output
    assert deployed == ["whole"]
    kitae("rollback", "whole")
    kitae("promote", "whole", "1", "--alias", "prod")
    assert deployed == ["whole", "whole"]


def test_promoting_a_pinned_name_warns_that_it_does_not_follow(
    kitae: Callable[..., Result], store: Workspace, greeter: str
) -> None:
    record = records.read(store, greeter)
    assert record is not None
    records.write(store, record.model_copy(update={"label": "1"}))
    assert "requests to greeter alone go to greeter@1, as deployed" in kitae("promote", greeter, "2").output


def test_a_model_is_shared_by_either_of_its_names(kitae: Callable[..., Result], store: Workspace, greeter: str) -> None:
    deploy_version(store, register_next(store, JOB))
    assert kitae("share", API_NAME, "--team", "sales").output == f"{JOB} is shared with sales\n"
    assert kitae("share", greeter, "--everyone").output == "greeter is shared with everyone\n"
    assert "shared with everyone" in kitae("models", greeter).output
    assert kitae("unshare", JOB).output == f"{JOB} is shared with no other team\n"
    assert kitae("share", greeter).exit_code != 0
    (name, share), *others = shares.read_all(store).items()
    assert (name, share.teams, share.everyone, others) == (greeter, (), True, [])
