"""Backups of disks, and the checkpoints that the next backup begins from."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class DiskBackup:
    """What a backup has of one disk.

    Attributes:
        device: uuid of the disk.
        location: the file, or the URI of the export.
        format: ``qcow2`` for a file, ``raw`` for an export.
        size: bytes of the disk.
        copied: bytes that were read of it and written.
        base: name of the file, in the same directory, that a file with the changes only belongs on; ``None`` for one
            that is complete, and for an export.
        lasting: the new checkpoint outlives the hypervisor's process; false without one.
    """

    device: str
    location: str
    format: str
    size: int
    copied: int
    base: str | None = None
    lasting: bool = False


@attrs.frozen(kw_only=True)
class Backup:
    """A backup that is complete.

    Attributes:
        name: name of the instance.
        mode: ``full``, or ``incremental`` when it has only what was written since a checkpoint.
        checkpoint: the checkpoint that begins with it, if one does.
        since: the checkpoint it begins from, if it is incremental.
        compressed: what is in its files is compressed.
        disks: the disks, in the order of the instance.
    """

    name: str
    mode: Literal["full", "incremental"]
    disks: tuple[DiskBackup, ...]
    checkpoint: str | None = None
    since: str | None = None
    compressed: bool = False


@attrs.frozen(kw_only=True)
class DiskCheckpoint:
    """What a checkpoint has of one disk.

    Attributes:
        device: uuid of the disk.
        changed: bytes that an incremental backup since then would copy now.
        lasting: it outlives the hypervisor's process.
        usable: an incremental backup can begin from it.
        detail: why not, for people.
    """

    device: str
    changed: int
    lasting: bool
    usable: bool = True
    detail: str = ""


@attrs.frozen(kw_only=True)
class Checkpoint:
    """A moment from which on the writes of a guest are kept track of.

    Attributes:
        name: its name.
        disks: the disks that have it, in the order of the instance.
    """

    name: str
    disks: tuple[DiskCheckpoint, ...]


@attrs.frozen(kw_only=True)
class Checkpoints:
    """The checkpoints of an instance, by name."""

    name: str
    checkpoints: tuple[Checkpoint, ...] = ()
