"""The states an instance can be in, why, and what the queries return."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Literal

import attrs


class InstanceState(enum.StrEnum):
    """What an instance is doing, as far as the host can know."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting-down"
    STOPPED = "stopped"
    SHUTDOWN_BY_USER = "shutdown-by-user"
    CRASHED = "crashed"
    PANICKED = "panicked"
    IO_ERROR = "io-error"
    INCOMING = "incoming"
    MIGRATING = "migrating"
    POSTMIGRATE = "postmigrate"
    SAVED = "saved"
    UNKNOWN = "unknown"

    @property
    def is_alive(self) -> bool:
        """A hypervisor process may belong to it; a panicked one may have ended, which only its pid says."""
        return self not in _DEAD


_DEAD = frozenset(
    {
        InstanceState.STOPPED,
        InstanceState.SHUTDOWN_BY_USER,
        InstanceState.CRASHED,
        InstanceState.SAVED,
    }
)


class TwoValueState(enum.IntEnum):
    """The older view of hosts that know only "runs" and "its user switched it off"."""

    RUNNING = 0
    SHUTDOWN = 1


class Cause(enum.StrEnum):
    """Why an instance is in its state."""

    STARTED = "started"
    STARTED_PAUSED = "started-paused"
    HOST_PAUSE = "host-pause"
    HOST_STOP = "host-stop"
    HOST_FORCE_STOP = "host-force-stop"
    HOST_SAVE = "host-save"
    HOST_SIGNAL = "host-signal"
    HOST_RESTARTED = "host-restarted"
    STOP_REQUESTED = "stop-requested"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    GUEST_SUSPEND = "guest-suspend"
    WATCHDOG = "watchdog"
    IO_ERROR = "io-error"
    DIED = "died"
    HYPERVISOR_ERROR = "hypervisor-error"
    NOT_ANSWERING = "not-answering"
    MIGRATION = "migration"
    OTHER = "other"


@attrs.frozen(kw_only=True)
class StateReason:
    """Why, since when, and in which boot of the host.

    Attributes:
        cause: why, as a stable word.
        detail: the same for people, with the hypervisor's own words where it had any.
        since: when the state began, in seconds since the epoch; ``None`` if nobody could tell.
        boot_id: boot id of the host it happened on (``/proc/sys/kernel/random/boot_id``).
    """

    cause: Cause
    detail: str = ""
    since: float | None = None
    boot_id: str | None = None


@attrs.frozen(kw_only=True)
class DeviceInfo:
    """One disk or NIC of a running instance.

    Attributes:
        kind: ``disk`` or ``nic``.
        uuid: its identity, which the hotplug operations take.
        name: its name in the definition, if it has one.
        source: what is behind it: a path, a URI, or the NIC mode and what it connects to.
        state: ``present``, or ``adding`` or ``removing`` while that is under way.
    """

    kind: Literal["disk", "nic"]
    uuid: str
    name: str | None = None
    source: str = ""
    state: Literal["present", "adding", "removing"] = "present"


@attrs.frozen(kw_only=True)
class PeripheralInfo:
    """One device of a running instance that is described by parameters of it.

    Attributes:
        kind: what it is, in words of the driver: ``rng``, ``port`` or ``usb``.
        given: what the definition says of it, as in the ``params`` of an instance.
        state: ``present``, or ``adding`` or ``removing`` while that is under way.
    """

    kind: str
    given: Mapping[str, Any] = attrs.field(factory=dict)
    state: Literal["present", "adding", "removing"] = "present"


@attrs.frozen(kw_only=True)
class InstanceInfo:
    """One instance as it is now.

    Attributes:
        name: name of the instance.
        uuid: its uuid, if known.
        state: what it is doing.
        reason: why.
        pid: process id of its hypervisor process, ``None`` when there is none.
        memory: bytes of memory the guest has now (after ballooning), 0 when it is not alive.
        memory_max: bytes it was started with, 0 when it is not alive.
        vcpus: virtual CPUs it has now, 0 when it is not alive.
        uptime: seconds since its hypervisor process started, ``None`` when there is none.
        cpu_time: seconds of CPU time its hypervisor process has used, ``None`` when there is none.
        machine: resolved machine type, for example ``pc-q35-7.2``.
        accelerator: what runs the guest's code, for example ``kvm`` or ``tcg``.
        marks: what is out of the ordinary about it, in words of the driver, for example ``extra-args``.
        devices: its disks, then its NICs, in order, when it runs.
        peripherals: its devices that are described by parameters and that can be plugged, when it runs.
        incomplete: what could not be asked, and why; empty when everything could.
    """

    name: str
    state: InstanceState
    reason: StateReason
    uuid: str | None = None
    pid: int | None = None
    memory: int = 0
    memory_max: int = 0
    vcpus: int = 0
    uptime: float | None = None
    cpu_time: float | None = None
    machine: str | None = None
    accelerator: str | None = None
    marks: tuple[str, ...] = ()
    devices: tuple[DeviceInfo, ...] = ()
    peripherals: tuple[PeripheralInfo, ...] = ()
    incomplete: str = ""

    @property
    def two_value_state(self) -> TwoValueState | None:
        """The state for hosts with the older view; ``None`` means "not there"."""
        if self.state is InstanceState.SHUTDOWN_BY_USER:
            return TwoValueState.SHUTDOWN
        return TwoValueState.RUNNING if self.pid is not None else None


@attrs.frozen(kw_only=True)
class InstanceName:
    """One row of a listing: an instance the driver accounts for.

    Attributes:
        name: name of the instance.
        alive: its hypervisor process lives.
        pid: its process id, ``None`` when it does not live.
    """

    name: str
    alive: bool
    pid: int | None = None


@attrs.frozen(kw_only=True)
class InstanceListing:
    """All instances the driver accounts for, sorted by name."""

    instances: tuple[InstanceName, ...]


@attrs.frozen(kw_only=True)
class InstanceInfos:
    """Information about every instance, sorted by name."""

    instances: tuple[InstanceInfo, ...]


@attrs.frozen(kw_only=True)
class Transition:
    """What a lifecycle operation did.

    Attributes:
        name: name of the instance.
        before: its state before, ``None`` when there was no account of it.
        after: its state afterwards, ``None`` when there is no account of it any more.
        changed: something was done; ``False`` when it already was as wanted.
        detail: what was done, for people.
    """

    name: str
    before: InstanceState | None
    after: InstanceState | None
    changed: bool
    detail: str = ""


@attrs.frozen(kw_only=True)
class BlockStats:
    """What one disk has done since its device was made.

    Attributes:
        device: uuid of the disk.
        read_bytes: bytes the guest has read.
        written_bytes: bytes it has written.
        reads: requests to read.
        writes: requests to write.
        flushes: requests to write out what is cached.
        read_time: seconds in which reads were under way, added up over all of them.
        write_time: the same for writes.
        errors: requests that failed, of any kind.
        flush_time: the same as ``read_time`` for flushes.
        discarded_bytes: bytes the guest has given back.
    """

    device: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    flushes: int
    read_time: float
    write_time: float
    errors: int
    flush_time: float = 0.0
    discarded_bytes: int = 0


@attrs.frozen(kw_only=True)
class NicStats:
    """What one NIC has moved since its connection was made, seen from the guest.

    Attributes:
        device: uuid of the NIC.
        received_bytes: bytes for the guest.
        sent_bytes: bytes from the guest.
        received_packets: packets for the guest.
        sent_packets: packets from the guest.
        received_drops: packets for the guest that were lost on the host.
        sent_drops: packets from the guest that were lost on the host.
        interface: the host's interface that counted them, empty if there is none.
    """

    device: str
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int
    received_drops: int
    sent_drops: int
    interface: str = ""


@attrs.frozen(kw_only=True)
class GuestMemory:
    """What a guest says of its own memory; ``None`` for what it does not say.

    Attributes:
        updated: when it said so, in seconds since the epoch.
        total: bytes its kernel knows of.
        free: bytes nobody uses.
        available: bytes that could be used without swapping.
        caches: bytes that hold what is on disks.
        swapped_in: bytes read from swap since its start.
        swapped_out: bytes written to swap since its start.
        major_faults: page faults that read from a disk, since its start.
        minor_faults: page faults that did not.
    """

    updated: float
    total: int | None = None
    free: int | None = None
    available: int | None = None
    caches: int | None = None
    swapped_in: int | None = None
    swapped_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None


@attrs.frozen(kw_only=True)
class InstanceStats:
    """Counters of one instance.

    Attributes:
        name: name of the instance.
        vcpu_times: seconds of CPU time that the thread of each virtual CPU has used, in the order of their numbers.
        memory_balloon: bytes of memory the guest has now; 0 when that could not be asked.
        memory_resident: bytes of the host's memory that the hypervisor process holds.
        disks: counters of its disks, in order.
        nics: counters of its NICs that have an interface on the host, in order.
        cpu_time: seconds of CPU time of the whole hypervisor process, ``None`` if nobody could tell.
        guest_memory: what the guest says of its memory, ``None`` when it says nothing.
        incomplete: what could not be found out, and why; empty when everything could.
    """

    name: str
    vcpu_times: tuple[float, ...]
    memory_balloon: int
    memory_resident: int
    disks: tuple[BlockStats, ...] = ()
    nics: tuple[NicStats, ...] = ()
    cpu_time: float | None = None
    guest_memory: GuestMemory | None = None
    incomplete: str = ""
