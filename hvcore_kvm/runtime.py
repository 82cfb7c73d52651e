"""What is written down about a running instance: decisions, never a command line; node-local facts in a second file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from hvcore import Cause, Instance, InstanceState, MigrationPolicy, MigrationTarget, Nic
from hvcore_kvm.listing import PROCESS as PROCESS
from hvcore_kvm.process import ProcessIdentity

RECORD = "record.json"
STOP_REQUEST = "stop.json"
REBOOT = "reboot.json"
HISTORY = "history.json"
HISTORY_BEFORE = "history-before.json"
"""What the history was before a start that is under way; put back if that is not completed."""
PLACEMENT = "placement.json"
HOTPLUG = "hotplug.json"
MIGRATION = "migration.json"
SAVING = "saving.json"
RESTORING = "restoring.json"
UNSENT = "unsent.json"
LOADED = "loaded.json"
BACKUP = "backup.json"

DeviceKind = Literal["disk", "nic", "vcpu", "rng", "params"]

SCHEMA = 1
"""Version of the format of all records of this module; an older one is upgraded when it is read."""


@attrs.frozen(kw_only=True)
class RuntimeRecord:
    """The decisions an instance runs with. Would travel with it in a migration.

    Attributes:
        instance: the definition.
        machine: versioned machine type.
        accelerator: ``kvm`` or ``tcg``.
        cpu_model: CPU model.
        qemu_version: version of the QEMU that runs it.
        ports: PCI Express root ports it has.
        logs: files in its directory that QEMU appends to, and the bytes of each that are kept.
    """

    instance: Instance
    machine: str
    accelerator: str
    cpu_model: str
    qemu_version: str
    ports: int = 0
    logs: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ProcessRecord:
    """The process of an instance: facts of this host only.

    Attributes:
        identity: which process.
        started: when, in seconds since the epoch.
        qemu: path of the program.
    """

    identity: ProcessIdentity
    started: float
    qemu: str


@attrs.frozen(kw_only=True)
class StopRequest:
    """The guest has been asked to power off, or is about to be stopped by force.

    Attributes:
        time: when it was last asked, in seconds since the epoch.
        until: until when the asker waits, in seconds since the epoch.
        forced: nobody asks the guest.
    """

    time: float
    until: float
    forced: bool = False


@attrs.frozen(kw_only=True)
class Reboot:
    """A cold reboot is under way: the instance is to be started again.

    Attributes:
        instance: the definition to start.
    """

    instance: Instance


@attrs.frozen(kw_only=True)
class History:
    """The last life of an instance; outlives the host's boot.

    Attributes:
        uuid: its uuid.
        started: when it was started, in seconds since the epoch.
        boot_id: in which boot of the host.
        ended: when it ended, as far as anybody knows; ``None`` while it has not been seen to.
        state: what it was found to be then.
        cause: why.
        detail: why, for people.
        saved_as: which save of it ended this life, if one did.
    """

    uuid: str
    started: float
    boot_id: str
    ended: float | None = None
    state: InstanceState | None = None
    cause: Cause | None = None
    detail: str = ""
    saved_as: str | None = None


@attrs.frozen(kw_only=True)
class Saving:
    """The instance is being saved to a file.

    Attributes:
        id: tells this save from every other; it stands in the file.
        path: the file there will be.
        part: the file while it is being written.
        state: what the guest was doing before, as QEMU calls it.
    """

    id: str
    path: str
    part: str
    state: str


@attrs.frozen(kw_only=True)
class Restoring:
    """The instance is being restored from a file.

    Attributes:
        id: which save it is.
        path: the file.
        restored: when the file had been restored before, in seconds since the epoch; 0 for never.
    """

    id: str
    path: str
    restored: int


@attrs.frozen(kw_only=True)
class Placement:
    """Where each device sits, by uuid: decided once and kept, so that the guest finds its devices where they were.

    Attributes:
        addresses: PCI address by device uuid, in the form ``BUS/SLOT``.
        machine: versioned machine type the addresses belong to.
    """

    machine: str
    addresses: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Change:
    """One device that is being added or removed, or parameters that are being changed.

    Attributes:
        action: what is to happen.
        kind: what it is.
        uuid: its identity; the id in QEMU of a virtual CPU or of the source of randomness, which have no other.
        since: when it was asked for, in seconds since the epoch.
        names: which parameters are being changed.
        into: what a NIC is being changed into.
    """

    action: Literal["add", "remove", "change"]
    kind: DeviceKind
    uuid: str
    since: float
    names: tuple[str, ...] = ()
    into: Nic | None = None


@attrs.frozen(kw_only=True)
class Changes:
    """What is under way with the devices of a running instance, the oldest first."""

    pending: tuple[Change, ...] = ()

    def of(self, uuid: str) -> Change | None:
        """The one of a device."""
        return next((change for change in self.pending if change.uuid == uuid), None)


@attrs.frozen(kw_only=True)
class DiskFile:
    """An image on the destination for a disk that is copied, which goes again if the guest never runs there.

    Attributes:
        path: where it is.
        part: the name it was made under; empty for a file that was there before, with nothing in it.
        device: device number of its file system, 0 until it is made.
        inode: its inode number, 0 until it is made.
    """

    path: str
    part: str = ""
    device: int = 0
    inode: int = 0


@attrs.frozen(kw_only=True)
class MigrationRecord:
    """A migration that nobody has finished: what QEMU cannot be asked about it. Written before QEMU is told.

    Attributes:
        role: which side of it this is.
        runs: on the source, the guest ran before; on the destination, it is to run.
        policy: how it should go.
        owner: the host application that began it on this side.
        began: when, in seconds since the epoch.
        downtime_limit: longest pause of the guest that QEMU aims at now, in seconds.
        raised: when that was last changed, in seconds since the epoch.
        over: on the source, QEMU was told to let the guest go over; on the destination, to let it run.
        disks: uuids of the disks that are copied.
        sizes: on the source, bytes of each of them, as far as was known when that began.
        target: on the source, where the destination listens.
        memory: on the source, when the guest itself began to be sent, in seconds since the epoch; ``None`` until then.
        cancelled: on the source, QEMU was told to cancel it.
        ended: on the source, how the copy of the disks ended, if not well.
        error: why it failed, in QEMU's words.
        files: on the destination, the images that were made for the disks.
    """

    role: Literal["source", "destination"]
    runs: bool
    policy: MigrationPolicy
    owner: ProcessIdentity
    began: float
    downtime_limit: float
    raised: float
    over: bool = False
    disks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    target: MigrationTarget | None = None
    memory: float | None = None
    cancelled: bool = False
    ended: Literal["", "cancelled", "failed"] = ""
    error: str = ""
    files: tuple[DiskFile, ...] = ()

    @property
    def copying(self) -> bool:
        """On the source: its disks are being copied, and nothing of the guest has been sent."""
        return self.role == "source" and bool(self.disks) and self.memory is None and not self.ended

    @property
    def sending_since(self) -> float:
        """When the guest itself began to be sent, in seconds since the epoch."""
        return self.began if self.memory is None else self.memory


@attrs.frozen(kw_only=True)
class Unsent:
    """QEMU has given away the guest's state, and nobody has got it: the guest is paused and may go on here.

    Attributes:
        time: since when, in seconds since the epoch.
    """

    time: float


@attrs.frozen(kw_only=True)
class Loaded:
    """The guest was loaded from a snapshot and has not been let run since: it is paused, whatever QEMU calls that.

    Attributes:
        time: when, in seconds since the epoch.
    """

    time: float


@attrs.frozen(kw_only=True)
class BackupFile:
    """A file that a backup makes.

    Attributes:
        part: its path while it is written.
        path: its path afterwards.
        device: number of the file system it is on, once it is about to get its name.
        inode: its number there.
    """

    part: str
    path: str
    device: int = 0
    inode: int = 0


@attrs.frozen(kw_only=True)
class BackupNodes:
    """The block nodes of a disk that is backed up.

    Attributes:
        top: the one its device uses.
        image: the one whose writes are kept track of.
        lasting: a checkpoint of it is kept in its image.
    """

    top: str
    image: str
    lasting: bool


@attrs.frozen(kw_only=True)
class BackupRecord:
    """The disks of the instance are being backed up. Written before QEMU is told.

    Attributes:
        id: tells this backup from every other.
        checkpoint: the checkpoint that begins with it.
        disks: the disks.
        files: the files it makes, one for each; none on a server.
        still: the guest was stopped for the moment that the backup is of, and is to go on.
        copied: everything is; the files get their names.
    """

    id: str
    checkpoint: str | None
    disks: tuple[BackupNodes, ...]
    files: tuple[BackupFile, ...] = ()
    still: bool = False
    copied: bool = False
