"""The virtual clock: it stands still until something waits or a test advances it, and all processes share it."""

from __future__ import annotations

import time

import attrs

from hvcore_fake.store import Store

KEY = "state/clock.json"


@attrs.frozen(kw_only=True)
class ClockRecord:
    """What the clock shows, in seconds since the epoch."""

    now: float


class VirtualClock:
    """Reads the virtual time. Called without arguments it is a clock for `hvcore.Deadline`.

    It first shows the host's time when the world is first changed, and is kept on disk from then on.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._first = time.time()

    def __call__(self) -> float:
        """Seconds since the epoch, as far as the modelled world is concerned."""
        record = self._store.read(KEY, ClockRecord)
        return self._first if record is None else record.now

    def set(self, now: float) -> None:
        """Show another time, never an earlier one. Guests are not told: use `World.advance`."""
        self._store.write(KEY, ClockRecord(now=max(now, self())))
