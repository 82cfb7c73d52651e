"""Saving: the guest stops, QEMU sends its state into a pipe, and this process writes it to a file.

QEMU never gets the file: should this process be killed, the pipe breaks, and QEMU's migration fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence

import attrs

from hvcore import (
    Deadline,
    DeadlineExceeded,
    HypervisorError,
    HypervisorRefused,
    Instance,
    NotRunning,
    OperationFailed,
    Progress,
    SavedInstance,
    WrongState,
)
from hvcore_kvm.directory import CONTROL, InstanceDirectory
from hvcore_kvm.observation import Observed
from hvcore_kvm.qmp import QmpClient, QmpClosed, QmpConnectError, QmpError, QmpRefused, QmpTimeout
from hvcore_kvm.runtime import PLACEMENT, SAVING, SCHEMA, Placement, RuntimeRecord, Saving
from hvcore_kvm.saving import channel
from hvcore_kvm.saving.part import PartFile, check_target, part_of
from hvcore_kvm.saving.recovery import undo_save
from hvcore_kvm.saving.saved_file import (
    CHUNK,
    Compression,
    SavedDisk,
    SavedHeader,
    SavedLayer,
    SavedRecord,
    SavedStream,
    complete,
    host_cpu,
    reserve,
)
from hvcore_kvm.snapshots.layers import overlays_of
from hvcore_kvm.snapshots.record import Shelf

SAVABLE = ("running", "paused", "prelaunch")
"""QEMU's run states in which a guest can be saved."""

_FD = "hvcore-save"
_UNDO_PATIENCE = 15.0
_LARGEST = 2**63


@attrs.frozen(kw_only=True)
class _Written:
    """What has come through the pipe."""

    size: int
    raw_size: int
    sha256: str


def save(
    directory: InstanceDirectory,
    seen: Observed,
    path: str,
    compression: Compression,
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> SavedInstance:
    """Write a live instance to a file; afterwards its guest stands still, and nothing but its process is left to end.

    Args:
        directory: the instance's.
        seen: the instance.
        path: where the file is to be.
        compression: how it is compressed.
        on_progress: told how far it is.
        deadline: by when to be done.

    Raises:
        InvalidParameters: the file cannot be there.
        WrongState: it is in a state in which it cannot be saved.
        HypervisorRefused: QEMU refuses; its own words.
        OperationFailed: it was undone, and the guest is what it was.
    """
    record = seen.record
    if record is None:
        raise NotRunning("there is no record of what it runs with", hint="restart it")
    check_target(path)
    if seen.migration is not None:
        raise WrongState("a migration of it has not been finished", hint="cancel or finish it first")
    if seen.changes.pending:
        raise WrongState("a device of it is being added or removed", hint="'hv recover' completes that, or reset it")
    placement = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)
    if (left := directory.read(SAVING, Saving, schema=SCHEMA)) is not None:
        # Of a host application that was killed; whoever completes a save ends the process with it.
        undo_save(directory, left, deadline)
    try:
        with QmpClient.connect(directory.join(CONTROL), deadline) as client:
            state = _state(client, deadline)
            saving = Saving(id=str(uuid.uuid4()), path=path, part="", state=state)
            saving = attrs.evolve(saving, part=part_of(path, saving.id))
            channel.prepare(client, deadline)
            overlays = overlays_of(Shelf(directory).snapshots)
            header = _header(record, placement, overlays, saving, compression)
            directory.write(SAVING, saving, schema=SCHEMA)
            return _write(client, record.instance, overlays, header, saving, on_progress, deadline)
    except BaseException as error:
        shown = _failure(error) if isinstance(error, QmpError) else error
        _undo(directory, shown)
        if shown is not error:
            raise shown from error
        raise


def _undo(directory: InstanceDirectory, error: BaseException) -> None:
    """Undo what was begun, and say with the error what could not be undone."""
    saving = directory.read(SAVING, Saving, schema=SCHEMA)
    if saving is None:
        return
    try:
        undo_save(directory, saving, Deadline.after(_UNDO_PATIENCE))
    except HypervisorError as problem:
        error.__notes__ = [*getattr(error, "__notes__", ()), f"undoing the save: {problem}"]


def _state(client: QmpClient, deadline: Deadline) -> str:
    found = str(client.execute("query-status", deadline=deadline)["status"])
    if found not in SAVABLE:
        raise WrongState(
            f"it cannot be saved: QEMU's run state is {found}", hint="a running or paused instance can be saved"
        )
    reasons = client.execute("query-migrate", deadline=deadline).get("blocked-reasons") or ()
    if reasons:
        # All at once; QEMU's own refusal has only the first.
        words = "; ".join(str(reason) for reason in reasons)
        raise HypervisorRefused("migrate", "GenericError", words, hint="it has something whose state cannot be saved")
    return found


def _header(
    record: RuntimeRecord,
    placement: Placement | None,
    overlays: Mapping[str, Sequence[str]],
    saving: Saving,
    compression: str,
) -> SavedHeader:
    """The header, with numbers that need as much room as any."""
    saved = SavedRecord(
        instance=record.instance,
        machine=record.machine,
        accelerator=record.accelerator,
        cpu_model=record.cpu_model,
        qemu_version=record.qemu_version,
        ports=record.ports,
        addresses={} if placement is None else placement.addresses,
    )
    stream = SavedStream(offset=_LARGEST, size=_LARGEST, raw_size=_LARGEST, sha256="0" * 64, compression=compression)
    disks = (
        SavedDisk(
            uuid=disk.uuid or "",
            size=_LARGEST,
            modified=_LARGEST,
            layers=tuple(
                SavedLayer(path=path, size=_LARGEST, modified=_LARGEST) for path in overlays.get(disk.uuid or "", ())
            ),
        )
        for disk in record.instance.disks
    )
    return SavedHeader(
        id=saving.id,
        saved=time.time(),
        state=saving.state,
        host_cpu=host_cpu(),
        record=saved,
        stream=stream,
        disks=tuple(disks),
    )


def _write(
    client: QmpClient,
    instance: Instance,
    overlays: Mapping[str, Sequence[str]],
    header: SavedHeader,
    saving: Saving,
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> SavedInstance:
    with PartFile(saving.part, saving.path) as file:
        offset = reserve(file.fd, header)
        os.lseek(file.fd, offset, os.SEEK_SET)
        if saving.state == "running":
            client.execute("stop", deadline=deadline)
        channel.unlimited(client, deadline)
        reader = _begin(client, deadline)
        try:
            written = _receive(reader, file, header.stream.compression, instance.memory, on_progress, deadline)
        finally:
            os.close(reader)
        how, words = channel.wait_final(client, deadline)
        if how != "completed":
            raise OperationFailed(f"QEMU did not save it ({how}): {words or 'it does not say why'}", code="not-saved")
        # QEMU has written out its disks and let go of them: what they are now is what they will be.
        stream = attrs.evolve(
            header.stream, offset=offset, size=written.size, raw_size=written.raw_size, sha256=written.sha256
        )
        complete(file.fd, attrs.evolve(header, stream=stream, disks=disks_of(instance, overlays)))
        file.publish()
    return SavedInstance(name=instance.name, path=saving.path, size=offset + written.size)


def _begin(client: QmpClient, deadline: Deadline) -> int:
    """Let QEMU send its state into a pipe; returns the end to read from."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        # More at once, where the host allows it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, CHUNK)
        client.execute("getfd", {"fdname": _FD}, deadline=deadline, fds=(writer,))
        try:
            client.execute("migrate", {"uri": f"fd:{_FD}"}, deadline=deadline)
        except QmpRefused:
            client.execute("closefd", {"fdname": _FD}, deadline=deadline)
            raise
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return reader


def _receive(
    reader: int,
    file: PartFile,
    compression: str,
    memory: int,
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> _Written:
    compressor = zlib.compressobj(1) if compression == "zlib" else None
    digest = hashlib.sha256()
    size = raw_size = 0
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        if deadline.expired or not poll.poll(deadline.timeout() * 1000):
            raise DeadlineExceeded("it was not saved in time", hint="give it more time, or a faster disk")
        raw = os.read(reader, CHUNK)
        raw_size += len(raw)
        data = raw
        if compressor is not None:
            data = compressor.compress(raw) if raw else compressor.flush()
        digest.update(data)
        file.write(data)
        size += len(data)
        if on_progress is not None:
            on_progress(Progress(phase="saving", done=min(raw_size, memory), total=memory))
        if not raw:
            return _Written(size=size, raw_size=raw_size, sha256=digest.hexdigest())


def disks_of(instance: Instance, overlays: Mapping[str, Sequence[str]]) -> tuple[SavedDisk, ...]:
    """What the disks of an instance are at this moment; those behind a server are left out.

    Args:
        instance: the instance.
        overlays: paths of the overlays of each disk, the topmost last, by uuid.

    Raises:
        OperationFailed: an overlay cannot be looked at.
    """
    found = []
    for disk in instance.disks:
        image = look_at(disk.uuid or "", disk.path) if disk.path else None
        if image is not None:
            layers = tuple(_layer(path) for path in overlays.get(disk.uuid or "", ()))
            found.append(attrs.evolve(image, layers=layers))
    return tuple(found)


def _layer(path: str) -> SavedLayer:
    found = look_at("", path)
    if found is None:
        raise OperationFailed(f"the overlay {path} cannot be looked at", code="not-saved", hint="put it back")
    return SavedLayer(path=path, size=found.size, modified=found.modified)


def look_at(ident: str, path: str) -> SavedDisk | None:
    """What an image is at this moment; ``None`` when it cannot be looked at."""
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            return SavedDisk(uuid=ident, size=found.st_size, modified=found.st_mtime_ns)
        if not stat.S_ISBLK(found.st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return SavedDisk(uuid=ident, size=os.lseek(fd, 0, os.SEEK_END), modified=0)
        finally:
            os.close(fd)
    except OSError:
        return None


def _failure(error: QmpError) -> HypervisorError:
    if isinstance(error, QmpRefused):
        return HypervisorRefused(error.command, error.error_class, error.text)
    if isinstance(error, QmpConnectError):
        return DeadlineExceeded(f"QEMU does not answer, nothing was asked of it: {error}")
    if isinstance(error, QmpTimeout):
        return DeadlineExceeded("it was not saved in time: QEMU does not answer", hint="give it more time")
    if isinstance(error, QmpClosed):
        return OperationFailed(f"QEMU has ended while it was saved: {error}", code="not-saved")
    return OperationFailed(f"QEMU does not answer as it should: {error}", code="not-saved")
