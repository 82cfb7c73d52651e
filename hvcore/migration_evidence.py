"""What both sides of a migration show, and what follows from it; the decision itself is a pure function."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from hvcore.errors import HypervisorError, InstanceNotFound
from hvcore.model.migration import MigrationPhase
from hvcore.model.state import InstanceState

if TYPE_CHECKING:
    from hvcore.driver import Driver
    from hvcore.migration import MigrationDestination


class Side(enum.StrEnum):
    """What one side shows."""

    RUNS = "runs"
    """On the source: the guest is here, running or paused. On the destination: it runs, or did so once."""
    MOVING = "moving"
    """The source is sending it, or may be."""
    LEFT = "left"
    """It has gone over completely, and this source will not run it again."""
    INCOMPLETE = "incomplete"
    """The destination waits for it, or for the rest of it."""
    ARRIVED = "arrived"
    """All of it is on the destination, which has not executed anything."""
    GONE = "gone"
    """No process of it lives."""
    UNKNOWN = "unknown"
    """The side does not answer."""


class Verdict(enum.Enum):
    """What follows."""

    ARRIVED = enum.auto()
    """The destination is to run it, or does."""
    STAYED = enum.auto()
    """The source has it."""
    LOST = enum.auto()
    """Neither can run it."""
    WAIT = enum.auto()
    """Not decided yet; after some time, unknown."""
    UNKNOWN = enum.auto()
    """More time would not help."""


@attrs.frozen(kw_only=True)
class Evidence:
    """What both sides show."""

    source: Side
    destination: Side

    @property
    def source_words(self) -> str:
        """The source, for people."""
        return _SOURCE[self.source]

    @property
    def destination_words(self) -> str:
        """The destination, for people."""
        return _DESTINATION[self.destination]

    @property
    def advice(self) -> str:
        """What to do."""
        if self.source is Side.LEFT and self.destination is Side.GONE:
            return "stop it on the source, then start it again on either host"
        if self.source is Side.LEFT:
            return "do not resume it on the source; when the destination answers, migrate it once more to finish"
        if self.source is Side.UNKNOWN:
            return "look at the source; run it on the destination only when its process on the source is gone"
        if self.source is Side.RUNS and self.destination is Side.RUNS:
            return "it was stopped on the source; look at both, and at its disks"
        return "look at both sides, and put each in order with recover"


_SOURCE = {
    Side.RUNS: "has it",
    Side.MOVING: "is still sending it",
    Side.LEFT: "has sent all of it and holds it stopped",
    Side.GONE: "has no process of it",
    Side.UNKNOWN: "does not answer",
}
_DESTINATION = {
    Side.RUNS: "runs it",
    Side.INCOMPLETE: "has not got all of it",
    Side.ARRIVED: "has it paused",
    Side.GONE: "has no process of it",
    Side.UNKNOWN: "does not answer",
}


def verdict(seen: Evidence, *, patient: bool = True) -> Verdict:
    """Where the guest may run: on the destination only if the source cannot run it any more.

    Args:
        seen: what both sides show.
        patient: there is time to look again at what may still change.
    """
    source, destination = seen.source, seen.destination
    waiting = Verdict.WAIT if patient else Verdict.UNKNOWN
    if source is Side.RUNS:
        return Verdict.UNKNOWN if destination is Side.RUNS else Verdict.STAYED
    if source not in (Side.LEFT, Side.GONE):
        return waiting
    if destination in (Side.RUNS, Side.ARRIVED):
        return Verdict.ARRIVED
    if destination is Side.GONE:
        return Verdict.LOST if source is Side.GONE else Verdict.UNKNOWN
    if destination is Side.INCOMPLETE and source is Side.GONE and not patient:
        return Verdict.LOST
    return waiting


def look(source: Driver, destination: MigrationDestination, name: str) -> Evidence:
    """Ask both sides. The destination first: what has arrived there does not leave it by itself."""
    there = _destination(destination, name)
    return Evidence(source=look_at_source(source, name), destination=there)


def state_of(driver: Driver | MigrationDestination, name: str) -> InstanceState | None:
    """The state of an instance, ``None`` when there is no account of it.

    Raises:
        HypervisorError: it could not be asked.
    """
    try:
        return driver.get_instance_info(name).state
    except InstanceNotFound:
        return None


def look_at_source(driver: Driver, name: str) -> Side:
    """Ask the source alone."""
    try:
        info = driver.get_instance_info(name)
        if not info.state.is_alive:
            return Side.GONE
        if info.state is InstanceState.POSTMIGRATE:
            return Side.LEFT
        if info.state is InstanceState.UNKNOWN:
            # Without a process what is unknown is where it went, not whether it can run there.
            return Side.GONE if info.pid is None else Side.UNKNOWN
        phase = driver.get_migration_status(name).phase
    except InstanceNotFound:
        return Side.GONE
    except HypervisorError:
        return Side.UNKNOWN
    if phase is MigrationPhase.COMPLETED:
        return Side.LEFT
    return Side.RUNS if phase.is_final else Side.MOVING


def _destination(destination: MigrationDestination, name: str) -> Side:
    try:
        info = destination.get_instance_info(name)
    except InstanceNotFound:
        return Side.GONE
    except HypervisorError:
        return Side.UNKNOWN
    if info.state is InstanceState.UNKNOWN:
        return Side.UNKNOWN
    if not info.state.is_alive or info.pid is None:
        return Side.GONE
    if info.state is InstanceState.INCOMING:
        return Side.INCOMPLETE
    # It was paused when it arrived; whatever else it does now, it must have been told to.
    return Side.ARRIVED if info.state in (InstanceState.PAUSED, InstanceState.PRELAUNCH) else Side.RUNS
