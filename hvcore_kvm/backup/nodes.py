"""The block nodes of a backup, put in while the guest stands still and taken out while it runs.

Between the device and its image comes a filter ``copy-before-write``: what the guest is about to overwrite is copied to
the target first. What is on top of the filter sees the disk as it was at that moment, and is copied from there. When
the target cannot take something, the filter gives up that picture, and not the guest's write (QEMU 7.1 and later). A
job ``blockdev-backup`` on the disk itself would fail that write: its filter cannot be told otherwise.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from hvcore import (
    OperationFailed,
    make_qcow2,
)
from hvcore_kvm.backup.checkpoints import NEXT, PREFIX, DiskNode
from hvcore_kvm.backup.target import DiskTarget
from hvcore_kvm.block_job import cancel_jobs
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.runtime import BackupNodes

FDSET = "hvcore-backup"
"""What the descriptor sets of a backup are called in QEMU."""

CREDENTIALS = "hvcore-backup-tls"
"""The object with the certificates for a server."""

PATIENCE = 21
"""Seconds that a write of the guest waits for the target at most; then there is no backup.

Below the 30 seconds after which a guest takes a disk for broken. QEMU 7.2 counts nanoseconds in 32 bits: there it is
3.8 seconds.
"""

_SINCE = "hvcore-since"
_LETTING_GO = 10.0


@attrs.frozen(kw_only=True)
class Names:
    """The names in QEMU of what belongs to one disk's backup.

    Attributes:
        index: number of the disk among those that are backed up.
    """

    index: int

    @property
    def job(self) -> str:
        """The job that copies."""
        return f"hvcore-backup{self.index}"

    @property
    def file(self) -> str:
        """The node of the file or export."""
        return f"hvcore-backup{self.index}-file"

    @property
    def target(self) -> str:
        """The node that is written to."""
        return f"hvcore-backup{self.index}-target"

    @property
    def aside_file(self) -> str:
        """The node of the file of what is set aside."""
        return f"hvcore-backup{self.index}-aside-file"

    @property
    def aside(self) -> str:
        """The node that takes what the guest is about to overwrite, where the target does not."""
        return f"hvcore-backup{self.index}-aside"

    @property
    def filter(self) -> str:
        """The filter between device and image."""
        return f"hvcore-backup{self.index}-filter"

    @property
    def moment(self) -> str:
        """The node that shows the disk as it was."""
        return f"hvcore-backup{self.index}-moment"


def add_file(monitor: Monitor, names: Names, node: DiskNode, target: DiskTarget, fd: int) -> None:
    """Make an image of a file that is empty, and give it to QEMU.

    Args:
        monitor: the connection.
        names: what to call it.
        node: the disk.
        target: the file.
        fd: a descriptor of it.

    Raises:
        OperationFailed: it cannot be written.
    """
    try:
        make_qcow2(fd, node.size, target.base)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise OperationFailed(f"cannot write {target.location}: {words}", code="file-not-written") from error
    _add_image(monitor, fd, names.file, names.target)


def add_aside(monitor: Monitor, names: Names, node: DiskNode, target: DiskTarget) -> None:
    """Give QEMU a file without a name, beside the target, for what the guest is about to overwrite.

    A compressed cluster is written once: only the job may write to the target then. It takes from here what the guest
    has overwritten before it came by.

    Args:
        monitor: the connection.
        names: what to call it.
        node: the disk.
        target: the file that is made.

    Raises:
        OperationFailed: it cannot be made.
    """
    directory = os.path.dirname(target.location)
    try:
        # It is gone with its last descriptor, whoever is killed.
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            make_qcow2(file.fileno(), node.size)
            _add_image(monitor, file.fileno(), names.aside_file, names.aside)
    except OSError as error:
        message = f"cannot make a file in {directory}: {error.strerror}"
        raise OperationFailed(message, code="file-not-written") from error


def _add_image(monitor: Monitor, fd: int, file: str, name: str) -> None:
    added = monitor.execute("add-fd", {"opaque": FDSET}, (fd,))
    path = f"/dev/fdset/{added['fdset-id']}"
    monitor.execute("blockdev-add", {"driver": "file", "node-name": file, "filename": path})
    monitor.execute("blockdev-add", {**_image(file, name), "detect-zeroes": "on"})


def _image(file: str, name: str) -> dict[str, Any]:
    # Its base is never opened: nothing but what is copied is in it.
    return {"driver": "qcow2", "node-name": name, "file": file, "backing": None}


def add_export(monitor: Monitor, names: Names, options: Mapping[str, Any], credentials: str | None) -> None:
    """Let QEMU connect to an export.

    Args:
        monitor: the connection.
        names: what to call it.
        options: of QEMU's block driver.
        credentials: the object with the certificates; ``None`` for no TLS.
    """
    secured = {} if credentials is None else {"tls-creds": credentials}
    monitor.execute("blockdev-add", {**options, **secured, "node-name": names.file})
    monitor.execute("blockdev-add", {"driver": "raw", "node-name": names.target, "file": names.file})


def insert(
    monitor: Monitor, names: Names, node: DiskNode, since: str | None, *, track: bool, aside: bool = False
) -> None:
    """Put the filter between device and image. The guest stands still.

    Args:
        monitor: the connection.
        names: what to call it.
        node: the disk.
        since: the checkpoint from which to begin.
        track: the writes from now on are to be kept track of.
        aside: what the guest is about to overwrite is set aside, and not written to the target.
    """
    given = {} if since is None else {"bitmap": {"node": node.image, "name": f"{PREFIX}{since}"}}
    values = {"driver": "copy-before-write", "node-name": names.filter, "file": node.top}
    values["target"] = names.aside if aside else names.target
    monitor.execute("blockdev-add", {**values, **given, "on-cbw-error": "break-snapshot", "cbw-timeout": PATIENCE})
    if not _use(monitor, node.top, names.filter):
        raise OperationFailed(f"no device of QEMU uses the disk {node.uuid}", code="disk-unused", hint="restart it")
    monitor.execute("blockdev-add", {"driver": "snapshot-access", "node-name": names.moment, "file": names.filter})
    if since is not None:
        granularity = (node.checkpoint(since) or {}).get("granularity")
        added = {"node": names.moment, "name": _SINCE, "granularity": granularity, "disabled": True}
        monitor.execute("block-dirty-bitmap-add", added)
        source = {"node": node.image, "name": f"{PREFIX}{since}"}
        merge = {"node": names.moment, "target": _SINCE, "bitmaps": [source]}
        monitor.execute("block-dirty-bitmap-merge", merge)
    if track:
        monitor.execute("block-dirty-bitmap-add", {"node": node.image, "name": NEXT})


def copy(monitor: Monitor, names: Names, *, incremental: bool, bandwidth: int, compress: bool = False) -> None:
    """Begin to copy what the disk was.

    Args:
        monitor: the connection.
        names: what it is called.
        incremental: only what was written since the checkpoint.
        bandwidth: bytes a second at most; 0 for no limit.
        compress: compress what is written to the target.
    """
    values: dict[str, Any] = {"job-id": names.job, "device": names.moment, "target": names.target, "compress": compress}
    values |= {"on-source-error": "report", "on-target-error": "report", "auto-dismiss": False, "speed": bandwidth}
    how = {"sync": "bitmap", "bitmap": _SINCE, "bitmap-mode": "never"} if incremental else {"sync": "full"}
    monitor.execute("blockdev-backup", values | how)


def take_out(monitor: Monitor, names: Names, top: str, *, aside: bool = False) -> None:
    """Let the device use its own node again. The guest may run. What has been copied is not touched."""
    monitor.execute("blockdev-del", {"node-name": names.moment})
    _use(monitor, names.filter, top)
    monitor.execute("blockdev-del", {"node-name": names.filter})
    for node in (names.aside, names.aside_file) if aside else ():
        monitor.execute("blockdev-del", {"node-name": node})


def close(monitor: Monitor, names: Names, *, image: bool) -> None:
    """Write out what has been copied, and let go of it.

    Raises:
        HypervisorRefused: it cannot be written; QEMU's own words.
    """
    export = {"driver": "raw", "node-name": names.target, "file": names.file}
    plain = _image(names.file, names.target) if image else export
    # Closing a node writes out as well, and says nothing of what goes wrong; this does.
    monitor.execute("blockdev-reopen", {"options": [{**plain, "read-only": True}]})
    for node in (names.target, names.file):
        monitor.execute("blockdev-del", {"node-name": node})


def remove_all(monitor: Monitor, disks: Sequence[BackupNodes]) -> None:
    """Take away all that a backup has put into QEMU, whatever of it is there. The guest may run.

    Args:
        monitor: the connection.
        disks: the disks.

    Raises:
        OperationFailed: some of it is still there.
    """
    every = [Names(index=index) for index in range(len(disks))]
    # A server that does not answer keeps its job waiting, and the guest goes on. To cut the connection (``yank``) would
    # make QEMU connect again, and stand still meanwhile: seen on 10.0.
    cancel_jobs(monitor, [names.job for names in every])
    until = monitor.deadline.sooner(_LETTING_GO)
    while not _removed(monitor, every, disks):
        if until.expired:
            hint = "'hv recover' tries again"
            raise OperationFailed("QEMU does not let go of what belongs to the backup", code="undo-failed", hint=hint)
        # A job that is over may hold its nodes for a moment.
        monitor.pause()
    for disk in disks:
        monitor.attempt("block-dirty-bitmap-remove", {"node": disk.image, "name": NEXT})
    monitor.attempt("object-del", {"id": CREDENTIALS})
    remove_descriptors(monitor)


def _removed(monitor: Monitor, every: Sequence[Names], disks: Sequence[BackupNodes]) -> bool:
    """Take the nodes out; true if none is left."""
    there = _node_names(monitor)
    for names, disk in zip(every, disks, strict=True):
        if names.moment in there:
            monitor.attempt("blockdev-del", {"node-name": names.moment})
        if names.filter in there:
            _use(monitor, names.filter, disk.top)
        for node in (names.filter, *_kept(names)):
            if node in there:
                monitor.attempt("blockdev-del", {"node-name": node})
    left = _node_names(monitor)
    return not any({names.moment, names.filter, *_kept(names)} & left for names in every)


def _kept(names: Names) -> tuple[str, ...]:
    """The nodes of what is written, each before the one it is on."""
    return names.target, names.file, names.aside, names.aside_file


def remove_descriptors(monitor: Monitor) -> None:
    """Take the descriptors of a backup away from QEMU."""
    for row in monitor.execute("query-fdsets"):
        if any(fd.get("opaque") == FDSET for fd in row.get("fds", ())):
            monitor.attempt("remove-fd", {"fdset-id": row["fdset-id"]})


def _use(monitor: Monitor, used: str, wanted: str) -> bool:
    """Let the device that uses one node use another; false if there is none."""
    for row in monitor.execute("query-block"):
        inserted = row.get("inserted")
        if isinstance(inserted, Mapping) and inserted.get("node-name") == used:
            place = str(row.get("qdev", ""))
            path = place if place.startswith("/") else f"/machine/peripheral/{place}"
            monitor.execute("qom-set", {"path": path, "property": "drive", "value": wanted})
            return True
    return False


def _node_names(monitor: Monitor) -> set[str]:
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    return {str(row.get("node-name")) for row in rows if isinstance(row, Mapping)}
