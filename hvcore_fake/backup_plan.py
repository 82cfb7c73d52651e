"""What a backup of a modelled instance is to do: its disks, its files, and everything that stands against it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import attrs

from hvcore import Disk, Finding, FindingSet, Instance, InvalidParameters
from hvcore_fake.checkpoint import Tracked
from hvcore_fake.parameters import secret_of
from hvcore_fake.record import Process

_FULL = "take a full backup, with a new checkpoint"

DEFECT = "the process did not end in order, and may have written what there is no record of"
"""Why nothing can begin from a checkpoint that is not usable."""


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
class DiskPlan:
    """One disk that is backed up.

    Attributes:
        disk: the disk.
        path: the file it gets.
        base: name of the file that is on; ``None`` for none.
        blocks: the blocks that were written since the checkpoint; ``None`` for all.
    """

    disk: Disk
    path: str
    base: str | None
    blocks: tuple[int, ...] | None


def plan_backup(process: Process, instance: Instance, wanted: Wanted) -> tuple[DiskPlan, ...]:
    """Find out what is to be done.

    Raises:
        InvalidParameters: everything that stands against it.
    """
    every = disks_of(process, instance)
    chosen, findings = _choose(every, wanted.disks)
    findings += _against_disks(chosen)
    if wanted.checkpoint is not None and any(each.name == wanted.checkpoint for each in process.checkpoints):
        hint = "choose another name, or delete it first"
        message = f"there is a checkpoint {wanted.checkpoint} already"
        findings.append(Finding(code="checkpoint-exists", path="checkpoint", message=message, hint=hint))
    plans = tuple(_plan(process, disk, wanted) for disk in chosen)
    if wanted.since is not None:
        findings += _against_since(process, chosen, wanted.since)
    findings += _against_target(wanted.target, plans)
    if findings:
        raise InvalidParameters("it cannot be done", FindingSet(findings))
    return plans


def disks_of(process: Process, instance: Instance) -> tuple[Disk, ...]:
    """The disks of an instance that its guest has."""
    return tuple(disk for disk in instance.disks if process.device(disk.uuid or "") is not None)


def tracked(process: Process, ident: str, checkpoint: str) -> Tracked | None:
    """What a disk has of a checkpoint."""
    found = (each for each in process.checkpoints if (each.ident, each.name) == (ident, checkpoint))
    return next(found, None)


def no_checkpoint(path: str, message: str) -> Finding:
    """There is no such checkpoint."""
    return Finding(code="no-checkpoint", path=path, message=message, hint=_FULL if path == "since" else None)


def _plan(process: Process, disk: Disk, wanted: Wanted) -> DiskPlan:
    uuid = disk.uuid or ""
    since = None if wanted.since is None else tracked(process, uuid, wanted.since)
    return DiskPlan(
        disk=disk,
        path=os.path.join(wanted.target, _file_name(uuid, wanted.checkpoint)),
        base=None if wanted.since is None else _file_name(uuid, wanted.since),
        blocks=None if since is None else since.blocks,
    )


def _file_name(uuid: str, checkpoint: str | None) -> str:
    return f"{uuid}.{checkpoint}.qcow2" if checkpoint else f"{uuid}.qcow2"


def _choose(every: Sequence[Disk], wanted: tuple[str, ...] | None) -> tuple[tuple[Disk, ...], list[Finding]]:
    if wanted is None:
        none = Finding(code="no-disk", path="disks", message="it has no disks")
        return tuple(every), [] if every else [none]
    known = {disk.uuid for disk in every}
    hint = f"its disks are: {', '.join(disk.uuid or '' for disk in every) or 'none'}"
    findings = [
        Finding(code="no-disk", path="disks", message=f"there is no disk {uuid[:60]!r}", hint=hint)
        for uuid in wanted
        if uuid not in known
    ]
    return tuple(disk for disk in every if disk.uuid in wanted), findings


def _against_disks(disks: Sequence[Disk]) -> Iterator[Finding]:
    for disk in disks:
        if disk.path is None:
            message = f"disk {disk.uuid} cannot be copied: what is on a storage server is not modelled"
            yield Finding(code="not-supported", path="disks", message=message, hint="leave it out")
        elif secret_of(disk) is not None:
            message = f"disk {disk.uuid} cannot be copied: the copy would not be encrypted"
            yield Finding(code="disk-encrypted", path="disks", message=message, hint="leave it out")


def _against_since(process: Process, disks: Sequence[Disk], since: str) -> Iterator[Finding]:
    for disk in disks:
        found = tracked(process, disk.uuid or "", since)
        if found is None:
            yield no_checkpoint("since", f"there is no checkpoint {since} of disk {disk.uuid}")
        elif not found.usable:
            message = f"nothing can begin from checkpoint {since} of disk {disk.uuid}: {DEFECT}"
            yield Finding(code="checkpoint-unusable", path="since", message=message, hint=_FULL)


def _against_target(target: str, plans: Sequence[DiskPlan]) -> Iterator[Finding]:
    if "://" in target:
        message = "is a server, and servers are not modelled"
        yield Finding(code="not-supported", path="target", message=message, hint="name a directory")
        return
    if not os.path.isdir(target):
        message = f"there is no directory {target}"
        yield Finding(code="directory-missing", path="target", message=message, hint="make it first")
        return
    if not os.access(target, os.W_OK | os.X_OK, effective_ids=True):
        message = f"no file can be made in {target}"
        yield Finding(code="directory-not-writable", path="target", message=message, hint="name another directory")
    limit = os.pathconf(target, "PC_NAME_MAX")
    for plan in plans:
        if len(os.fsencode(os.path.basename(plan.path))) > limit:
            message = f"the file system of {target} has no names as long as {os.path.basename(plan.path)}"
            yield Finding(code="name-too-long", path="target", message=message, hint="name the checkpoint shorter")
        if os.path.lexists(plan.path):
            hint = "name another directory, or another checkpoint"
            message = f"there is something at {plan.path}"
            yield Finding(code="file-exists", path="target", message=message, hint=hint)
