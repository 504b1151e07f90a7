"""The prices of an installation: those of its flavors, or without a cluster those of KITAE_PRICES.

A job's record does not have its flavor, so an hour costs as much as on the dearest flavor of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from ray_jobs.cluster import settings
from ray_jobs.cluster.settings import ClusterSettings
from ray_jobs.errors import SpecError
from ray_jobs.tenancy.prices import Prices


def from_environment(environment: Mapping[str, str]) -> Prices | None:
    """The prices of the flavors in KITAE_CLUSTER, else of KITAE_PRICES. None: there are none. Raises SpecError."""
    found, text = settings.from_environment(environment), environment.get("KITAE_PRICES")
    if found is not None:
        if text:
            raise SpecError("KITAE_PRICES is set beside KITAE_CLUSTER, whose flavors have the prices: leave it out")
        return of_flavors(found)
    if not text:
        return None
    try:
        return Prices.model_validate_json(text)
    except ValidationError as error:
        raise SpecError(
            f'KITAE_PRICES is {text[:200]!r}; it is a JSON object such as {{"gpu_hour": 3.2, "cpu_hour": 0.1}}'
        ) from error


def of_flavors(cluster: ClusterSettings) -> Prices | None:
    """The highest price of a flavor with GPUs and of one without. None: no flavor has a price. Pure."""
    gpu = [each.price_per_hour for each in cluster.flavors.values() if each.resource is not None]
    cpu = [each.price_per_hour for each in cluster.flavors.values() if each.resource is None]
    known = {"gpu_hour": [p for p in gpu if p is not None], "cpu_hour": [p for p in cpu if p is not None]}
    return Prices(**{name: max(prices) for name, prices in known.items() if prices}) if any(known.values()) else None
