"""What is written down about the modelled world: processes, and what the driver keeps about instances."""

from __future__ import annotations

import attrs

from hvcore import Cause, Instance, InstanceState, MigrationPhase, StateReason
from hvcore_fake.checkpoint import Tracked
from hvcore_fake.parameters import GuestParameters

SCHEMA = 1
"""Version of the format of all records of this module."""


@attrs.frozen(kw_only=True)
class Sending:
    """A migration as its source models it. Times are those of the source's virtual clock.

    Attributes:
        target: file of the process that listens for the guest: what stands for a network here.
        began: when it began.
        phase: how far it is.
        since: when the phase began.
        bandwidth: bytes a second that are sent.
        dirty_rate: bytes a second that the guest changes while it runs.
        limit: longest pause of the guest, in seconds, with which it goes over.
        limit_maximum: what the limit may be raised to.
        patience: seconds after which it is taken not to converge.
        on_no_convergence: what is done then, in the words of the policy.
        was: the guest's state when it began.
        was_because: the cause of that state.
        downtime: seconds the guest paused, once it has.
        error: why it failed.
        answer_lost: all will arrive, and the destination's answer to that will not come back.
        disks: uuids of the disks that are copied.
        disk_bytes: how much that is.
        memory: when the sending of its memory began; ``None`` as long as it has not.
        early: the guest may go over before all of its memory has.
        after_passes: once its memory has been gone through so many times; ``None`` once it does not converge.
        rest: bytes that were left when it had gone over, or when what followed was cut off.
    """

    target: str
    began: float
    since: float
    bandwidth: float
    dirty_rate: float
    limit: float
    limit_maximum: float
    patience: float
    on_no_convergence: str
    was: InstanceState
    was_because: Cause
    phase: MigrationPhase = MigrationPhase.SETUP
    downtime: float | None = None
    error: str = ""
    answer_lost: bool = False
    disks: tuple[str, ...] = ()
    disk_bytes: int = 0
    memory: float | None = None
    early: bool = False
    after_passes: int | None = None
    rest: float = 0.0


@attrs.frozen(kw_only=True)
class MadeImage:
    """An image that was made for a disk that is copied.

    Attributes:
        path: where it is.
        format: its format.
        part: another name of the same file, as long as the guest has not run here; empty for a file that was there.
        inode: number of a file that was there.
        overwritten: something was in that.
    """

    path: str
    format: str
    part: str = ""
    inode: int = 0
    overwritten: bool = False


@attrs.frozen(kw_only=True)
class Connection:
    """What a destination knows of the source that has connected to it.

    Attributes:
        pid: the process that listens.
        source: file of the process that sends.
        source_pid: that process.
        guest: the guest, once it has arrived.
        whole: all of its memory has.
    """

    pid: int
    source: str
    source_pid: int
    guest: Process | None = None
    whole: bool = True


@attrs.frozen(kw_only=True)
class Attached:
    """A device that a guest has, or a virtual CPU that was plugged.

    Attributes:
        ident: uuid of a disk or NIC, ``vcpuN`` for a virtual CPU.
        kind: ``disk``, ``nic`` or ``vcpu``.
        size: bytes of a disk as the guest sees it.
        asked: when the guest was last asked to let go of it, ``None`` for never.
        leaves: when it will have, ``None`` when nothing makes it.
        refused: it has said that it does not.
    """

    ident: str
    kind: str
    size: int = 0
    asked: float | None = None
    leaves: float | None = None
    refused: bool = False


@attrs.frozen(kw_only=True)
class Backend:
    """What a process has open for a disk or NIC.

    Attributes:
        ident: uuid of that.
        source: the image or the network.
        format: how a disk is in its image.
        identity: what tells the image from every other, whatever it is called by now.
        key: what opens it, made of its secret; empty for one that is not encrypted.
    """

    ident: str
    source: str
    format: str = ""
    identity: str = ""
    key: str = ""


@attrs.frozen(kw_only=True)
class Client:
    """Somebody at a console: its type, and the program. The first of a type is attached, the others wait."""

    kind: str
    program: str


@attrs.frozen(kw_only=True)
class Process:
    """One modelled hypervisor process with its guest: reality, whatever the driver believes.

    Attributes:
        name: instance it was spawned for.
        pid: its process id, from a range no real process can have.
        memory: bytes of memory the guest had at ``memory_at``.
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
        sending: the migration that it is the source of, also when that has ended.
        memory_at: when that was; while the virtual CPUs are stopped it does not change.
        memory_target: bytes the balloon is to leave to the guest, ``None`` for all.
        memory_max: bytes it was started with.
        attached: what its guest has, in order.
        backends: what is open for that.
        media: what is in the removable drives, in order.
        clients: who is at its consoles, in order.
        stood: seconds for which its virtual CPUs did not run.
        shown: the system UUID and the hardware addresses that its guest sees.
        checkpoints: what was written since them, checkpoint by checkpoint.
        takes: uuids of the disks that a process that waits for a guest takes with it, and lets its source write to.
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
    sending: Sending | None = None
    memory_at: float = 0.0
    memory_target: int | None = None
    memory_max: int = 0
    attached: tuple[Attached, ...] = ()
    backends: tuple[Backend, ...] = ()
    media: tuple[str, ...] = ()
    clients: tuple[Client, ...] = ()
    stood: float = 0.0
    shown: tuple[str, ...] = ()
    checkpoints: tuple[Tracked, ...] = ()
    takes: tuple[str, ...] = ()

    def device(self, ident: str) -> Attached | None:
        """The device of its guest with this identity."""
        return next((device for device in self.attached if device.ident == ident), None)


@attrs.frozen(kw_only=True)
class Change:
    """Something that is under way with a device of a running instance.

    Attributes:
        ident: identity of the device.
        kind: ``disk``, ``nic`` or ``vcpu``.
        action: ``add`` or ``remove``.
    """

    ident: str
    kind: str
    action: str


@attrs.frozen(kw_only=True)
class RuntimeRecord:
    """What the driver decided about a running instance.

    Attributes:
        instance: the definition it runs with.
        pid: its process, 0 when none was found.
        events_before: number of the last event in the world when it was started.
        boot_id: boot of the host in which it was started.
        incoming: it comes from another host, and has not been told to run yet.
        changes: what is under way with its devices; the definition names one from before it is added until after the
            guest has let go of it.
        images: what was made for it and is taken away again if it never runs here.
    """

    instance: Instance
    pid: int
    events_before: int
    boot_id: str
    incoming: bool = False
    changes: tuple[Change, ...] = ()
    images: tuple[MadeImage, ...] = ()


@attrs.frozen(kw_only=True)
class Ending:
    """Why an instance ended; kept until it is started again or cleaned up.

    Attributes:
        uuid: its uuid, if it was known.
        state: the state it ended in.
        reason: why, since when, in which boot of the host.
        instance: the definition it ran with, if it was known.
        saved_as: which save of it ended it, if one did.
    """

    state: InstanceState
    reason: StateReason
    uuid: str | None = None
    instance: Instance | None = None
    saved_as: str | None = None
