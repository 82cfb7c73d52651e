"""Snapshots of an instance: what it was at one moment, to come back to."""

from __future__ import annotations

import attrs

from hvcore.model.state import InstanceState


@attrs.frozen(kw_only=True)
class SnapshotDisk:
    """One disk of a snapshot.

    Attributes:
        uuid: the disk.
        path: the image that holds what the disk was.
        overlay: of an external snapshot, the image beside it that has taken what was written since; else empty.
    """

    uuid: str
    path: str
    overlay: str = ""


@attrs.frozen(kw_only=True)
class Snapshot:
    """What an instance was at one moment.

    Attributes:
        name: its name, one of its own among those of the instance.
        created: when it was taken, in seconds since the epoch.
        state: what the instance was doing then.
        memory: it has the memory and the devices, too; without them it is as if power had failed then.
        disks: what the disks were.
        external: what is written since goes to overlays, and the images are not written to any more.
        revertible: the instance can go back to it. An external snapshot whose deletion was begun and has failed can
            only be deleted.
    """

    name: str
    created: float
    state: InstanceState
    memory: bool
    disks: tuple[SnapshotDisk, ...] = ()
    external: bool = False
    revertible: bool = True


@attrs.frozen(kw_only=True)
class SnapshotListing:
    """The snapshots of an instance, the oldest first."""

    snapshots: tuple[Snapshot, ...]
