"""Faulty drivers that take, revert or delete snapshots wrongly, each a few lines on top of the fake one."""

from __future__ import annotations

import attrs
from breaking import breaks
from catalogue import unchanged

from hvcore import (
    Deadline,
    HypervisorError,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    Snapshot,
    SnapshotListing,
    Transition,
    WrongState,
    hookimpl,
)
from hvcore_fake import FakeDriver
from hvcore_fake.snapshots import OnProgress


class _Taking(FakeDriver):
    """Lets a mutant change how a snapshot is taken."""

    def before(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """What it does first."""

    def after(self, name: str, taken: Snapshot, deadline: Deadline) -> Snapshot:
        """What it does then."""
        return taken

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
        self.before(name, snapshot, deadline)
        taken = super().hv_create_snapshot(name, instance, snapshot, memory, external, on_progress, deadline)
        return self.after(name, taken, deadline)


@breaks("SN-01")
class TakenAndForgotten(_Taking):
    def after(self, name: str, taken: Snapshot, deadline: Deadline) -> Snapshot:
        self.hv_delete_snapshot(name, taken.name, None, deadline)
        return taken


@breaks("SN-01")
class TakingPauses(_Taking):
    def after(self, name: str, taken: Snapshot, deadline: Deadline) -> Snapshot:
        if taken.memory:
            self.hv_pause_instance(name, deadline)
        return taken


@breaks("SN-02")
class TakenNamesAreReplaced(_Taking):
    def before(self, name: str, snapshot: str, deadline: Deadline) -> None:
        if any(one.name == snapshot for one in self.hv_list_snapshots(name, deadline).snapshots):
            self.hv_delete_snapshot(name, snapshot, None, deadline)


@breaks("SN-03")
class RevertAlwaysRuns(FakeDriver):
    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        done = super().hv_revert_snapshot(name, snapshot, on_progress, deadline)
        if done.after is InstanceState.PAUSED:
            self.hv_resume_instance(name, deadline)
        return done


@breaks("SN-03")
class RevertOfTheStoppedDoesNothing(FakeDriver):
    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        if self._world.process(name) is None:
            return unchanged(name, InstanceState.STOPPED)
        return super().hv_revert_snapshot(name, snapshot, on_progress, deadline)


@breaks("SN-04")
class WhatIsMissingIsNoError(FakeDriver):
    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        try:
            return super().hv_revert_snapshot(name, snapshot, on_progress, deadline)
        except InvalidParameters:
            return unchanged(name, InstanceState.RUNNING)


@breaks("SN-05")
class DeletedAndStillListed(FakeDriver):
    @hookimpl
    def hv_delete_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        listed = self.hv_list_snapshots(name, deadline).snapshots
        return next(one for one in listed if one.name == snapshot)


@breaks("SN-06")
class LateOnesStay(_Taking):
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
        try:
            return super().hv_create_snapshot(name, instance, snapshot, memory, external, on_progress, deadline)
        except HypervisorError:
            if deadline.expired:
                again = Deadline.after(30)
                super().hv_create_snapshot(name, instance, snapshot, memory, external, on_progress, again)
            raise


@breaks("SN-07")
class SaysNothingOfReverts(FakeDriver):
    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        return super().hv_revert_snapshot(name, snapshot, None, deadline)


@breaks("SN-08")
class KeepsAMemoryThatThereIsNot(_Taking):
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
        try:
            return super().hv_create_snapshot(name, instance, snapshot, memory, external, on_progress, deadline)
        except NotRunning:
            taken = super().hv_create_snapshot(name, instance, snapshot, False, external, on_progress, deadline)
            return attrs.evolve(taken, memory=True)


@breaks("SN-09")
class ChangesDisksBelowAGuest(FakeDriver):
    @hookimpl
    def hv_revert_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Transition:
        try:
            return super().hv_revert_snapshot(name, snapshot, on_progress, deadline)
        except WrongState:
            return unchanged(name, InstanceState.RUNNING)


@breaks("SN-01")
class ListsForItselfAlone(_Taking):
    _own: tuple[Snapshot, ...] = ()

    def after(self, name: str, taken: Snapshot, deadline: Deadline) -> Snapshot:
        self._own = (*self._own, taken)
        return taken

    @hookimpl
    def hv_list_snapshots(self, name: str, deadline: Deadline) -> SnapshotListing:
        return SnapshotListing(snapshots=self._own)


@breaks("SN-10")
class ExternalIsWithin(_Taking):
    def after(self, name: str, taken: Snapshot, deadline: Deadline) -> Snapshot:
        if not taken.external:
            return taken
        self.hv_delete_snapshot(name, taken.name, None, deadline)
        super().hv_create_snapshot(name, None, taken.name, False, False, None, deadline)
        return taken


@breaks("SN-10")
class OverlaysAreTheImages(FakeDriver):
    @hookimpl
    def hv_list_snapshots(self, name: str, deadline: Deadline) -> SnapshotListing:
        known = super().hv_list_snapshots(name, deadline).snapshots
        return SnapshotListing(
            snapshots=tuple(
                attrs.evolve(one, disks=tuple(attrs.evolve(disk, overlay=disk.path) for disk in one.disks))
                for one in known
            )
        )


@breaks("SN-11")
class DeletesWhatOthersLieUpon(FakeDriver):
    @hookimpl
    def hv_delete_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        known = self.hv_list_snapshots(name, deadline).snapshots
        newer = known[[one.name for one in known].index(snapshot) + 1 :] if known and known[0].external else ()
        for one in reversed(newer):
            super().hv_delete_snapshot(name, one.name, None, deadline)
        return super().hv_delete_snapshot(name, snapshot, on_progress, deadline)


@breaks("SN-11")
class CommittingPauses(FakeDriver):
    @hookimpl
    def hv_delete_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        gone = super().hv_delete_snapshot(name, snapshot, on_progress, deadline)
        if gone.external and gone.state is InstanceState.RUNNING:
            self.hv_pause_instance(name, deadline)
        return gone


@breaks("SN-12")
class ForgetsOverlays(FakeDriver):
    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        for one in reversed(self.hv_list_snapshots(name, deadline).snapshots):
            self.hv_delete_snapshot(name, one.name, None, deadline)
        return super().hv_cleanup_instance(name, deadline)
