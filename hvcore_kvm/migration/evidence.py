"""What the events say of where a guest went whose QEMU cannot be asked any more; pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from hvcore import MigrationPhase
from hvcore_kvm.events import QemuEvent
from hvcore_kvm.migration.status import phase_of
from hvcore_kvm.runtime import MigrationRecord

_GONE = ("completed", "postcopy-active", "postcopy-paused", "postcopy-recover", "postcopy-device")
_ENDED = ("failed", "cancelled")
_MOMENT = 1e-3


class Whereabouts(enum.Enum):
    """Where the guest of a source is whose QEMU has ended."""

    HERE = "here"
    PERHAPS = "perhaps"
    GONE = "gone"


def arriving_phase(record: MigrationRecord, events: Iterable[QemuEvent]) -> MigrationPhase:
    """How far a migration is on its destination.

    QEMU is not asked: at the end of post-copy, ``query-migrate`` reads on a destination what another thread frees.

    Args:
        record: of the destination.
        events: what its QEMU has reported.
    """
    told = [e.data.get("status") for e in events if e.name == "MIGRATION" and e.time >= record.began - _MOMENT]
    return phase_of(str(told[-1])) if told else MigrationPhase.NONE


def stopped_at(record: MigrationRecord, events: Iterable[QemuEvent]) -> float | None:
    """When a guest was stopped to go over, in seconds since the epoch; ``None`` as long as it was not.

    Args:
        record: of the source.
        events: what its QEMU has reported.
    """
    found = None
    for event in events:
        if event.name in ("STOP", "RESUME") and event.time >= record.began - _MOMENT:
            found = event.time if event.name == "STOP" else None
    return found if record.runs else None


def whereabouts(record: MigrationRecord, events: Iterable[QemuEvent]) -> Whereabouts:
    """Say whether a guest can be on the other side.

    It can once it was stopped while it was being sent: what came after that, nobody on this side has seen. QEMU writes
    the event before it sends the guest's last state.

    Args:
        record: of the source.
        events: what its QEMU has reported.
    """
    found = Whereabouts.HERE
    # A guest that does not run can go over at any moment once it is being sent.
    stopped = not (record.runs and record.policy.live)
    sent = False
    for event in events:
        if event.time < record.began - _MOMENT:
            continue
        if event.name == "STOP":
            stopped = True
        elif event.name == "RESUME":
            stopped, found = False, Whereabouts.HERE
        elif event.name == "MIGRATION":
            word = str(event.data.get("status", ""))
            if word in _GONE:
                return Whereabouts.GONE
            sent = word not in (*_ENDED, "setup", "none")
            if word in _ENDED:
                found = Whereabouts.HERE
        if stopped and sent:
            found = Whereabouts.PERHAPS
    return found
