"""The events of the modelled hypervisor: one file of JSON lines per instance, numbered over the whole world."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import attrs

from hvcore import Event, EventBatch, Finding, FindingSet, InvalidParameters, private_directory
from hvcore_fake.clock import VirtualClock
from hvcore_fake.faults import FaultPlan
from hvcore_fake.store import Store

_LAST = "data/events.json"


def events_key(name: str) -> str:
    """Where the events of an instance are; they outlive the host's boot and the instance's stop."""
    return f"data/instances/{name}/events.jsonl"


@attrs.frozen(kw_only=True)
class LastEvent:
    """The number of the last event of the world."""

    number: int


@attrs.frozen(kw_only=True)
class NumberedEvent:
    """One event with its number; numbers grow over the whole world and are never given twice."""

    number: int
    event: Event


class EventLog:
    """Writes and reads the events of all instances."""

    def __init__(self, store: Store, clock: VirtualClock, faults: FaultPlan) -> None:
        self._store = store
        self._clock = clock
        self._faults = faults

    @property
    def last(self) -> int:
        """Number of the last event of the world."""
        record = self._store.read(_LAST, LastEvent)
        return 0 if record is None else record.number

    def append(self, instance: str, event: str, **data: Any) -> None:
        """Write one event, unless a fault loses it. The caller holds the world's lock."""
        if self._faults.loses(event, instance):
            return
        number = self.last + 1
        # The number first: one that is used twice would hide an event from a reader, one that is missing does not.
        self._store.write(_LAST, LastEvent(number=number))
        path = self._store.path(events_key(instance))
        private_directory(os.path.dirname(path))
        line = json.dumps({"number": number, "event": event, "time": self._clock(), "data": data})
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)

    def of(self, instance: str, after: int = 0) -> tuple[NumberedEvent, ...]:
        """The events of one instance with a number above ``after``; lines that are no events are passed over."""
        try:
            with open(self._store.path(events_key(instance)), encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(found for line in lines for found in _read(line, instance) if found.number > after)

    def after(self, cursor: str | None) -> EventBatch:
        """All events after a cursor. The caller holds the world's lock.

        Raises:
            InvalidParameters: it is no cursor of this driver.
        """
        number = _number(cursor)
        names = self._store.names("data/instances/", "")
        found = sorted((e for name in names for e in self.of(name, number)), key=lambda e: e.number)
        end = max(number, self.last)
        return EventBatch(events=tuple(numbered.event for numbered in found), cursor=str(end))


def _read(line: str, instance: str) -> Iterator[NumberedEvent]:
    try:
        entry = json.loads(line)
        event = Event(name=entry["event"], instance=instance, time=float(entry["time"]), data=dict(entry["data"]))
        yield NumberedEvent(number=int(entry["number"]), event=event)
    except (ValueError, KeyError, TypeError):
        return


def _number(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if type(cursor) is str and cursor.isascii() and cursor.isdigit() and len(cursor) < 19:
        return int(cursor)
    message = "is no cursor of this driver"
    finding = Finding(code="invalid-value", path="cursor", message=message, hint="hand back the cursor of a batch")
    raise InvalidParameters("the events cannot be read", FindingSet([finding]))
