"""`BackupHooks`: the hooks of backups, as `FakeDriver` has them."""

from __future__ import annotations

from hvcore import Backup, Checkpoints, Deadline, hookimpl
from hvcore_fake import backups
from hvcore_fake.backup_plan import Wanted
from hvcore_fake.backups import OnProgress
from hvcore_fake.saving_hooks import SavingHooks


class BackupHooks(SavingHooks):
    """Runs operations as calls on a world; those of backups are here."""

    @hookimpl
    def hv_backup_instance(
        self,
        name: str,
        target: str,
        disks: tuple[str, ...] | None,
        checkpoint: str | None,
        since: str | None,
        bandwidth: int,
        compress: bool,
        tls: str | None,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> Backup:
        """Copy disks."""
        wanted = Wanted(
            target=target,
            disks=disks,
            checkpoint=checkpoint,
            since=since,
            bandwidth=bandwidth,
            compress=compress,
            tls=tls,
        )
        backup = backups.backup
        return self._run("backup_instance", name, deadline, lambda call: backup(call, name, wanted, on_progress))

    @hookimpl
    def hv_list_checkpoints(self, name: str, deadline: Deadline) -> Checkpoints:
        """List them."""
        return self._run("list_checkpoints", name, deadline, lambda call: backups.list_checkpoints(call, name))

    @hookimpl
    def hv_delete_checkpoint(self, name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
        """Give one up."""
        delete = backups.delete_checkpoint
        return self._run("delete_checkpoint", name, deadline, lambda call: delete(call, name, checkpoint))
