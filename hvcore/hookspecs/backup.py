"""Backups of the disks of a running instance.

The facade holds the instance's lock around `hv_backup_instance` and `hv_delete_checkpoint`. It hands over names of
checkpoints that are such, and uuids of disks in lower case, none of them twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.deadline import Deadline
    from hvcore.model.backup import Backup, Checkpoints
    from hvcore.model.progress import Progress


@hookspec(firstresult=True)
def hv_backup_instance(
    name: str,
    target: str,
    disks: tuple[str, ...] | None,
    checkpoint: str | None,
    since: str | None,
    bandwidth: int,
    compress: bool,
    tls: str | None,
    on_progress: Callable[[Progress], object] | None,
    deadline: Deadline,
) -> Backup:
    """Copy the disks of a running or paused instance to files or to a server, as they are at one moment.

    The guest goes on meanwhile, but for a moment at the beginning. What becomes of the backup never harms it: when the
    target is full, slow or gone, the backup fails. All disks are complete afterwards, or there is nothing of any.

    An incremental backup has only what was written since a checkpoint, and changes nothing about that checkpoint: it
    can be taken again.

    Args:
        name: name of the instance.
        target: a directory, or the URI of an export of an NBD server; with several disks ``{uuid}`` in it stands for
            each one's uuid. In a directory the files are new ones.
        disks: uuids of the disks; ``None`` for all.
        checkpoint: name of a checkpoint that is to begin at this moment; ``None`` for none.
        since: checkpoint to begin from; ``None`` for a full backup.
        bandwidth: bytes a second at most, of all disks together; 0 for no limit.
        compress: compress what is written to files; never set for an export, nor for a driver without capability
            ``backup-compression``.
        tls: directory with the certificates of a client, for a server; ``None`` for no TLS.
        on_progress: called in the same thread with how far it is, many times a second; must not raise. ``None`` for
            nobody.
        deadline: by when to be done; on expiry nothing of it is left.

    Returns:
        What the backup has of each disk.

    Errors: `NotRunning`; `InvalidParameters` with everything that stands against it; `WrongState`;
    `HypervisorRefused`; `OperationFailed` when it cannot be copied or written; `DeadlineExceeded`. After each of them
    nothing of the backup is left, and checkpoints are what they were.

    Capability: ``backup``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_list_checkpoints(name: str, deadline: Deadline) -> Checkpoints:
    """List the checkpoints that the disks of a live instance have.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        The checkpoints, also those from which nothing can begin any more.

    Errors: `NotRunning`; `OutcomeUnknown` when it does not answer.

    Capability: ``backup``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_delete_checkpoint(name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
    """Stop keeping track of what is written since a checkpoint, on all disks. The others stay what they are.

    Args:
        name: name of the instance.
        checkpoint: name of the checkpoint.
        deadline: by when to be done.

    Returns:
        The checkpoints that are left.

    Errors: `NotRunning`; `InvalidParameters` when there is no such checkpoint; `WrongState`; `HypervisorRefused`.

    Capability: ``backup``. Since: 0.1.
    """
