"""`SnapshotHooks`: the hooks of snapshots, as `FakeDriver` has them."""

from __future__ import annotations

from hvcore import Deadline, Instance, Snapshot, SnapshotListing, Transition, hookimpl
from hvcore_fake import snapshots
from hvcore_fake.saving_hooks import SavingHooks
from hvcore_fake.snapshots import OnProgress


class SnapshotHooks(SavingHooks):
    """Runs operations as calls on a world; those of snapshots are here."""

    @hookimpl
    def hv_create_snapshot(
        self,
        name: str,
        instance: Instance | None,
        snapshot: str,
        memory: bool | None,
        external: bool,
        on_progress: OnProgress,
        deadline: Deadline,
    ) -> Snapshot:
        """Take one."""
        return self._run(
            "create_snapshot",
            name,
            deadline,
            lambda call: snapshots.create(call, name, instance, snapshot, memory, external, on_progress),
        )

    @hookimpl
    def hv_list_snapshots(self, name: str, deadline: Deadline) -> SnapshotListing:
        """List them."""
        return self._run("list_snapshots", name, deadline, lambda call: snapshots.listing(call, name))

    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        """Go back to one."""
        revert = snapshots.revert
        return self._run("revert_snapshot", name, deadline, lambda call: revert(call, name, snapshot, on_progress))

    @hookimpl
    def hv_delete_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        """Give one up."""
        delete = snapshots.delete
        return self._run("delete_snapshot", name, deadline, lambda call: delete(call, name, snapshot, on_progress))
