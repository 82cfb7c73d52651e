"""The operations of backups: what stands against one is found here, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from hvcore import (
    AlreadyRunning,
    Backup,
    Checkpoints,
    Deadline,
    Finding,
    FindingSet,
    Instance,
    InvalidParameters,
    NotRunning,
    Progress,
    WrongState,
)
from hvcore_kvm.backup.checkpoints import DiskNode, checkpoints_of, defect, delete, disk_nodes
from hvcore_kvm.backup.recovery import read_backup, refuse_backup, settle
from hvcore_kvm.backup.taking import Request, take
from hvcore_kvm.backup.target import DiskTarget, check_server, plan_targets
from hvcore_kvm.definition import Definition
from hvcore_kvm.directory import QUERY, InstanceDirectory
from hvcore_kvm.lifecycle import Control, refuse_moving
from hvcore_kvm.migration.credentials import check_certificates
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.observation import Observed
from hvcore_kvm.runtime import SAVING, ProcessRecord
from hvcore_kvm.snapshots.layers import top_overlays

OnProgress = Callable[[Progress], object] | None

_FULL = "take a full backup, with a new checkpoint"


@attrs.frozen(kw_only=True)
class Wanted:
    """What a host application asks for; see the hook."""

    target: str
    disks: tuple[str, ...] | None
    checkpoint: str | None
    since: str | None
    bandwidth: int
    compress: bool
    tls: str | None


@attrs.frozen(kw_only=True)
class BackupOperations:
    """Backs up the disks of the instances of one driver.

    Attributes:
        directory: the directory of an instance.
        control: what changes an instance that is there.
        read: reads a definition.
        settle: puts in order what was left half done with a snapshot.
    """

    directory: Callable[[str], InstanceDirectory]
    control: Callable[[InstanceDirectory], Control]
    read: Callable[[Instance], Definition]
    settle: Callable[[InstanceDirectory, Deadline], object]

    def backup_instance(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        """Copy the disks."""
        with self.directory(name) as directory:
            self.settle(directory, deadline)
            seen, process, instance = self._running(directory)
            refuse_moving(seen)
            if directory.tail(SAVING, 1):
                raise WrongState("a save of it was interrupted", hint="'hv recover' puts that in order")
            if seen.changes.pending:
                raise WrongState(
                    "a device of it is being added or removed", hint="'hv recover' completes that, or reset it"
                )
            left = read_backup(directory)
            if left is not None:
                # Of a host application that was killed.
                settle(directory, left, deadline, forward=True)
            return take(
                directory,
                process,
                lambda monitor: self._request(monitor, instance, top_overlays(directory), wanted, deadline),
                on_progress,
                deadline,
            )

    def list_checkpoints(self, name: str, deadline: Deadline) -> Checkpoints:
        """List the checkpoints."""
        with self.directory(name) as directory:
            _, process, instance = self._running(directory)
            with Monitor.connected(directory, deadline, process, QUERY) as monitor:
                return checkpoints_of(name, disk_nodes(monitor, instance, top_overlays(directory)))

    def delete_checkpoint(self, name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
        """Delete one."""
        with self.directory(name) as directory:
            self.settle(directory, deadline)
            seen, process, instance = self._running(directory)
            refuse_backup(directory)
            refuse_moving(seen)
            with Monitor.connected(directory, deadline, process) as monitor:
                overlays = top_overlays(directory)
                nodes = disk_nodes(monitor, instance, overlays)
                if not any(node.checkpoint(checkpoint) for node in nodes):
                    raise _refused([_no_checkpoint(nodes, "checkpoint", checkpoint)])
                delete(monitor, checkpoint, nodes)
                return checkpoints_of(name, disk_nodes(monitor, instance, overlays))

    def _running(self, directory: InstanceDirectory) -> tuple[Observed, ProcessRecord, Instance]:
        seen = self.control(directory).require_alive()
        if seen.unfinished:
            raise AlreadyRunning("its start was interrupted", hint="'hv recover' puts it in order")
        if seen.record is None or seen.process is None:
            raise NotRunning("there is no record of its disks", hint="restart it")
        return seen, seen.process, seen.record.instance

    def _request(
        self, monitor: Monitor, instance: Instance, overlays: Mapping[str, str], wanted: Wanted, deadline: Deadline
    ) -> Request:
        """What is to be done.

        Raises:
            InvalidParameters: everything that stands against it.
        """
        every = disk_nodes(monitor, instance, overlays)
        chosen, findings = _choose(every, wanted.disks)
        findings += _against_disks(chosen, self.read(instance))
        if wanted.checkpoint is not None:
            findings += _against_new(every, wanted.checkpoint)
        if wanted.since is not None:
            findings += _against_since(chosen, wanted.since)
        targets: tuple[DiskTarget, ...] = ()
        if chosen:
            targets, problems = plan_targets(wanted.target, chosen, wanted.checkpoint, wanted.since)
            findings += problems
        if wanted.tls is not None:
            findings += _against_certificates(wanted.tls, targets)
        for target in targets:
            if target.options is not None and not findings:
                findings += check_server(target, deadline)
        if findings:
            raise _refused(findings)
        return Request(
            disks=chosen,
            targets=targets,
            checkpoint=wanted.checkpoint,
            since=wanted.since,
            bandwidth=wanted.bandwidth,
            compress=wanted.compress,
            certificates=wanted.tls,
        )


def _choose(nodes: Sequence[DiskNode], wanted: tuple[str, ...] | None) -> tuple[tuple[DiskNode, ...], list[Finding]]:
    if wanted is None:
        none = Finding(code="no-disk", path="disks", message="it has no disks")
        return tuple(nodes), [] if nodes else [none]
    has = ", ".join(node.uuid for node in nodes) or "none"
    known = {node.uuid for node in nodes}
    findings = [
        Finding(code="no-disk", path="disks", message=f"there is no disk {uuid[:60]!r}", hint=f"its disks are: {has}")
        for uuid in wanted
        if uuid not in known
    ]
    return tuple(node for node in nodes if node.uuid in wanted), findings


def _against_disks(nodes: Sequence[DiskNode], definition: Definition) -> Iterator[Finding]:
    """What of the disks cannot be backed up."""
    parameters = {disk.disk.uuid: disk.parameters for disk in definition.disks}
    for node in nodes:
        given = parameters.get(node.uuid)
        if given is None:
            continue
        why = code = ""
        if given.bus in ("scsi-block", "scsi-generic"):
            code, why = "disk-passed-through", "its guest speaks with the device itself, past QEMU"
        elif given.shared:
            code, why = "disk-shared", "others may write it, and QEMU does not see that"
        elif given.secret_file is not None:
            code, why = "disk-encrypted", "the copy would not be encrypted"
        if why:
            hint = "leave it out, or back it up where it is stored"
            yield Finding(code=code, path="disks", message=f"disk {node.uuid} cannot be copied: {why}", hint=hint)


def _against_new(nodes: Sequence[DiskNode], name: str) -> Iterator[Finding]:
    if any(node.checkpoint(name) is not None for node in nodes):
        hint = "choose another name, or delete it first"
        message = f"there is a checkpoint {name} already"
        yield Finding(code="checkpoint-exists", path="checkpoint", message=message, hint=hint)


def _against_since(nodes: Sequence[DiskNode], name: str) -> Iterator[Finding]:
    for node in nodes:
        bitmap = node.checkpoint(name)
        if bitmap is None:
            yield _no_checkpoint([node], "since", name)
        elif why := defect(bitmap):
            message = f"nothing can begin from checkpoint {name} of disk {node.uuid}: {why}"
            yield Finding(code="checkpoint-unusable", path="since", message=message, hint=_FULL)


def _against_certificates(directory: str, targets: Sequence[DiskTarget]) -> Iterator[Finding]:
    yield from check_certificates(directory, "client", "tls")
    if any((target.options or {}).get("server", {}).get("type") == "unix" for target in targets):
        message = "a server behind a UNIX socket has no host name that its certificate could be for"
        yield Finding(code="contradiction", path="tls", message=message, hint="leave it out, or name the host")


def _no_checkpoint(nodes: Sequence[DiskNode], path: str, name: str) -> Finding:
    message = f"there is no checkpoint {name}"
    if len(nodes) == 1:
        lost = "" if nodes[0].keeps else ", which loses its checkpoints when QEMU ends"
        message = (
            f"disk {nodes[0].uuid}{lost}, has no checkpoint {name}" if lost else f"{message} of disk {nodes[0].uuid}"
        )
    return Finding(code="no-checkpoint", path=path, message=message, hint=_FULL if path == "since" else None)


def _refused(findings: list[Finding]) -> InvalidParameters:
    return InvalidParameters("it cannot be done", FindingSet(findings))
