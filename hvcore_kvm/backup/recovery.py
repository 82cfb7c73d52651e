"""What a backup leaves that did not come to its end: taken back here, or completed, by whoever comes next."""

from __future__ import annotations

import contextlib

from hvcore import Deadline, DeadlineExceeded, OutcomeUnknown, RecordError, RecoveredInstance, WrongState
from hvcore_kvm import process
from hvcore_kvm.backup.checkpoints import PREFIX, begin
from hvcore_kvm.backup.nodes import remove_all
from hvcore_kvm.backup.target import all_there, remove_files
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.listing import read_identity
from hvcore_kvm.migration.credentials import remove_copies
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.runtime import BACKUP, SCHEMA, BackupRecord


def refuse_backup(directory: InstanceDirectory) -> None:
    """Refuse to change an instance whose backup was interrupted.

    Raises:
        WrongState: it was.
    """
    if directory.tail(BACKUP, 1):
        raise WrongState(
            "a backup of it was interrupted", instance=directory.name, hint="'hv recover' puts that in order"
        )


def settle(directory: InstanceDirectory, record: BackupRecord, deadline: Deadline, *, forward: bool) -> bool:
    """Take a backup back, or complete one that has copied everything.

    Args:
        directory: the instance's.
        record: the backup.
        deadline: by when to be done.
        forward: complete it where that can be done; else only one that lacks nothing counts as complete.

    Returns:
        It is complete.

    Raises:
        OutcomeUnknown: QEMU does not answer.
        DeadlineExceeded: a job of it does not end.
    """
    whole = record.copied and all_there(record.files)
    identity = read_identity(directory)
    if identity is not None and process.is_alive(identity):
        try:
            with Monitor.connected(directory, deadline) as monitor:
                whole = _settle_live(monitor, record, whole=whole, forward=forward)
        except (OutcomeUnknown, DeadlineExceeded):
            # Its monitor closes a moment before it ends.
            if not process.ends(identity):
                raise
            whole = whole and forward
    else:
        whole = whole and forward
    remove_files(record.files, published=record.copied and not whole)
    remove_copies(directory)
    directory.remove(BACKUP)
    return whole


def _settle_live(monitor: Monitor, record: BackupRecord, *, whole: bool, forward: bool) -> bool:
    if record.still and monitor.run_state() == "paused":
        monitor.execute("cont")
    if whole and record.checkpoint is not None:
        whole = _has_begun(monitor, record)
        if not whole and forward:
            begin(monitor, record.checkpoint, record.disks)
            whole = True
    elif whole:
        whole = forward
    remove_all(monitor, record.disks)
    return whole


def _has_begun(monitor: Monitor, record: BackupRecord) -> bool:
    wanted = f"{PREFIX}{record.checkpoint}"
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    having = {
        row.get("node-name") for row in rows if any(b.get("name") == wanted for b in row.get("dirty-bitmaps", ()))
    }
    return all(disk.image in having for disk in record.disks)


def has_gone(directory: InstanceDirectory) -> bool:
    """The process of an instance has ended, or does so in a moment: its monitor closes first."""
    identity = read_identity(directory)
    return identity is None or process.ends(identity)


def read_backup(directory: InstanceDirectory) -> BackupRecord | None:
    """The backup that was interrupted, if one was; a damaged record is no reason not to stop."""
    with contextlib.suppress(RecordError):
        return directory.read(BACKUP, BackupRecord, schema=SCHEMA)
    return None


def recover_backup(directory: InstanceDirectory, deadline: Deadline) -> RecoveredInstance | None:
    """Put in order a backup that was interrupted, whether the instance still lives or not; ``None`` for none.

    Args:
        directory: the instance's. The caller holds its lock.
        deadline: by when to be done.

    Raises:
        OutcomeUnknown: QEMU does not answer.
        DeadlineExceeded: a job of it does not end.
    """
    record = read_backup(directory)
    if record is None:
        return None
    whole = settle(directory, record, deadline, forward=True)
    detail = "all of it is there" if whole else "nothing of it is left"
    outcome = "completed" if whole else "undone"
    return RecoveredInstance(name=directory.name, operation="backup", outcome=outcome, detail=detail)


def discard_backup(directory: InstanceDirectory) -> None:
    """Once the process is gone: remove the files of a backup that has not all of them."""
    record = read_backup(directory)
    if record is not None:
        whole = record.copied and all_there(record.files)
        remove_files(record.files, published=record.copied and not whole)
