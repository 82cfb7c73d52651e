"""Moving an instance between hosts: what the two sides tell each other, and progress."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs


class MigrationPhase(enum.StrEnum):
    """How far a migration is."""

    NONE = "none"
    DISKS = "disks"
    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    POSTCOPY = "postcopy"
    POSTCOPY_PAUSED = "postcopy-paused"
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Nothing more will come of it."""
        return self.value in ("none", "completed", "cancelled", "failed")


@attrs.frozen(kw_only=True)
class MigrationInfo:
    """What the source tells the destination: decisions, never a command line.

    Attributes:
        schema: version of the format of ``record``.
        driver: name of the driver that made it.
        instance: name of the instance.
        record: the decisions the instance runs with, as plain data.
        capabilities: what the source's hypervisor can do.
    """

    schema: int
    driver: str
    instance: str
    record: Mapping[str, Any]
    capabilities: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class MigrationTarget:
    """Where a destination listens.

    Attributes:
        address: IP address, or path of a UNIX socket.
        port: TCP port; ``None`` for a UNIX socket.
        tls_hostname: name the destination's certificate must carry; ``None`` without TLS.
        disks_port: TCP port at which it takes disks; ``None`` when none are copied.
    """

    address: str
    port: int | None = None
    tls_hostname: str | None = None
    disks_port: int | None = None


@attrs.frozen(kw_only=True)
class MigrationStatus:
    """How a migration goes, sizes in bytes, times in seconds.

    Attributes:
        phase: how far it is.
        transferred: bytes sent so far: of the disks in phase ``disks``, else of the guest's memory.
        remaining: bytes still to send, of the same.
        total: bytes of the disks that are copied in phase ``disks``, else of guest memory.
        rate: bytes a second.
        dirty_rate: bytes a second the guest changes.
        expected_downtime: seconds the guest would pause if it were switched over now.
        downtime: seconds the guest paused as the source measured it, which ends when all of it has been sent.
        stopped: when the guest was stopped to go over, in seconds since the epoch on the source's clock; ``None`` as
            long as it has not been, or when the driver cannot say.
        total_time: seconds since the migration began.
        error: the hypervisor's own words, when it failed.
    """

    phase: MigrationPhase
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    rate: float = 0.0
    dirty_rate: float = 0.0
    expected_downtime: float | None = None
    downtime: float | None = None
    stopped: float | None = None
    total_time: float = 0.0
    error: str = ""


@attrs.frozen(kw_only=True)
class MigrationCompatibility:
    """Whether two versions can exchange an instance.

    Attributes:
        safe: they can.
        reason: why not, or what to watch.
    """

    safe: bool
    reason: str = ""


@attrs.frozen(kw_only=True)
class SavedInstance:
    """An instance saved to a file.

    Attributes:
        name: name of the instance.
        path: the file.
        size: its size in bytes.
    """

    name: str
    path: str
    size: int


@attrs.frozen(kw_only=True)
class MigrationResult:
    """A migration that succeeded.

    Attributes:
        instance: name of the instance, which runs (or is paused, as it was) on the destination.
        total_time: seconds it took, from the first byte to the last, as its source measured it; never less than
            `downtime`.
        downtime: seconds the guest paused at most: from when it was stopped on the source until the destination had
            answered that it runs. ``None`` if it did not run, or the source did not say.
        transferred: bytes that were sent.
        phases: each phase that was seen and how many seconds after the beginning, in order.
        note: what there is to know about the two versions of the hypervisor; empty if nothing.
    """

    instance: str
    total_time: float = 0.0
    downtime: float | None = None
    transferred: int = 0
    phases: tuple[tuple[MigrationPhase, float], ...] = ()
    note: str = ""
