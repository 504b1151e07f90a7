"""Background tasks do not wait for each other."""

from __future__ import annotations

import threading

from serving.http.background import BackgroundLoop, PeriodicTask


def test_a_hanging_task_delays_no_other() -> None:
    released, twice, runs = threading.Event(), threading.Event(), list[int]()

    def count() -> None:
        runs.append(1)
        if len(runs) == 2:
            twice.set()

    loop = BackgroundLoop([PeriodicTask("hangs", 0.01, lambda: released.wait(60)), PeriodicTask("counts", 0.01, count)])
    loop.start()
    try:
        assert twice.wait(30)
        assert not released.is_set()
    finally:
        released.set()
        loop.stop()


def test_a_task_is_woken_alone_and_survives_its_failure() -> None:
    ran, woken = threading.Event(), threading.Event()
    other: list[int] = []

    def fail() -> None:
        (woken if ran.is_set() else ran).set()
        raise ZeroDivisionError("a bug")

    task = PeriodicTask("fails", 3600.0, fail)
    loop = BackgroundLoop([task, PeriodicTask("other", 3600.0, lambda: other.append(1))])
    loop.start()
    try:
        assert ran.wait(30)
        while not woken.is_set():
            task.wake.set()
            woken.wait(0.01)
    finally:
        loop.stop()
    assert other == [1]
