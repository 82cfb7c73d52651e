"""`Metrics`: how many operations there were, how they ended, how long they took, and which have not come back."""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from types import MappingProxyType

import attrs

from hvcore.errors import HypervisorError
from hvcore.hookspecs.markers import hookimpl
from hvcore.operation import OperationCall

BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the duration histogram, in seconds; a last bucket takes everything above."""

FOREIGN = "foreign-exception"
"""Stands in place of an error code for exceptions that are not a `HypervisorError`."""


@attrs.frozen(kw_only=True)
class OperationMetrics:
    """What was measured of one operation of one driver, since the extension was made.

    Attributes:
        driver: name of the driver.
        operation: name of the operation.
        count: operations that have come back, failed ones included.
        errors: how many of them failed, by error code.
        in_flight: operations that have not come back.
        oldest: seconds since the oldest of those began; zero when there is none. A hung operation shows here.
        seconds: duration of all that have come back, together.
        bounds: upper bounds of the buckets, in seconds.
        buckets: how many took at most as long as the bound of the same index and longer than the one before; one
            more bucket takes the rest.
    """

    driver: str
    operation: str
    count: int
    errors: Mapping[str, int]
    in_flight: int
    oldest: float
    seconds: float
    bounds: tuple[float, ...]
    buckets: tuple[int, ...]

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.errors.values())


class Metrics:
    """Counts and times every operation. One may be given to several drivers; safe to use from many threads.

    Args:
        bounds: upper bounds of the duration histogram, in seconds, ascending.
    """

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self._bounds = tuple(sorted(bounds))
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Generator[None, object, object]:
        """Measure one operation."""
        series = self._series.get((call.driver, call.name)) or self._add(call.driver, call.name)
        token = id(call)
        begun = series.begun[token] = time.perf_counter()
        code = None
        try:
            return (yield)
        except HypervisorError as error:
            code = error.code
            raise
        except BaseException:
            code = FOREIGN
            raise
        finally:
            seconds = time.perf_counter() - begun
            bucket = bisect.bisect_left(self._bounds, seconds)
            with self._lock:
                del series.begun[token]
                series.buckets[bucket] += 1
                series.seconds += seconds
                if code is not None:
                    series.errors[code] += 1

    def snapshot(self) -> tuple[OperationMetrics, ...]:
        """What has been measured so far, by driver and operation, in the order of their names."""
        now = time.perf_counter()
        with self._lock:
            return tuple(self._record(driver, name, now) for driver, name in sorted(self._series))

    def _add(self, driver: str, operation: str) -> _Series:
        with self._lock:
            return self._series.setdefault((driver, operation), _Series(len(self._bounds) + 1))

    def _record(self, driver: str, operation: str, now: float) -> OperationMetrics:
        series = self._series[driver, operation]
        begun = series.begun.copy()  # in one step: operations enter it without the lock
        return OperationMetrics(
            driver=driver,
            operation=operation,
            count=sum(series.buckets),
            errors=MappingProxyType(dict(series.errors)),
            in_flight=len(begun),
            oldest=max(0.0, now - min(begun.values(), default=now)),
            seconds=series.seconds,
            bounds=self._bounds,
            buckets=tuple(series.buckets),
        )


class _Series:
    """What is measured of one operation of one driver."""

    __slots__ = ("begun", "buckets", "errors", "seconds")

    def __init__(self, buckets: int) -> None:
        self.begun: dict[int, float] = {}
        self.buckets = [0] * buckets
        self.errors: Counter[str] = Counter()
        self.seconds = 0.0
