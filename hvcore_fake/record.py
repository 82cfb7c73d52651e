"""What is written down about the modelled world: processes, and what the driver keeps about instances."""

from __future__ import annotations

import attrs

from hvcore import Cause, Instance, InstanceState, StateReason
from hvcore_fake.parameters import GuestParameters

SCHEMA = 1
"""Version of the format of all records of this module."""


@attrs.frozen(kw_only=True)
class Process:
    """One modelled hypervisor process with its guest: reality, whatever the driver believes.

    Attributes:
        name: instance it was spawned for.
        pid: its process id, from a range no real process can have.
        memory: bytes of memory of the guest.
        vcpus: virtual CPUs of the guest.
        started: when it was spawned, in seconds since the epoch of the virtual clock.
        events_before: number of the last event in the world when it was spawned.
        state: its run state.
        cause: why it is in that state.
        since: when the state began.
        behaviour: how its guest behaves.
        answering: it answers requests; a hung one does not.
        pressed: when its power button was last pressed, ``None`` for never.
        stopping: somebody waits for the guest to power off.
        booted: when the guest begins to heed the power button, ``None`` before its first instruction.
        powers_off: when the guest will power off, ``None`` when nothing makes it.
        panics: when the guest's kernel will panic, ``None`` when nothing makes it.
        asked: the coming power-off is the answer to the power button.
        frozen: when the virtual CPUs were stopped, ``None`` while they run.
        resets: how often the reset button was pressed.
    """

    name: str
    pid: int
    memory: int
    vcpus: int
    started: float
    events_before: int
    since: float
    behaviour: GuestParameters
    state: InstanceState = InstanceState.PRELAUNCH
    cause: Cause = Cause.STARTED_PAUSED
    answering: bool = True
    pressed: float | None = None
    stopping: bool = False
    booted: float | None = None
    powers_off: float | None = None
    panics: float | None = None
    asked: bool = False
    frozen: float | None = None
    resets: int = 0


@attrs.frozen(kw_only=True)
class RuntimeRecord:
    """What the driver decided about a running instance.

    Attributes:
        instance: the definition it runs with.
        pid: its process, 0 when none was found.
        events_before: number of the last event in the world when it was started.
        boot_id: boot of the host in which it was started.
    """

    instance: Instance
    pid: int
    events_before: int
    boot_id: str


@attrs.frozen(kw_only=True)
class Ending:
    """Why an instance ended; kept until it is started again or cleaned up.

    Attributes:
        uuid: its uuid, if it was known.
        state: the state it ended in.
        reason: why, since when, in which boot of the host.
        instance: the definition it ran with, if it was known.
    """

    state: InstanceState
    reason: StateReason
    uuid: str | None = None
    instance: Instance | None = None
