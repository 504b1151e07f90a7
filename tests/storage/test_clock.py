"""The store's time: learnt from its answers, independent of the local clock, and the only time of Kitae's decisions."""

from __future__ import annotations

import ast
import time
from email.utils import formatdate

import pytest

from ray_jobs.errors import StoreLacks
from ray_jobs.storage import Store
from ray_jobs.storage.clock import StoreClock
from tests.conftest import StoreServer
from tests.repository import ROOT
from tests.storage.clocks import clock_off
from tests.storage.faulty_store import Forward, Request, Response, faulty

OTHER_CLOCKS = {
    "ray_jobs/cli/keys.py": "the state that is shown",
    "ray_jobs/cli/quota.py": "compared with times of Kubernetes, and shown",
    "ray_jobs/cli/quota_past.py": "shown",
    "ray_jobs/cli/session.py": "the default of --until",
    "ray_jobs/importing/client.py": "compared with a date of another server's answer",
    "ray_jobs/launch/kubernetes.py": "the default where there is no store",
    "ray_jobs/registry/catalogue.py": "shown",
    "ray_jobs/registry/owners.py": "shown",
    "ray_jobs/registry/model.py": "shown",
    "ray_jobs/search/records.py": "shown; written once by one process",
    "ray_jobs/tracking/": "the tracker's own time",
    "serving/inference/traffic.py": "without a store",
    "serving/observability/usage_ledger.py": "the day of a row; it must not wait for the store",
    "serving/observability/middleware.py": "the time of a line of the log",
}
"""Modules and folders that may read the local clock, with the reason."""


def test_the_estimate_is_the_newest_lower_bound() -> None:
    at_s = [100.0]
    clock = StoreClock(lambda: at_s[0])
    assert clock.now_s() is None
    clock.learn("not a date")
    clock.learn(None)
    assert clock.now_s() is None
    clock.learn(formatdate(1_800_000_000, usegmt=True))
    at_s[0] += 0.75
    assert clock.now_s() == 1_800_000_000.75
    clock.learn(formatdate(1_800_000_000, usegmt=True))  # the same second
    assert clock.now_s() == 1_800_000_000.75
    clock.learn(formatdate(1_800_000_001, usegmt=True))  # the store was later in its second than assumed
    assert clock.now_s() == 1_800_000_001
    clock.learn(formatdate(1_799_999_000, usegmt=True))  # someone set the store's clock
    assert clock.now_s() == 1_799_999_000


@pytest.mark.parametrize("ahead_s", [600.0, -600.0])
def test_the_time_is_the_stores_whatever_the_local_clock_says(store: Store, ahead_s: float) -> None:
    with clock_off(ahead_s):
        store.put("a", b"")  # a signature with the wrong time is accepted
        found_s, modified_s = store.now_s(), next(store.list()).modified_s
        assert time.time() > time.monotonic()
    assert found_s == pytest.approx(time.time(), abs=5)
    assert modified_s == pytest.approx(time.time(), abs=5)
    assert store.now().timestamp() == pytest.approx(time.time(), abs=5)


def test_a_store_without_a_date_is_refused(store: Store, store_server: StoreServer) -> None:
    def undated(request: Request, forward: Forward) -> Response:
        answer = forward(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() != "date"}
        return Response(answer.status, kept, answer.body)

    with faulty(store_server.settings(), undated) as settings, pytest.raises(StoreLacks, match="no Date header"):
        Store(store.uri(), settings).now_s()


def test_only_listed_modules_read_the_local_clock() -> None:
    """A decision on the local clock fails with a replica whose clock is wrong."""
    found = set[str]()
    paths = [path for folder in ("ray_jobs", "serving") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now", "date.today"):
                found.add(path.relative_to(ROOT).as_posix())
    found = {next((entry for entry in OTHER_CLOCKS if name.startswith(entry)), name) for name in found}
    assert found - OTHER_CLOCKS.keys() == set(), "use store.now() or store.now_s()"
