"""Taking a backup: the guest stands still for a moment, the disks of that moment are copied, the files get names."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence

import attrs

from hvcore import (
    Backup,
    Deadline,
    DeadlineExceeded,
    DiskBackup,
    HypervisorError,
    OperationFailed,
    OutcomeUnknown,
    Progress,
    WrongState,
)
from hvcore_kvm.backup import nodes
from hvcore_kvm.backup.checkpoints import DiskNode, begin
from hvcore_kvm.backup.nodes import Names
from hvcore_kvm.backup.recovery import has_gone, settle
from hvcore_kvm.backup.target import DiskTarget
from hvcore_kvm.block_job import dismiss_jobs, job_states, wait_jobs
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.migration.credentials import give_certificates
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.runtime import BACKUP, SCHEMA, BackupNodes, BackupRecord, ProcessRecord
from hvcore_kvm.saving.part import PartFile

STATES = ("running", "paused", "prelaunch")
"""QEMU's run states in which disks can be backed up."""

_UNDO_PATIENCE = 15.0

_ADVICE = (
    ("No such file", "a confined QEMU sees no socket of the host: name the server by its host"),
    ("Failed to connect", "QEMU's user has to be let in at the server"),
    ("sizes", "an export has to be as large as the disk"),
)
"""What QEMU says, and what to do about it."""


class _BackupMonitor(Monitor):
    """A connection for a backup."""

    def advice(self, text: str) -> str | None:
        """What to do about a refusal."""
        return next((advice for words, advice in _ADVICE if words in text), None)


@attrs.frozen(kw_only=True)
class Request:
    """A backup that has been found to be possible.

    Attributes:
        disks: the disks.
        targets: where each goes.
        checkpoint: the checkpoint that begins with it.
        since: the checkpoint it begins from.
        bandwidth: bytes a second at most; 0 for no limit.
        compress: the files are compressed.
        certificates: directory with the certificates of a client; ``None`` for no TLS.
    """

    disks: tuple[DiskNode, ...]
    targets: tuple[DiskTarget, ...]
    checkpoint: str | None
    since: str | None
    bandwidth: int
    compress: bool = False
    certificates: str | None = None


def take(
    directory: InstanceDirectory,
    running: ProcessRecord,
    request_of: Callable[[Monitor], Request],
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> Backup:
    """Take a backup; when it fails nothing of it is left.

    Args:
        directory: the instance's. The caller holds its lock.
        running: its process.
        request_of: finds out what is to be done, and raises everything that stands against it.
        on_progress: told how far it is.
        deadline: by when to be done.

    Raises:
        InvalidParameters: what stands against it.
        WrongState: the guest is in a state in which its disks cannot be backed up.
        HypervisorRefused: QEMU refuses; its own words.
        OperationFailed: it cannot be copied or written.
        DeadlineExceeded: it was not done in time.
    """
    taking = None
    try:
        with _BackupMonitor.connected(directory, deadline, running) as monitor:
            taking = _Taking(directory, running, monitor, request_of(monitor), on_progress)
            return taking.run()
    except BaseException as error:
        # Over a connection of its own: this one may wait for an answer that nobody wants any more.
        undone = taking is None or taking.undo(error)
        if isinstance(error, OutcomeUnknown) and has_gone(directory):
            raise OperationFailed("QEMU has ended while its disks were backed up", code="not-copied") from error
        if isinstance(error, OutcomeUnknown) and deadline.expired and undone:
            raise DeadlineExceeded("it was not backed up in time", hint="give it more time") from error
        raise


class _Taking:
    """Takes one backup.

    Args:
        directory: the instance's.
        running: its process.
        monitor: the connection to its QEMU, which knows the deadline.
        request: what is to be done.
        on_progress: told how far it is.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        running: ProcessRecord,
        monitor: Monitor,
        request: Request,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._directory = directory
        self._running = running
        self._monitor = monitor
        self._request = request
        self._on_progress = on_progress
        self._names = [Names(index=index) for index in range(len(request.disks))]
        ident = str(uuid.uuid4())
        files = (target.file(f"{ident}-{index}") for index, target in enumerate(request.targets))
        self._record = BackupRecord(
            id=ident,
            checkpoint=request.checkpoint,
            disks=tuple(BackupNodes(top=d.top, image=d.image, lasting=d.keeps) for d in request.disks),
            files=tuple(file for file in files if file is not None),
        )

    def run(self) -> Backup:
        """Do it."""
        state = self._monitor.run_state()
        if state not in STATES:
            hint = "a running or paused instance can be backed up"
            raise WrongState(f"it cannot be backed up: QEMU's run state is {state}", hint=hint)
        self._write()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(PartFile(file.part, file.path)) for file in self._record.files]
            self._prepare(files)
            self._insert(running=state == "running")
            copied = self._copy()
            self._close()
            self._publish(files)
        self._directory.remove(BACKUP)
        return self._result(copied)

    def undo(self, error: BaseException) -> bool:
        """Undo what was begun, and say with the error what could not be undone; true if nothing is left."""
        if not self._directory.tail(BACKUP, 1):
            return True
        try:
            if settle(self._directory, self._record, Deadline.after(_UNDO_PATIENCE), forward=False):
                error.add_note("the backup is complete all the same")
                return False
        except HypervisorError as problem:
            error.__notes__ = [*getattr(error, "__notes__", ()), f"undoing the backup: {problem}"]
            return False
        return True

    def _write(self) -> None:
        self._directory.write(BACKUP, self._record, schema=SCHEMA)

    def _prepare(self, files: Sequence[PartFile]) -> None:
        """Make the targets, while the guest runs."""
        request = self._request
        credentials = None
        if request.certificates is not None:
            credentials = nodes.CREDENTIALS
            give_certificates(
                self._monitor, self._directory, request.certificates, "client", self._running.identity.pid, credentials
            )
        for index, (disk, target) in enumerate(zip(request.disks, request.targets, strict=True)):
            if target.options is None:
                nodes.add_file(self._monitor, self._names[index], disk, target, files[index].fd)
                if request.compress:
                    nodes.add_aside(self._monitor, self._names[index], disk, target)
            else:
                nodes.add_export(self._monitor, self._names[index], target.options, credentials)

    def _insert(self, *, running: bool) -> None:
        """Let the guest stand still for the moment that the backup is of."""
        request = self._request
        if running:
            self._record = attrs.evolve(self._record, still=True)
            self._write()
            self._monitor.execute("stop")
        for names, disk in zip(self._names, request.disks, strict=True):
            nodes.insert(
                self._monitor,
                names,
                disk,
                request.since,
                track=request.checkpoint is not None,
                aside=request.compress,
            )
        if running:
            self._monitor.execute("cont")
            self._record = attrs.evolve(self._record, still=False)
            self._write()

    def _copy(self) -> list[int]:
        """Copy all disks; returns how many bytes of each."""
        request, jobs = self._request, [names.job for names in self._names]
        each = -(-request.bandwidth // len(jobs))
        for names in self._names:
            nodes.copy(
                self._monitor,
                names,
                incremental=request.since is not None,
                bandwidth=each,
                compress=request.compress,
            )
        try:
            wait_jobs(self._monitor, jobs, on_progress=self._on_progress)
        except OperationFailed as error:
            if "Permission denied" in error.message:
                # What is read from a picture that has been given up.
                error.hint = f"the target did not take in {nodes.PATIENCE} s what the guest was about to overwrite"
            raise
        states = job_states(self._monitor)
        dismiss_jobs(self._monitor, jobs)
        return [states[job].done for job in jobs]

    def _close(self) -> None:
        for names, disk in zip(self._names, self._request.disks, strict=True):
            nodes.take_out(self._monitor, names, disk.top, aside=self._request.compress)
        for names, target in zip(self._names, self._request.targets, strict=True):
            nodes.close(self._monitor, names, image=target.options is None)
        nodes.remove_descriptors(self._monitor)
        if self._request.certificates is not None:
            self._monitor.attempt("object-del", {"id": nodes.CREDENTIALS})

    def _publish(self, files: Sequence[PartFile]) -> None:
        """Give the files their names, then let the checkpoint begin: one without its files would be of no use."""
        found = [os.fstat(file.fd) for file in files]
        known = (
            attrs.evolve(file, device=at.st_dev, inode=at.st_ino)
            for file, at in zip(self._record.files, found, strict=True)
        )
        self._record = attrs.evolve(self._record, files=tuple(known), copied=True)
        self._write()
        for file in files:
            file.publish()
        if self._record.checkpoint is not None:
            begin(self._monitor, self._record.checkpoint, self._record.disks)

    def _result(self, copied: Sequence[int]) -> Backup:
        request = self._request
        disks = (
            DiskBackup(
                device=disk.uuid,
                location=target.location,
                format="qcow2" if target.options is None else "raw",
                size=disk.size,
                copied=count,
                base=target.base,
                lasting=disk.keeps and request.checkpoint is not None,
            )
            for disk, target, count in zip(request.disks, request.targets, copied, strict=True)
        )
        return Backup(
            name=self._directory.name,
            mode="full" if request.since is None else "incremental",
            disks=tuple(disks),
            checkpoint=request.checkpoint,
            since=request.since,
            compressed=request.compress,
        )
