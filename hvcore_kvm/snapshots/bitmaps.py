"""Dirty bitmaps that would be wrong, or lost, once an overlay is laid upon their image or written into the one below.

A bitmap knows only what is written to its own image. One in an image that has become read-only says nothing of what
goes to the overlay, and one in an overlay goes with it. Thus only the topmost image of a disk has any: those that are
there stand against a snapshot and against the deletion of the newest. No backup begins from one that lacks something.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from hvcore import Deadline, Finding
from hvcore_kvm.definition import Definition, DiskDefinition
from hvcore_kvm.hardware.storage import layer_id
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.snapshots import still_image


def node_rows(monitor: Monitor) -> dict[str, Mapping[str, Any]]:
    """What QEMU says of each block node, by name."""
    return {row["node-name"]: row for row in monitor.execute("query-named-block-nodes", {"flat": True})}


def bitmap_names(row: Mapping[str, Any]) -> list[str]:
    """The dirty bitmaps of a block node."""
    return [str(one.get("name", "")) for one in row.get("dirty-bitmaps", ())]


def bitmap_finding(disk: DiskDefinition, names: Sequence[str], hint: str = "") -> Finding:
    """What to say of the dirty bitmaps of a disk.

    Args:
        disk: the disk.
        names: the bitmaps.
        hint: what to do first.
    """
    message = f"it has the dirty bitmap {', '.join(name or 'without a name' for name in names)}"
    what = f"{hint}delete the checkpoints first; the next backup has to be a full one"
    return Finding(code="dirty-bitmap", path=disk.origin, message=message, hint=what)


def check_live_bitmaps(monitor: Monitor, definition: Definition, overlays: Mapping[str, str]) -> Iterator[Finding]:
    """Find the bitmaps in overlays that QEMU uses.

    Args:
        monitor: the connection.
        definition: the disks.
        overlays: path of the overlay, by uuid of the disk.
    """
    rows = node_rows(monitor)
    for disk in definition.disks:
        uuid = disk.disk.uuid or ""
        if uuid in overlays and (names := bitmap_names(rows.get(layer_id(uuid, overlays[uuid]), {}))):
            yield bitmap_finding(disk, names)


def check_still_bitmaps(definition: Definition, uuids: Container[str] | None, deadline: Deadline) -> list[Finding]:
    """Find the bitmaps in the topmost images of an instance that is not alive.

    Args:
        definition: the disks.
        uuids: which of them; ``None`` for all that are written to.
        deadline: by when to be done.

    Raises:
        OperationFailed: an image cannot be read.
    """
    found = []
    for disk in definition.disks:
        file = (disk.file, *disk.layers)[-1]
        if disk.disk.read_only or file.format != "qcow2" or (uuids is not None and disk.disk.uuid not in uuids):
            continue
        if names := still_image.look(file.path, deadline).bitmaps:
            found.append(bitmap_finding(disk, names, "start the instance, and "))
    return found
