"""Faulty drivers that lose, double or misjudge an instance on its way between two hosts."""

from __future__ import annotations

import contextlib
import os
from typing import ClassVar

import attrs
from breaking import breaks

from hvcore import (
    Cause,
    Deadline,
    Finding,
    FindingSet,
    HypervisorError,
    InstanceState,
    InvalidParameters,
    MigrationInfo,
    MigrationPhase,
    MigrationPolicy,
    MigrationStatus,
    MigrationTarget,
    MigrationTls,
    NotRunning,
    Transition,
    WrongState,
    hookimpl,
    read_definition,
)
from hvcore_fake import FakeDriver, guest
from hvcore_fake.account import record_key
from hvcore_fake.images import opened_path, read_disk, replace_disk
from hvcore_fake.life import write_record
from hvcore_fake.processes import process_key
from hvcore_fake.record import RuntimeRecord
from hvcore_fake.sending import at


def runs(driver: FakeDriver, name: str) -> None:
    """Let a guest run without any question."""
    process = driver._world.process(name)
    if process is not None:
        driver._world.store.write(process_key(name), guest.thaw(process, driver._world.clock()))


@breaks("MI-01")
class SourceBelievesInTheFailure(FakeDriver):
    @hookimpl
    def hv_finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_finalize_migration_source(name, success, deadline)
        except WrongState:
            runs(self, name)
            return Transition(name=name, before=None, after=InstanceState.RUNNING, changed=True)


@breaks("MI-01")
class DestinationRunsBeforeTheSourceHasStopped(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        target = super().hv_accept_instance(info, address, policy, deadline)
        runs(self, info.instance)
        return target


@breaks("LC-24")
class ResumesWhatHasLeft(FakeDriver):
    @hookimpl
    def hv_resume_instance(self, name: str, deadline: Deadline) -> Transition:
        try:
            return super().hv_resume_instance(name, deadline)
        except WrongState:
            runs(self, name)
            return Transition(name=name, before=InstanceState.POSTMIGRATE, after=InstanceState.RUNNING, changed=True)


@breaks("MI-02")
class FinalisesOnlyOnce(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        done = super().hv_finalize_migration_dst(info, success, deadline)
        if not done.changed:
            raise NotRunning("there is nothing to finish")
        return done


@breaks("MI-03", "MI-06")
class AcceptsWhateverItIsSent(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        instance, _ = read_definition({"name": info.instance})
        with self._world.store.locked():
            self._world.spawn(instance, incoming=True)
            write_record(self._world, instance, incoming=True)
        return MigrationTarget(address=self._world.address(info.instance))


@breaks("MI-03")
class RefusesAfterItHasBegun(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        try:
            return super().hv_accept_instance(info, address, policy, deadline)
        except InvalidParameters:
            self._world.store.make(f"state/instances/{info.instance}/")
            instance, _ = read_definition({"name": info.instance})
            write_record(self._world, instance, incoming=True)
            raise


@breaks("MI-06")
class NamesOneDifferenceOnly(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        if info.driver != "fake":
            finding = Finding(code="other-driver", path="driver", message="is another")
            raise InvalidParameters("it comes from elsewhere", FindingSet([finding]))
        return super().hv_accept_instance(info, address, policy, deadline)


@breaks("MI-04")
class CancellingPausesTheSource(FakeDriver):
    @hookimpl
    def hv_cancel_migration(self, name: str, deadline: Deadline) -> MigrationStatus:
        found = super().hv_cancel_migration(name, deadline)
        with self._world.store.locked():
            self._world.pause(name)
        return found


@breaks("MI-05")
class ResumesWhatHasJustArrived(ResumesWhatHasLeft):
    pass


@breaks("MI-05")
class LooksStoppedWhileItWaits(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        target = super().hv_accept_instance(info, address, policy, deadline)
        process = self._world.process(info.instance)
        if process is not None:
            self._world.store.write(process_key(info.instance), attrs.evolve(process, state=InstanceState.PAUSED))
        return target


@breaks("MI-07")
class BeginsASecondTime(FakeDriver):
    @hookimpl
    def hv_migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        try:
            return super().hv_migrate_instance(name, target, policy, deadline)
        except WrongState:
            return super().hv_get_migration_status(name, deadline)


@breaks("MI-08")
class ForgetsHowLongItPaused(FakeDriver):
    @hookimpl
    def hv_get_migration_status(self, name: str, deadline: Deadline) -> MigrationStatus:
        return attrs.evolve(super().hv_get_migration_status(name, deadline), downtime=None)


@breaks("MI-09")
class BelievesInTheSuccess(FakeDriver):
    @hookimpl
    def hv_finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_finalize_migration_source(name, success, deadline)
        except WrongState:
            with self._world.store.locked():
                self._world.quit(name)
            return Transition(name=name, before=None, after=None, changed=True)


@breaks("MI-10")
class WhateverArrivesRuns(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        done = super().hv_finalize_migration_dst(info, success, deadline)
        process = self._world.process(info.instance)
        if process is not None and process.cause is Cause.HOST_PAUSE:
            runs(self, info.instance)
        return done


@breaks("MI-11")
class KeepsWhatHasLeft(FakeDriver):
    @hookimpl
    def hv_finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        if success:
            return Transition(name=name, before=None, after=None, changed=True)
        return super().hv_finalize_migration_source(name, success, deadline)


@breaks("MI-12")
class NeverWaits(FakeDriver):
    @hookimpl
    def hv_continue_migration(self, name: str, switch_over: bool, wait: float, deadline: Deadline) -> MigrationStatus:
        return super().hv_continue_migration(name, True, wait, deadline)


@breaks("MI-13")
class LetsItWaitForItsMemory(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        process = self._world.process(info.instance)
        if success and process is not None and self._world.rest_of(process):
            paused = InstanceState.PAUSED
            return Transition(name=info.instance, before=paused, after=paused, changed=False)
        return super().hv_finalize_migration_dst(info, success, deadline)


@breaks("MI-13")
class RefusesToFinishWhatRuns(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        process = self._world.process(info.instance)
        if success and process is not None and process.state is InstanceState.RUNNING:
            raise WrongState("it runs already")
        return super().hv_finalize_migration_dst(info, success, deadline)


@breaks("MI-14")
class CopiesOverWhatIsThere(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        over = attrs.evolve(policy, overwrite_disks=True)
        return super().hv_accept_instance(info, address, over, deadline)


@breaks("MI-14")
class TakesTheImageOfTheSourceForAnother(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        images = [{**image, "identity": ""} for image in info.record["images"]]
        other = attrs.evolve(info, record={**info.record, "images": images})
        return super().hv_accept_instance(other, address, policy, deadline)


@breaks("MI-15")
class CopiesADiskOnceAndForAll(FakeDriver):
    _held: ClassVar[dict[str, tuple[int, dict[int, bytes]]]] = {}

    @hookimpl
    def hv_migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        process = self._world.process(name)
        for backend in () if process is None else process.backends:
            self._held[backend.ident] = read_disk(opened_path(backend.source, backend.identity), backend.format)
        return super().hv_migrate_instance(name, target, policy, deadline)

    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        done = super().hv_finalize_migration_dst(info, success, deadline)
        process = self._world.process(info.instance)
        for backend in () if process is None else process.backends:
            replace_disk(backend.source, backend.format, *self._held[backend.ident])
        return done


@breaks("MI-15")
class ArrivesWithEmptyDisks(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        done = super().hv_finalize_migration_dst(info, success, deadline)
        process = self._world.process(info.instance)
        for device in () if process is None else process.attached:
            self._world.guest_writes(info.instance, device.ident, 0, bytes(device.size))
        return done


@breaks("MI-15")
class LetsTheSourceWriteForEver(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        before = self._world.process(info.instance)
        done = super().hv_finalize_migration_dst(info, success, deadline)
        process = self._world.process(info.instance)
        if process is not None and before is not None:
            self._world.store.write(process_key(info.instance), attrs.evolve(process, takes=before.takes))
        return done


@breaks("MI-17")
class CopiesTheEncryptedWhereItCanBeRead(FakeDriver):
    @hookimpl
    def hv_accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        closed = attrs.evolve(policy, tls=policy.tls or MigrationTls())
        return super().hv_accept_instance(info, address, closed, deadline)


@breaks("MI-17")
class StoresTheCopyAsItIs(FakeDriver):
    def kept(self, ident: str, key: str) -> str:
        """What the image of a disk is encrypted with in the end."""
        return ""

    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        done = super().hv_finalize_migration_dst(info, success, deadline)
        process = self._world.process(info.instance)
        for backend in () if process is None else process.backends:
            content = read_disk(backend.source, backend.format, backend.key)
            replace_disk(backend.source, backend.format, *content, self.kept(backend.ident, backend.key))
        return done


@breaks("MI-17")
class EncryptsTheCopyWithTheSecretOfTheSource(StoresTheCopyAsItIs):
    _held: ClassVar[dict[str, str]] = {}

    @hookimpl
    def hv_migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        process = self._world.process(name)
        self._held.update({each.ident: each.key for each in (() if process is None else process.backends)})
        return super().hv_migrate_instance(name, target, policy, deadline)

    def kept(self, ident: str, key: str) -> str:
        return self._held[ident]


@breaks("MI-16")
class KeepsTheImagesOfWhatFailed(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        record = self._world.store.read(record_key(info.instance), RuntimeRecord)
        done = super().hv_finalize_migration_dst(info, success, deadline)
        for image in () if record is None or success else record.images:
            with open(image.path, "wb") as file:
                file.write(b"left")
        return done


@breaks("MI-16")
class EmptyImagesThatWereThereGoToo(FakeDriver):
    @hookimpl
    def hv_finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        record = self._world.store.read(record_key(info.instance), RuntimeRecord)
        done = super().hv_finalize_migration_dst(info, success, deadline)
        for image in () if record is None or success else record.images:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(image.path)
        return done


@breaks("PU-07")
class AskingCancels(FakeDriver):
    @hookimpl
    def hv_get_migration_status(self, name: str, deadline: Deadline) -> MigrationStatus:
        process = self._world.process(name)
        if process is not None and process.sending is not None and not process.sending.phase.is_final:
            failed = at(process.sending, MigrationPhase.FAILED, self._world.clock())
            self._world.store.write(process_key(name), attrs.evolve(process, sending=failed))
        try:
            return super().hv_get_migration_status(name, deadline)
        except HypervisorError:
            return MigrationStatus(phase=MigrationPhase.NONE)
