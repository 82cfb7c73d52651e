"""What is kept about the snapshots of an instance, beside its other kept records."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import attrs

from hvcore import (
    Finding,
    FindingSet,
    Instance,
    InstanceState,
    InvalidParameters,
    Snapshot,
    SnapshotDisk,
    WrongState,
)
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.runtime import RuntimeRecord

SNAPSHOTS = "snapshots.json"
UNDERTAKING = "snapshotting.json"
"""What is being done with them; there while it is, or when whoever did it was killed."""
SCHEMA = 1

RESERVED = "hvcore-"
"""What the names of snapshots begin with that the driver takes for itself."""

BEFORE = f"{RESERVED}before"
"""What an instance was before it is reverted, to come back to if that fails."""


@attrs.frozen(kw_only=True)
class SnapshotRecord:
    """One snapshot.

    Attributes:
        name: its name.
        created: when it was taken, in seconds since the epoch.
        state: what the instance was doing.
        memory: memory and devices are in it.
        instance: the definition.
        record: the decisions the guest ran with; ``None`` for one that was not alive.
        addresses: where each device sat, by uuid.
        host_cpu: what tells the processors of the host from others.
        overlays: of an external snapshot, the images that take what is written since, by uuid of the disk.
        below: the images they lie upon.
        spoiled: a commit was begun and has not come to its end: the images below are no longer what they were.
    """

    name: str
    created: float
    state: InstanceState
    memory: bool
    instance: Instance
    record: RuntimeRecord | None = None
    addresses: Mapping[str, str] = attrs.field(factory=dict)
    host_cpu: str = ""
    overlays: Mapping[str, str] = attrs.field(factory=dict)
    below: Mapping[str, str] = attrs.field(factory=dict)
    spoiled: bool = False

    @property
    def external(self) -> bool:
        """It is beside the images and not within them."""
        return bool(self.overlays)

    def public(self) -> Snapshot:
        """It as hvcore hands it out."""
        disks = tuple(
            SnapshotDisk(
                uuid=disk.uuid or "",
                path=self.below.get(disk.uuid or "", disk.path or ""),
                overlay=self.overlays.get(disk.uuid or "", ""),
            )
            for disk in self.instance.disks
            if not disk.read_only and (not self.external or disk.uuid in self.overlays)
        )
        return Snapshot(
            name=self.name,
            created=self.created,
            state=self.state,
            memory=self.memory,
            disks=disks,
            external=self.external,
            revertible=not self.spoiled,
        )


@attrs.frozen(kw_only=True)
class SnapshotRecords:
    """All snapshots of an instance, the oldest first."""

    snapshots: tuple[SnapshotRecord, ...] = ()


@attrs.frozen(kw_only=True)
class Undertaking:
    """Something that is being done with a snapshot. Written before the first of it is done.

    Attributes:
        operation: what.
        phase: how far it is: ``begun``; of a revert then ``kept``, when what the instance was before is kept in the
            images, and ``loaded``, when it is what it was when the snapshot was taken. With an external snapshot, of
            its creation ``made``, when the overlays are there; of its deletion ``equal``, when overlays and the images
            below are the same.
        snapshot: which one.
        ran: the guest ran before.
        fresh: of a revert of an external snapshot, the overlays that are to take the place of its overlays.
    """

    operation: Literal["create", "revert", "delete"]
    snapshot: SnapshotRecord
    phase: Literal["begun", "kept", "loaded", "made", "equal"] = "begun"
    ran: bool = False
    fresh: Mapping[str, str] = attrs.field(factory=dict)


class Shelf:
    """The records of the snapshots of one instance.

    Args:
        directory: the instance's directory. The caller holds its lock, unless it only reads.
    """

    def __init__(self, directory: InstanceDirectory) -> None:
        self._directory = directory

    @property
    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """All of them, the oldest first."""
        found = self._directory.read(SNAPSHOTS, SnapshotRecords, schema=SCHEMA, data=True)
        return () if found is None else found.snapshots

    @property
    def undertaking(self) -> Undertaking | None:
        """What is being done."""
        return self._directory.read(UNDERTAKING, Undertaking, schema=SCHEMA, data=True)

    @property
    def interrupted(self) -> bool:
        """Something is being done, or was left half done; whoever holds the lock knows that it was left."""
        return os.path.lexists(os.path.join(self._directory.data_path, UNDERTAKING))

    def find(self, name: str) -> SnapshotRecord:
        """One of them.

        Raises:
            InvalidParameters: there is none of this name.
        """
        known = self.snapshots
        found = next((one for one in known if one.name == name), None)
        if found is None:
            hint = f"it has {', '.join(one.name for one in known) or 'none'}"
            finding = Finding(code="no-such-snapshot", path="snapshot", message=f"it has no {name}", hint=hint)
            raise InvalidParameters("there is no such snapshot", FindingSet([finding]))
        return found

    def begin(self, undertaking: Undertaking) -> None:
        """Write down what is about to be done, or how far it is."""
        self._directory.write(UNDERTAKING, undertaking, schema=SCHEMA, data=True)

    def end(self) -> None:
        """Write down that nothing is being done any more."""
        self._directory.remove(UNDERTAKING, data=True)

    def add(self, snapshot: SnapshotRecord) -> None:
        """Write down one more; in place of one that has its name."""
        known = self.snapshots
        if any(one.name == snapshot.name for one in known):
            self._write(tuple(snapshot if one.name == snapshot.name else one for one in known))
        else:
            self._write((*known, snapshot))

    def remove(self, name: str) -> None:
        """Write down that one is gone; what lay upon its overlays lies upon what they lay upon."""
        known = self.snapshots
        lower = {
            path: one.below[uuid]
            for one in known
            if one.name == name
            for uuid, path in one.overlays.items()
            if uuid in one.below
        }
        self._write(tuple(_laid(one, lower) for one in known if one.name != name))

    def _write(self, snapshots: tuple[SnapshotRecord, ...]) -> None:
        if snapshots:
            self._directory.write(SNAPSHOTS, SnapshotRecords(snapshots=snapshots), schema=SCHEMA, data=True)
        else:
            self._directory.remove(SNAPSHOTS, data=True)


def _laid(snapshot: SnapshotRecord, lower: Mapping[str, str]) -> SnapshotRecord:
    """A snapshot whose overlays lie upon other images, where those that they lay upon have gone."""
    return attrs.evolve(snapshot, below={uuid: lower.get(path, path) for uuid, path in snapshot.below.items()})


def refuse_interrupted(directory: InstanceDirectory) -> None:
    """Refuse what cannot be done while something with a snapshot is left half done.

    Raises:
        WrongState: it is.
    """
    if Shelf(directory).interrupted:
        raise WrongState("something with a snapshot of it was interrupted", hint="'hv recover' puts it in order")
