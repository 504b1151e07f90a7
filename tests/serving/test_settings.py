"""Settings of the endpoint from environment variables."""

from __future__ import annotations

import pytest

from ray_jobs.errors import SpecError
from ray_jobs.tenancy.api_keys import Limits
from serving.app import build
from serving.settings import EndpointSettings
from tests.serving.access.gate import KEY, MIB


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({}, "KITAE_API_KEY has 0 characters"),
        ({"KITAE_API_KEY": "short"}, "KITAE_API_KEY has 5 characters"),
        ({"KITAE_AUTH": "maybe", "KITAE_API_KEY": KEY}, "KITAE_AUTH is 'maybe'"),
        ({"KITAE_API_KEY": KEY, "KITAE_MAX_BODY_BYTES": "-1"}, "KITAE_MAX_BODY_BYTES is '-1'"),
        ({"KITAE_API_KEY": KEY, "KITAE_WANDB": "yes"}, "KITAE_WANDB is 'yes'"),
        ({"KITAE_API_KEY": KEY, "KITAE_KEY_LIMITS": "{"}, r"KITAE_KEY_LIMITS is invalid \(not JSON\)"),
        ({"KITAE_API_KEY": KEY, "KITAE_KEY_LIMITS": '{"tokens": 3}'}, r"KITAE_KEY_LIMITS is invalid \(tokens\)"),
        ({"KITAE_API_KEY": KEY, "KITAE_MAX_ONGOING_REQUESTS": "0"}, "KITAE_MAX_ONGOING_REQUESTS is '0'"),
    ],
)
def test_invalid_settings_are_refused(environment: dict[str, str], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        EndpointSettings.from_env(environment)


def test_key_and_body_limit_are_read_from_the_environment() -> None:
    assert EndpointSettings.from_env({"KITAE_AUTH": "off"}).api_key is None
    settings = EndpointSettings.from_env({"KITAE_API_KEY": KEY, "KITAE_MAX_BODY_BYTES": "2048"})
    assert (settings.api_key, settings.max_body_bytes) == (KEY, 2048)


def test_keys_without_limits_have_the_defaults() -> None:
    assert EndpointSettings.from_env({"KITAE_API_KEY": KEY}).key_limits == Limits(concurrent_requests=256)
    environment = {"KITAE_API_KEY": KEY, "KITAE_KEY_LIMITS": '{"tokens_per_minute": 900}'}
    defaults = EndpointSettings.from_env(environment).key_limits
    assert defaults == Limits(tokens_per_minute=900, concurrent_requests=256)
    own = Limits(tokens_per_minute=5, max_body_bytes=2000)
    assert own.or_else(defaults) == Limits(tokens_per_minute=5, max_body_bytes=2000, concurrent_requests=256)


@pytest.mark.parametrize(
    ("environment", "offered"),
    [({}, False), ({"WANDB_API_KEY": "k"}, False), ({"KITAE_WANDB": "on"}, True),
     ({"KITAE_WANDB": "off", "WANDB_API_KEY": "k"}, False)],
)  # fmt: skip
def test_wandb_is_offered_with_a_key_or_by_the_operators_word(environment: dict[str, str], offered: bool) -> None:
    assert EndpointSettings.from_env({"KITAE_API_KEY": KEY} | environment).offers_wandb is offered


def test_file_limit_and_open_metrics_are_read_from_the_environment() -> None:
    defaults = EndpointSettings.from_env({"KITAE_API_KEY": KEY})
    assert (defaults.max_file_bytes, defaults.metrics_open) == (512 * MIB, False)
    given = EndpointSettings.from_env(
        {"KITAE_API_KEY": KEY, "KITAE_MAX_FILE_BYTES": "2048", "KITAE_METRICS_OPEN": "on"}
    )
    assert (given.max_file_bytes, given.metrics_open) == (2048, True)
    for name, value in (("KITAE_MAX_FILE_BYTES", "1 GB"), ("KITAE_METRICS_OPEN", "yes")):
        with pytest.raises(SpecError, match=f"{name} is '{value}'"):
            EndpointSettings.from_env({"KITAE_API_KEY": KEY, name: value})


def test_serve_builds_the_application_without_the_operators_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve builds it in any process of the Ray cluster; only the API pods have the key."""
    monkeypatch.delenv("KITAE_API_KEY", raising=False)
    monkeypatch.delenv("KITAE_AUTH", raising=False)
    monkeypatch.setenv("KITAE_MAX_ONGOING_REQUESTS", "7")
    application = build({})
    assert application._bound_deployment.max_queued_requests == 7
