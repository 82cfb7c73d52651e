"""The methods of `hvcore.Driver` about backups, and what can be said of their arguments without a driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hvcore.capabilities import Capability
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.instance import Instance
from hvcore.params.checks import absolute_path, no_control_characters
from hvcore.passage import Passage, checked_name

if TYPE_CHECKING:
    from hvcore.model.backup import Backup, Checkpoints
    from hvcore.model.progress import Progress

_CHECKPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Backups(Passage):
    """The operations of topic backup."""

    def backup_instance(
        self,
        instance: Instance | str,
        target: str,
        *,
        disks: Sequence[str] | None = None,
        checkpoint: str | None = None,
        since: str | None = None,
        bandwidth: int = 0,
        compress: bool = False,
        tls: str | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,
    ) -> Backup:
        """Copy the disks of a running or paused instance, as they are at one moment.

        Args:
            instance: the instance, or just its name.
            target: absolute path of a directory for new files, or URI of an export of an NBD server.
            disks: uuids of the disks; all when not given.
            checkpoint: name of a checkpoint that begins at this moment.
            since: checkpoint to begin from; a full backup when not given.
            bandwidth: bytes a second at most; 0 for no limit.
            compress: compress what is written; for files.
            tls: directory with the certificates of a client, for a server.
            on_progress: called with how far it is, many times a second.
            timeout: seconds until it must be done; else nothing of it is left.
        """
        name = self._named_here("backup_instance", instance)
        findings = [*_check(target, disks, checkpoint, since, bandwidth, tls), *_check_compress(compress, target)]
        if findings:
            raise self._stamp(_refused(findings), "backup_instance", name)
        if compress:
            self._require(Capability.BACKUP_COMPRESSION, "backup_instance", name)
        taken: Backup = self._named(
            "backup_instance",
            name,
            timeout,
            target=target,
            disks=None if disks is None else tuple(uuid.lower() for uuid in disks),
            checkpoint=checkpoint,
            since=since,
            bandwidth=bandwidth,
            compress=compress,
            tls=tls,
            on_progress=on_progress,
        )
        return taken

    def list_checkpoints(self, instance: Instance | str, *, timeout: float | None = None) -> Checkpoints:
        """List the checkpoints that the disks of a live instance have."""
        listed: Checkpoints = self._named("list_checkpoints", instance, timeout)
        return listed

    def delete_checkpoint(
        self, instance: Instance | str, checkpoint: str, *, timeout: float | None = None
    ) -> Checkpoints:
        """Stop keeping track of what is written since a checkpoint; returns those that are left."""
        name = self._named_here("delete_checkpoint", instance)
        findings = [*_check_checkpoint("checkpoint", checkpoint)]
        if findings:
            raise self._stamp(_refused(findings), "delete_checkpoint", name)
        left: Checkpoints = self._named("delete_checkpoint", name, timeout, checkpoint=checkpoint)
        return left

    def _named_here(self, operation: str, instance: Instance | str) -> str:
        try:
            return checked_name(instance)
        except InvalidParameters as error:
            raise self._stamp(error, operation, None) from None


def _refused(findings: list[Finding]) -> InvalidParameters:
    return InvalidParameters("an argument is not valid", FindingSet(findings))


def _check(
    target: object, disks: Any, checkpoint: object, since: object, bandwidth: object, tls: object
) -> Iterator[Finding]:
    """Everything that is wrong with the arguments of a backup wherever it is taken."""
    if type(target) is not str:
        yield _wrong("target", f"is not text but {type(target).__name__}")
    elif problem := absolute_path(target) if "://" not in target else no_control_characters(target):
        yield _wrong("target", f"{problem}; it is a directory or the URI of an NBD export")
    yield from _check_disks(disks)
    for path, value in (("checkpoint", checkpoint), ("since", since)):
        if value is not None:
            yield from _check_checkpoint(path, value)
    if checkpoint is not None and checkpoint == since:
        yield _wrong("checkpoint", f"{str(checkpoint)[:64]!r} is what the backup begins from; name the new one anew")
    if type(bandwidth) is not int or not 0 <= bandwidth < 2**63:
        yield _wrong("bandwidth", "is not a number of bytes a second")
    if tls is not None:
        problem = absolute_path(tls) if type(tls) is str else f"is not text but {type(tls).__name__}"
        if problem:
            yield _wrong("tls", problem)
        elif type(target) is str and "://" not in target:
            yield _wrong("tls", "is for a server, and the target is a directory")


def _check_compress(compress: object, target: object) -> Iterator[Finding]:
    if type(compress) is not bool:
        yield _wrong("compress", f"is not true or false but {type(compress).__name__}")
    elif compress and type(target) is str and "://" in target:
        yield _wrong("compress", "is for files, and the target is a server, which stores it as it likes")


def _check_disks(disks: Any) -> Iterator[Finding]:
    if disks is None:
        return
    if isinstance(disks, str) or not isinstance(disks, Sequence):
        yield _wrong("disks", f"is not a list of uuids but {type(disks).__name__}")
        return
    if not disks:
        yield _wrong("disks", "names no disk; leave it out for all")
    wrong = [disk for disk in disks if type(disk) is not str]
    if wrong:
        yield _wrong("disks", f"holds {type(wrong[0]).__name__}, which is no uuid")
    elif len({disk.lower() for disk in disks}) < len(disks):
        yield _wrong("disks", "names a disk twice")


def _check_checkpoint(path: str, value: object) -> Iterator[Finding]:
    if type(value) is not str:
        yield _wrong(path, f"is not text but {type(value).__name__}")
    elif _CHECKPOINT.fullmatch(value) is None:
        yield _wrong(
            path, f"{value[:64]!r} is no name: up to 64 letters, digits, '.', '_' and '-', with a letter or digit first"
        )


def _wrong(path: str, message: str) -> Finding:
    return Finding(code="invalid-value", path=path, message=message)
