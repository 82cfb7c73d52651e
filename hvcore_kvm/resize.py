"""Growing a disk of a running instance."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from hvcore import (
    Deadline,
    Disk,
    Finding,
    FindingSet,
    HypervisorRefused,
    Instance,
    InvalidParameters,
    OutcomeUnknown,
    ResizeResult,
    WrongState,
    find_device,
    format_size,
)
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.hardware.storage import top_nodes
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.monitor import Monitor, connect
from hvcore_kvm.runtime import RuntimeRecord
from hvcore_kvm.snapshots.layers import top_overlays

SECTOR = 512
"""What the size of a disk is a multiple of (``BDRV_SECTOR_SIZE`` of QEMU)."""


def resize_disk(
    directory: InstanceDirectory, record: RuntimeRecord, uuid: str, size: int, deadline: Deadline
) -> ResizeResult:
    """Grow a disk, and let the guest know. A disk that has the size already is no error.

    The node on top is resized. A filter such as a throttle passes that on to the image below it; the other way round,
    the guest would not see it (QEMU 7.2 and 10.0). Of a disk with overlays the topmost one grows alone: QEMU lets the
    image below grow when that is committed.

    Args:
        directory: the instance's directory. The caller holds its lock.
        record: what it runs with.
        uuid: identity of the disk.
        size: the new size, in bytes.
        deadline: by when to be done.

    Raises:
        InvalidParameters: everything that is wrong with the request; nothing was touched.
        WrongState: the disk is being removed, or the instance is being migrated or saved.
        HypervisorRefused: QEMU's own words.
        OutcomeUnknown: QEMU took the command and did not answer.
    """
    ledger = Ledger(directory, record)
    disk, findings = _disk(ledger.instance, uuid)
    if size % SECTOR:
        message = f"{size} bytes is not a multiple of {SECTOR}"
        findings.append(Finding(code="invalid-value", path="size", message=message))
    if disk is None:
        raise _refused(findings)
    if ledger.changes.of(uuid) is not None:
        raise WrongState("the disk is being added or removed", hint="'hv recover' completes that")
    overlay = top_overlays(directory).get(uuid)
    with connect(directory, deadline) as monitor:
        rows = monitor.execute("query-named-block-nodes", {"flat": True})
        node, _ = top_nodes([row.get("node-name") for row in rows], uuid, overlay)
        before = _size_of(monitor, node)
        findings += [*_against(disk, before, size)]
        if findings:
            raise _refused(findings)
        try:
            monitor.execute("block_resize", {"node-name": node, "size": size})
        except HypervisorRefused as error:
            error.hint = error.hint or _advice(disk)
            raise
        after = _size_of(monitor, node)
    return ResizeResult(device=uuid, before=before, after=after)


def _disk(instance: Instance, uuid: str) -> tuple[Disk | None, list[Finding]]:
    try:
        device = find_device(instance, uuid)
    except InvalidParameters as error:
        return None, [*error.findings]
    if isinstance(device, Disk):
        return device, []
    has = ", ".join(str(disk.uuid) for disk in instance.disks) or "none"
    return None, [Finding(code="no-disk", path="device", message=f"{uuid} is a NIC", hint=f"its disks are: {has}")]


def _against(disk: Disk, before: int, size: int) -> Iterator[Finding]:
    """What stands against a new size."""
    if disk.read_only:
        yield Finding(code="read-only", path="device", message="the disk is read-only", hint="grow it where it is made")
    if size < before:
        message = f"{format_size(size)} is less than the {format_size(before)} it has; a disk can only grow"
        yield Finding(code="shrinking", path="size", message=message)
    if disk.path is None:
        return
    try:
        found = os.stat(disk.path)
        if stat.S_ISBLK(found.st_mode):
            yield from _against_device(disk, disk.path, size)
        elif stat.S_ISREG(found.st_mode):
            yield from _against_file(disk.path, size - before)
    except OSError as error:
        message = f"cannot look at {disk.path}: {error.strerror}"
        yield Finding(code="disk-unusable", path="device", message=message)


def _against_file(path: str, more: int) -> Iterator[Finding]:
    system = os.statvfs(path)
    free = system.f_bavail * system.f_frsize
    if more > free:
        message = f"it grows by {format_size(more)}, and the file system of {path} has {format_size(free)} free"
        yield Finding(code="no-space", path="size", message=message, hint="make room there, or grow it by less")


def _against_device(disk: Disk, path: str, size: int) -> Iterator[Finding]:
    """A raw disk is the whole of its device; in an image on a device there is room to grow."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        has = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    if disk.format == "raw" and not disk.params.get("encryption") and size != has:
        message = f"{path} has {format_size(has)}, and the disk is the whole of it"
        hint = f"grow {path} first" if size > has else f"give the size it has: {has} bytes"
        yield Finding(code="device-size", path="size", message=message, hint=hint)


def _size_of(monitor: Monitor, node: str) -> int:
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("node-name") == node:
            image: Any = row.get("image")
            size = image.get("virtual-size") if isinstance(image, dict) else None
            if type(size) is int:
                return size
    raise OutcomeUnknown(f"QEMU does not say how large the disk is: it shows no block node {node}", hint="restart it")


def _advice(disk: Disk) -> str | None:
    return "grow it at its server first" if disk.uri is not None else None


def _refused(findings: list[Finding]) -> InvalidParameters:
    return InvalidParameters("the disk cannot be resized", FindingSet(findings))
