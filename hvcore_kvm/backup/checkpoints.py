"""Checkpoints: dirty bitmaps of QEMU. Source: QEMU, "Dirty Bitmaps and Incremental Backup".

A checkpoint is one bitmap on each disk, which records from its moment on for as long as there is the checkpoint. None
depends on another, so that each can be deleted, and a broken one breaks no other. QEMU keeps those of a qcow2 image in
the image when it ends; nothing else is written down about them, so that nothing can say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from hvcore import Checkpoint, Checkpoints, Disk, DiskCheckpoint, Instance
from hvcore_kvm.hardware.storage import top_nodes
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.runtime import BackupNodes

PREFIX = "hvcore:"
"""Begins the names of bitmaps that are checkpoints; others belong to somebody else."""

NEXT = "hvcore-next"
"""The bitmap of a checkpoint whose backup is not complete. Never kept in an image."""


@attrs.frozen(kw_only=True)
class DiskNode:
    """The block nodes of one disk.

    Attributes:
        disk: the disk.
        top: name of the node its device uses.
        image: name of the node of the image that takes all writes, the topmost overlay if it has some; it has the
            bitmaps.
        size: bytes of the disk.
        keeps: the image can keep bitmaps.
        bitmaps: the bitmaps by name, as QEMU shows them.
    """

    disk: Disk
    top: str
    image: str
    size: int
    keeps: bool
    bitmaps: Mapping[str, Mapping[str, Any]]

    @property
    def uuid(self) -> str:
        """Identity of the disk."""
        return self.disk.uuid or ""

    def checkpoint(self, name: str) -> Mapping[str, Any] | None:
        """The bitmap of a checkpoint."""
        return self.bitmaps.get(f"{PREFIX}{name}")


def disk_nodes(monitor: Monitor, instance: Instance, overlays: Mapping[str, str]) -> tuple[DiskNode, ...]:
    """The nodes of all disks of an instance, in its order; disks that QEMU does not have are left out.

    Args:
        monitor: the connection.
        instance: the instance.
        overlays: path of the topmost overlay of each disk that has some, by uuid.
    """
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    nodes = {row["node-name"]: row for row in rows if isinstance(row, Mapping) and "node-name" in row}
    found = []
    for disk in instance.disks:
        uuid = disk.uuid or ""
        top, image = top_nodes(nodes, uuid, overlays.get(uuid))
        if top in nodes and image in nodes:
            found.append(_disk_node(disk, top, nodes[image]))
    return tuple(found)


def _disk_node(disk: Disk, top: str, node: Mapping[str, Any]) -> DiskNode:
    image = node.get("image")
    image = image if isinstance(image, Mapping) else {}
    specific = image.get("format-specific")
    data = specific.get("data") if isinstance(specific, Mapping) else None
    compat = data.get("compat") if isinstance(data, Mapping) else None
    size = image.get("virtual-size")
    bitmaps = node.get("dirty-bitmaps")
    rows = bitmaps if isinstance(bitmaps, list) else []
    return DiskNode(
        disk=disk,
        top=top,
        image=str(node["node-name"]),
        size=size if type(size) is int else 0,
        # The first version of qcow2 has no place for them, and to one that is only read nothing is written.
        keeps=node.get("drv") == "qcow2" and compat not in (None, "0.10") and not node.get("ro"),
        bitmaps={row["name"]: row for row in rows if isinstance(row, Mapping) and isinstance(row.get("name"), str)},
    )


def defect(bitmap: Mapping[str, Any]) -> str:
    """Why no incremental backup can begin from a checkpoint; empty if one can."""
    if bitmap.get("inconsistent"):
        return "QEMU did not end in order, and may have written what it has no record of"
    if not bitmap.get("recording"):
        return "somebody has stopped it from recording"
    if bitmap.get("busy"):
        return "somebody else uses it"
    return ""


def checkpoints_of(name: str, nodes: Iterable[DiskNode]) -> Checkpoints:
    """The checkpoints that disks have, by name.

    Args:
        name: name of the instance.
        nodes: its disks.
    """
    found: dict[str, list[DiskCheckpoint]] = {}
    for node in nodes:
        for ident, bitmap in node.bitmaps.items():
            if not ident.startswith(PREFIX):
                continue
            why, count = defect(bitmap), bitmap.get("count")
            row = DiskCheckpoint(
                device=node.uuid,
                changed=count if type(count) is int and not why else 0,
                lasting=bool(bitmap.get("persistent")),
                usable=not why,
                detail=why,
            )
            found.setdefault(ident.removeprefix(PREFIX), []).append(row)
    rows = (Checkpoint(name=ident, disks=tuple(disks)) for ident, disks in sorted(found.items()))
    return Checkpoints(name=name, checkpoints=tuple(rows))


def begin(monitor: Monitor, name: str, disks: Iterable[BackupNodes]) -> None:
    """Make a checkpoint of what has been recorded since its moment, on all disks or on none.

    Args:
        monitor: the connection.
        name: its name.
        disks: the disks, whose next checkpoint records.
    """
    bitmap = f"{PREFIX}{name}"
    actions: list[dict[str, Any]] = []
    for disk in disks:
        whole = {"node": disk.image, "name": bitmap, "persistent": disk.lasting}
        merged = {"node": disk.image, "target": bitmap, "bitmaps": [NEXT]}
        actions += [
            {"type": "block-dirty-bitmap-add", "data": whole},
            {"type": "block-dirty-bitmap-merge", "data": merged},
            {"type": "block-dirty-bitmap-remove", "data": {"node": disk.image, "name": NEXT}},
        ]
    monitor.execute("transaction", {"actions": actions})


def delete(monitor: Monitor, name: str, nodes: Iterable[DiskNode]) -> None:
    """Remove a checkpoint from all disks that have it, or from none."""
    actions = [
        {"type": "block-dirty-bitmap-remove", "data": {"node": node.image, "name": f"{PREFIX}{name}"}}
        for node in nodes
        if node.checkpoint(name) is not None
    ]
    monitor.execute("transaction", {"actions": actions})
