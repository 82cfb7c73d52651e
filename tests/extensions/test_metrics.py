"""Metrics: counts, errors, what is in flight, durations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Metrics, OperationMetrics

Load = Callable[..., hvcore.Driver]


def _of(metrics: Metrics, operation: str, driver: str = "told") -> OperationMetrics:
    return next(m for m in metrics.snapshot() if (m.driver, m.operation) == (driver, operation))


def test_counts_and_errors(load: Load) -> None:
    """Operations are counted by driver and name, their errors by code."""
    metrics = Metrics()
    answers: dict[str, Any] = {}
    driver = load(metrics, answers=answers)
    for answer in (None, hvcore.NotRunning("x"), hvcore.NotRunning("y"), hvcore.Refused("z", code="own")):
        if answer is not None:
            answers["stop_instance"] = answer
            with pytest.raises(hvcore.HypervisorError):
                driver.stop_instance("web1")
        else:
            driver.stop_instance("web1")
    driver.list_instances()
    stop = _of(metrics, "stop_instance")
    assert (stop.count, stop.failed, dict(stop.errors)) == (4, 3, {"not-running": 2, "own": 1})
    assert [(m.operation, m.count) for m in metrics.snapshot()] == [("list_instances", 1), ("stop_instance", 4)]
    assert sum(stop.buckets) == 4
    assert len(stop.buckets) == len(stop.bounds) + 1
    assert stop.seconds > 0
    assert (stop.in_flight, stop.oldest) == (0, 0.0)


def test_what_is_no_error_of_an_operation_is_counted(load: Load) -> None:
    """Ctrl-C in an operation leaves nothing in flight."""
    metrics = Metrics()
    with pytest.raises(KeyboardInterrupt):
        load(metrics, answers={"list_instances": KeyboardInterrupt()}).list_instances()
    found = _of(metrics, "list_instances")
    assert (dict(found.errors), found.in_flight) == ({"foreign-exception": 1}, 0)


def test_a_hung_operation_shows(load: Load) -> None:
    """What has not come back is in flight, with its age."""
    metrics, entered, release = Metrics(), threading.Event(), threading.Event()

    def hang() -> Any:
        entered.set()
        release.wait(30)
        return hvcore.InstanceListing(instances=())

    driver = load(metrics, answers={"list_instances": hang})
    thread = threading.Thread(target=driver.list_instances)
    thread.start()
    assert entered.wait(30)
    found = _of(metrics, "list_instances")
    assert (found.in_flight, found.count) == (1, 0)
    assert _of(metrics, "list_instances").oldest > found.oldest > 0
    release.set()
    thread.join()
    assert _of(metrics, "list_instances").in_flight == 0


def test_many_threads_and_drivers(load: Load) -> None:
    """One extension serves several drivers and loses no count."""
    metrics = Metrics(bounds=(0.5, 0.1))
    drivers = [load(metrics, name=name) for name in ("one", "two")]

    def work() -> None:
        for _ in range(200):
            for driver in drivers:
                driver.list_instances()
            metrics.snapshot()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(m.driver, m.count, m.in_flight) for m in metrics.snapshot()] == [("one", 800, 0), ("two", 800, 0)]
    assert metrics.snapshot()[0].bounds == (0.1, 0.5)


def test_a_snapshot_is_frozen(load: Load) -> None:
    """It does not change, and cannot be changed."""
    metrics = Metrics()
    driver = load(metrics)
    driver.list_instances()
    (found,) = metrics.snapshot()
    driver.list_instances()
    assert found.count == 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        found.count = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.errors["x"] = 1  # type: ignore[index]
