"""Faulty drivers that back up disks wrongly, each a few lines on top of the fake one."""

from __future__ import annotations

import contextlib
import os

import attrs
from breaking import breaks

from hvcore import (
    Backup,
    Checkpoints,
    Deadline,
    HypervisorError,
    Instance,
    InvalidParameters,
    NotRunning,
    OperationFailed,
    Progress,
    Snapshot,
    hookimpl,
    make_qcow2,
    read_qcow2,
)
from hvcore_fake import FakeDriver
from hvcore_fake.backup_plan import Wanted
from hvcore_fake.backups import OnProgress
from hvcore_fake.checkpoint import Tracked
from hvcore_fake.images import BLOCK, write_image
from hvcore_fake.processes import process_key


class _Backing(FakeDriver):
    """Lets a mutant change how a backup is taken."""

    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        """What it does instead."""
        return self.sound(name, wanted, on_progress, deadline)

    def sound(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        """What the fake driver does."""
        given = attrs.asdict(wanted, recurse=False)
        return super().hv_backup_instance(name=name, on_progress=on_progress, deadline=deadline, **given)

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
        wanted = Wanted(
            target=target,
            disks=disks,
            checkpoint=checkpoint,
            since=since,
            bandwidth=bandwidth,
            compress=compress,
            tls=tls,
        )
        return self.take(name, wanted, on_progress, deadline)

    def idents(self, name: str) -> tuple[str, ...]:
        """The disks of its guest."""
        process = self._world.process(name)
        return () if process is None else tuple(each.ident for each in process.attached if each.kind == "disk")


@breaks("BA-01")
class OneDiskAfterTheOther(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        taken = [
            self.sound(name, attrs.evolve(wanted, disks=(ident,)), on_progress, deadline)
            for ident in wanted.disks or self.idents(name)
        ]
        return attrs.evolve(taken[0], disks=tuple(disk for each in taken for disk in each.disks))


@breaks("BA-02")
class LeavesAPartOfWhatFailed(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        try:
            return self.sound(name, wanted, on_progress, deadline)
        except HypervisorError:
            with open(os.path.join(wanted.target, ".part"), "wb"):
                raise


@breaks("BA-02")
class LeavesThePausedRunning(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        try:
            return self.sound(name, wanted, on_progress, deadline)
        except HypervisorError:
            with self._world.store.locked():
                self._world.resume(name)
            raise


@breaks("BA-02")
class ForgetsTheCheckpointOfWhatFailed(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        try:
            return self.sound(name, wanted, on_progress, deadline)
        except OperationFailed:
            with self._world.store.locked():
                self._world.forget_checkpoint(name, "first")
            raise


@breaks("BA-03")
class ReplacesWhatIsThere(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        for ident in self.idents(name):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(os.path.join(wanted.target, f"{ident}.qcow2"))
        return self.sound(name, wanted, on_progress, deadline)


@breaks("BA-04")
class CheckpointsBeginWhenAllIsCopied(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        taken = self.sound(name, wanted, on_progress, deadline)
        process = self._world.process(name)
        if process is not None and wanted.since is not None:
            fresh = (attrs.evolve(c, blocks=()) if c.name == wanted.checkpoint else c for c in process.checkpoints)
            self._world.store.write(process_key(name), attrs.evolve(process, checkpoints=tuple(fresh)))
        return taken


@breaks("BA-04")
class ABackupUsesUpItsCheckpoint(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        taken = self.sound(name, wanted, on_progress, deadline)
        process = self._world.process(name)
        if process is not None and wanted.since is not None:
            used = (attrs.evolve(c, blocks=()) if c.name == wanted.since else c for c in process.checkpoints)
            self._world.store.write(process_key(name), attrs.evolve(process, checkpoints=tuple(used)))
        return taken


@breaks("BA-05")
class TakesTheLostForUnchanged(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        process = self._world.process(name)
        if process is not None and wanted.since is not None:
            sound = tuple(c for c in process.checkpoints if c.usable)
            known = {c.ident for c in sound if c.name == wanted.since}
            made = (
                Tracked(name=wanted.since, ident=ident, lasting=False)
                for ident in self.idents(name)
                if ident not in known
            )
            self._world.store.write(process_key(name), attrs.evolve(process, checkpoints=(*sound, *made)))
        return self.sound(name, wanted, on_progress, deadline)


@breaks("BA-06")
class AFullTargetStopsTheGuest(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        try:
            return self.sound(name, wanted, on_progress, deadline)
        except OperationFailed:
            self._world.disk_fails(name)
            raise


@breaks("BA-06")
class AFullTargetMakesWritesFail(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        def told(progress: Progress) -> None:
            # For as long as the backup lasts, its guest does not run.
            with self._world.store.locked():
                self._world.pause(name)
            if on_progress is not None:
                on_progress(progress)
            with self._world.store.locked():
                self._world.resume(name)

        return self.sound(name, wanted, told, deadline)


@breaks("BA-07")
class SaysNothingOfBackups(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        return self.sound(name, wanted, None, deadline)


@breaks("BA-07")
class MoreIsDoneThanThereIs(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        def told(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(attrs.evolve(progress, total=progress.total // 2))

        return self.sound(name, wanted, told, deadline)


@breaks("BA-08")
class DeletesTheOlderOnesToo(FakeDriver):
    @hookimpl
    def hv_delete_checkpoint(self, name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
        for each in super().hv_list_checkpoints(name, deadline).checkpoints:
            if each.name < checkpoint:
                super().hv_delete_checkpoint(name, each.name, deadline)
        return super().hv_delete_checkpoint(name, checkpoint, deadline)


@breaks("BA-08")
class AMissingCheckpointIsNoError(FakeDriver):
    @hookimpl
    def hv_delete_checkpoint(self, name: str, checkpoint: str, deadline: Deadline) -> Checkpoints:
        try:
            return super().hv_delete_checkpoint(name, checkpoint, deadline)
        except InvalidParameters:
            return super().hv_list_checkpoints(name, deadline)


@breaks("BA-09")
class OneThatIsNotAliveHasNoCheckpoints(FakeDriver):
    @hookimpl
    def hv_list_checkpoints(self, name: str, deadline: Deadline) -> Checkpoints:
        try:
            return super().hv_list_checkpoints(name, deadline)
        except NotRunning:
            return Checkpoints(name=name)


@breaks("BA-10")
class CompressesNothing(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        return self.sound(name, attrs.evolve(wanted, compress=False), on_progress, deadline)


@breaks("BA-10")
class CompressesWhatTheGuestWritesMeanwhile(_Backing):
    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        taken = self.sound(name, wanted, on_progress, deadline)
        for disk in taken.disks if wanted.compress else ():
            size, blocks = read_qcow2(disk.location)
            blocks[2] = b"later".ljust(BLOCK, b"!")
            with open(disk.location, "r+b") as file:
                file.truncate(0)
                write_image(file.fileno(), size, blocks, disk.base, compress=True)
        return taken


@breaks("BA-11")
class BacksUpWhatLiesBelow(_Backing):
    """What is written after an external snapshot is not in its backups."""

    def take(self, name: str, wanted: Wanted, on_progress: OnProgress, deadline: Deadline) -> Backup:
        taken = self.sound(name, wanted, on_progress, deadline)
        if any(one.external for one in super().hv_list_snapshots(name, deadline).snapshots):
            for disk in taken.disks:
                os.truncate(disk.location, 0)
                with open(disk.location, "r+b") as file:
                    make_qcow2(file.fileno(), disk.size)
        return taken


@breaks("BA-11")
class ForgetsWhatWasWrittenBeforeASnapshot(FakeDriver):
    """Its checkpoints are there after an external snapshot, and know of nothing that was written before."""

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
        taken = super().hv_create_snapshot(name, instance, snapshot, memory, external, on_progress, deadline)
        with self._world.store.locked():
            process = self._world.process(name)
            if process is not None:
                emptied = tuple(attrs.evolve(each, blocks=()) for each in process.checkpoints)
                self._world.store.write(process_key(name), attrs.evolve(process, checkpoints=emptied))
        return taken
