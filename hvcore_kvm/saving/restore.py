"""Restoring: the file is checked, QEMU is started as for a migration, and reads the stream from a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

from hvcore import Deadline, DeadlineExceeded, Finding, OperationFailed, Progress, RecordError
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.qmp import QmpClient, QmpClosed
from hvcore_kvm.runtime import HISTORY, RESTORING, SCHEMA, History, Restoring
from hvcore_kvm.saving import channel
from hvcore_kvm.saving.save import look_at
from hvcore_kvm.saving.saved_file import (
    CHUNK,
    SavedDisk,
    SavedFile,
    SavedHeader,
    host_cpu,
    mark_restored,
    open_saved,
    read_header,
    verify_stream,
)
from hvcore_kvm.snapshots.layers import overlays_of
from hvcore_kvm.snapshots.record import Shelf

_FD = "hvcore-restore"


@contextlib.contextmanager
def read_for_restore(path: str) -> Iterator[tuple[int, SavedFile]]:
    """Open a saved file and check its header; yields its descriptor and the header.

    Raises:
        RecordError: it cannot be used.
    """
    fd = open_saved(path, os.O_RDWR)
    try:
        yield fd, read_header(fd, path)
    finally:
        os.close(fd)


class SavedState:
    """The state of one saved guest, on its way into a QEMU that waits for it. Use it once.

    Args:
        fd: the file.
        path: its path.
        file: its header.
        directory: the instance's directory.
        on_progress: told how far it is.
    """

    def __init__(
        self,
        fd: int,
        path: str,
        file: SavedFile,
        directory: InstanceDirectory,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._fd = fd
        self._path = path
        self._file = file
        self._directory = directory
        self._on_progress = on_progress

    @property
    def _header(self) -> SavedHeader:
        return self._file.header

    def verify(self, deadline: Deadline) -> None:
        """Read the whole file and compare its checksum.

        Raises:
            RecordError: it is damaged.
            DeadlineExceeded: it takes too long.
        """

        def step(done: int) -> None:
            if deadline.expired:
                raise DeadlineExceeded(f"{self._path} was not read in time", hint="give it more time")
            self._say("verifying", done)

        verify_stream(self._fd, self._path, self._header, step)

    def findings(self, plan: LaunchPlan | None, *, force: bool) -> Iterator[Finding]:
        """Find everything that stands against restoring it here and now.

        Args:
            plan: the start it would be, if one could be planned.
            force: restored before, or with disks that have been written since, is no reason against it.
        """
        record = self._header.record
        if not force:
            yield from self._again()
        if record.cpu_model in ("host", "max") and record.accelerator == "kvm" and self._header.host_cpu != host_cpu():
            message = f"it was saved with all features of {self._header.host_cpu}, this host has {host_cpu()}"
            hint = "restore it on such a host; with a named params.cpu_model a guest can go to another"
            yield Finding(code="cpu-differs", path="params.cpu_model", message=message, hint=hint)
        if plan is None:
            return
        if plan.decisions.capabilities.machine(record.machine) is None:
            message = f"it was saved as a {record.machine}, which this QEMU does not have"
            yield Finding(code="machine-unknown", path="machine", message=message, hint="use the QEMU that saved it")
        accelerator = plan.decisions.choice.accelerator.value
        if accelerator != record.accelerator:
            message = f"it was saved under {record.accelerator}, here it would run under {accelerator}"
            yield Finding(code="accelerator-differs", path="params.accel", message=message)

    def _again(self) -> Iterator[Finding]:
        hint = "what its disks hold is not what its memory expects; 'force' restores it all the same"
        if self._file.restored:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(self._file.restored, 2**40)))
            yield Finding(code="restored-before", path="path", message=f"was restored on {when}", hint=hint)
        history = None
        with contextlib.suppress(RecordError):
            history = self._directory.read(HISTORY, History, schema=SCHEMA, data=True)
        if history is not None and history.saved_as != self._header.id and not self._file.restored:
            message = f"{self._header.record.instance.name} has run here since it was saved"
            yield Finding(code="ran-since", path="path", message=message, hint=hint)
        overlays = overlays_of(Shelf(self._directory).snapshots)
        for index, disk in enumerate(self._header.record.instance.disks):
            then = next((saved for saved in self._header.disks if saved.uuid == disk.uuid), None)
            if then is None or disk.path is None or disk.read_only:
                continue
            for message in _differences(then, disk.path, overlays.get(then.uuid, ())):
                yield Finding(code="disk-changed", path=f"disks[{index}].path", message=message, hint=hint)

    def load(self, client: QmpClient, deadline: Deadline) -> None:
        """Let QEMU read it all. A refusal of its contents ends QEMU, which is found when it is asked next."""
        channel.prepare(client, deadline)
        channel.unlimited(client, deadline)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, CHUNK)
                client.execute("getfd", {"fdname": _FD}, deadline=deadline, fds=(reader,))
            finally:
                os.close(reader)
            client.execute("migrate-incoming", {"uri": f"fd:{_FD}"}, deadline=deadline)
            os.set_blocking(writer, False)
            self._feed(writer, deadline)
        finally:
            os.close(writer)
        how, words = channel.wait_final(client, deadline)
        if how != "completed":
            # It ends by itself; what it prints then says more.
            raise QmpClosed(f"it could not load the saved guest: {words or how}", sent=True)

    def _feed(self, writer: int, deadline: Deadline) -> None:
        poll = select.poll()
        poll.register(writer, select.POLLOUT)
        done = 0
        for data in self._stream():
            view = memoryview(data)
            while view:
                if deadline.expired or not poll.poll(deadline.timeout() * 1000):
                    raise DeadlineExceeded("QEMU did not load the saved guest in time", hint="give it more time")
                try:
                    written = os.write(writer, view)
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    return
                view = view[written:]
            done += len(data)
            self._say("loading", done, self._header.stream.raw_size)

    def _stream(self) -> Iterator[bytes]:
        """What QEMU is to read, never more than the header says there is."""
        stream = self._header.stream
        unpack = zlib.decompressobj() if stream.compression == "zlib" else None
        offset, end, left = stream.offset, stream.offset + stream.size, stream.raw_size
        while offset < end and left > 0:
            packed = os.pread(self._fd, min(CHUNK, end - offset), offset)
            if not packed:
                raise RecordError(f"{self._path} has become shorter while it was read", code="saved-truncated")
            offset += len(packed)
            while packed and left > 0:
                try:
                    data = packed if unpack is None else unpack.decompress(packed, CHUNK)
                except zlib.error as error:
                    raise RecordError(f"{self._path} is damaged: {error}", code="saved-damaged") from error
                packed = b"" if unpack is None else unpack.unconsumed_tail
                left -= len(data)
                yield data[: len(data) + min(left, 0)]

    def mark(self) -> None:
        """Write into the file that it has been restored: before its guest can run."""
        restoring = Restoring(id=self._header.id, path=self._path, restored=self._file.restored)
        self._directory.write(RESTORING, restoring, schema=SCHEMA)
        self._set(max(1, int(time.time())))

    def unmark(self) -> None:
        """Take that back."""
        self._set(self._file.restored)

    def _set(self, when: int) -> None:
        try:
            mark_restored(self._fd, when)
        except OSError as error:
            raise OperationFailed(
                f"cannot write into {self._path} that it is restored: {error.strerror}", code="file-not-written"
            ) from error

    def _say(self, phase: str, done: int, total: int | None = None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(phase=phase, done=done, total=total or self._header.stream.size))


def _differences(then: SavedDisk, path: str, overlays: Sequence[str]) -> Iterator[str]:
    """In what a disk is no longer what it was when its guest was saved.

    Overlays that have come since are none: nothing is in them before a guest runs, and that is told otherwise.

    Args:
        then: what it was.
        path: its image.
        overlays: what lies upon that now, the topmost last.
    """
    had = [layer.path for layer in then.layers]
    for gone in (one for number, one in enumerate(had) if list(overlays[number : number + 1]) != [one]):
        yield f"{path} had the overlay {gone} when the guest was saved, which has been deleted or reverted since"
    images = ((path, then.size, then.modified), *((one.path, one.size, one.modified) for one in then.layers))
    for image, size, modified in images:
        now = look_at("", image)
        # One that is not there, the plan of the start has found, or it is no overlay any more.
        if now is None or (now.size, now.modified) == (size, modified):
            continue
        if now.size != size:
            yield f"{image} has {now.size} bytes, and had {size} when the guest was saved"
        else:
            yield f"{image} has been written since the guest was saved"
