"""A point in time by which something must be done; every wait in hvcore takes one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import attrs


@attrs.frozen
class Deadline:
    """A point on a monotonic clock.

    Attributes:
        at: the point, in seconds of ``clock``; infinite for "no deadline".
        clock: reads the time in seconds; tests and the fake driver give a virtual one.
    """

    at: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline that many seconds from now; ``None`` means none."""
        return cls(math.inf if seconds is None else clock() + seconds, clock)

    def remaining(self) -> float:
        """Seconds left, never negative; infinite when there is no deadline."""
        return max(0.0, self.at - self.clock())

    @property
    def expired(self) -> bool:
        """Nothing is left."""
        return self.clock() >= self.at

    def timeout(self, limit: float = 3600.0) -> float:
        """Seconds left, at most ``limit``: what to hand to a system call that wants a finite number."""
        return min(self.remaining(), limit)

    def sooner(self, seconds: float) -> Deadline:
        """This deadline, or the one ``seconds`` from now, whichever comes first."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)
