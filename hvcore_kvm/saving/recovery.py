"""What a save or a restore leaves that did not come to its end: taken back here, by whoever comes next."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from hvcore import Deadline, OperationFailed, OutcomeUnknown, RecordError
from hvcore_kvm import process
from hvcore_kvm.directory import CONTROL, InstanceDirectory
from hvcore_kvm.events import QemuEvent, last
from hvcore_kvm.listing import read_identity
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused
from hvcore_kvm.runtime import RESTORING, SAVING, SCHEMA, UNSENT, Restoring, Saving, Unsent
from hvcore_kvm.saving import channel
from hvcore_kvm.saving.part import discard, sync_directory
from hvcore_kvm.saving.saved_file import mark_restored, open_saved, read_header, read_id

_MOMENT = 3.0


def saved_as(directory: InstanceDirectory) -> Saving | None:
    """The save of an instance that has come to its end: its file is there, and whole."""
    saving = _saving(directory)
    return saving if saving is not None and read_id(saving.path) == saving.id else None


def undo_save(directory: InstanceDirectory, saving: Saving, deadline: Deadline) -> None:
    """Let a guest that was to be saved be what it was before, and remove what was written.

    Raises:
        OutcomeUnknown: QEMU does not answer.
        OperationFailed: it refuses to run the guest, or the file cannot be removed.
    """
    if read_id(saving.path) == saving.id:
        # Before the guest goes on: what has its name, and is whole, says that the guest has ended.
        try:
            discard(saving.path)
        except OSError as error:
            message = f"the guest cannot go on: {saving.path} cannot be removed: {error.strerror}"
            raise OperationFailed(message, code="undo-failed") from error
        with contextlib.suppress(OSError):
            sync_directory(saving.path)
    identity = read_identity(directory)
    if identity is not None and process.is_alive(identity):
        try:
            with QmpClient.connect(directory.join(CONTROL), deadline) as client:
                _let_go_on(client, directory, saving, deadline)
        except QmpRefused as error:
            raise OperationFailed(f"the guest cannot go on: QEMU refuses {error}", code="undo-failed") from error
        except QmpError as error:
            if not process.ends(identity):
                raise OutcomeUnknown(
                    f"QEMU does not answer: {error}", hint="'hv recover' lets the guest go on once QEMU answers"
                ) from error
    discard_part(directory)
    directory.remove(SAVING)


def _let_go_on(client: QmpClient, directory: InstanceDirectory, saving: Saving, deadline: Deadline) -> None:
    how, _ = channel.status(client, deadline)
    if how not in ("none", "completed", "failed", "cancelled"):
        client.execute("migrate_cancel", deadline=deadline)
        channel.wait_final(client, deadline)
    found = client.execute("query-status", deadline=deadline)["status"]
    if saving.state == "running" and found != "running":
        client.execute("cont", deadline=deadline)
    elif found == "postmigrate":
        # QEMU has no way back from here but to run the guest, which nobody has asked for.
        directory.write(UNSENT, Unsent(time=time.time()), schema=SCHEMA)


def discard_part(directory: InstanceDirectory) -> None:
    """Remove the file that a save was writing, if there is one."""
    saving = _saving(directory)
    if saving is not None:
        with contextlib.suppress(OSError):
            discard(saving.part)


def give_back(directory: InstanceDirectory, events: Sequence[QemuEvent]) -> None:
    """Once the process of an unfinished restore is gone: its file may be restored again, unless the guest has run.

    Args:
        directory: the instance's.
        events: what QEMU has written down; it does so before it lets a guest run.
    """
    restoring = None
    with contextlib.suppress(RecordError):
        restoring = directory.read(RESTORING, Restoring, schema=SCHEMA)
    if restoring is None or last(events, "RESUME") is not None:
        return
    # Somebody may have put another file there, or none.
    with contextlib.suppress(RecordError, OSError):
        fd = open_saved(restoring.path, os.O_RDWR)
        try:
            if read_header(fd, restoring.path).header.id == restoring.id:
                mark_restored(fd, restoring.restored)
        finally:
            os.close(fd)


def _saving(directory: InstanceDirectory) -> Saving | None:
    # A damaged one is no reason not to stop or recover: then the file it was writing stays.
    with contextlib.suppress(RecordError):
        return directory.read(SAVING, Saving, schema=SCHEMA)
    return None
