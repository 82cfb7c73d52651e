"""Faulty drivers that change running instances wrongly, or tell what nobody may know."""

from __future__ import annotations

import logging
import os

import attrs
from breaking import breaks

from hvcore import (
    BalloonResult,
    Cause,
    Console,
    Deadline,
    Device,
    Disk,
    DriverFault,
    HotplugResult,
    HypervisorError,
    HypervisorRefused,
    Instance,
    InstanceInfo,
    InstanceState,
    InstanceStats,
    InvalidParameters,
    LiveParameters,
    OperationFailed,
    PasswordResult,
    Recovery,
    ResizeResult,
    Snapshot,
    StateReason,
    Transition,
    hookimpl,
    unfinished,
)
from hvcore_fake import FakeDriver
from hvcore_fake.account import record_key
from hvcore_fake.record import Backend, RuntimeRecord
from hvcore_fake.snapshots import OnProgress
from hvcore_fake.transaction import journal_key
from hvcore_fake.world import process_key


@breaks("DE-01")
class FailedAdditionLeavesItsImageOpen(FakeDriver):
    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        try:
            return super().hv_hot_add_device(name, device, deadline)
        except HypervisorError:
            if isinstance(device, Disk):
                self._world.open_backend(name, Backend(ident="forgotten", source=device.path or ""))
            raise


@breaks("DE-01")
class AddsNothing(FakeDriver):
    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        assert isinstance(device, Disk)
        return HotplugResult(device=device.uuid or "", done=True)


@breaks("LC-29")
class RecoversNoDevices(FakeDriver):
    @hookimpl
    def hv_recover(self, name: str, deadline: Deadline) -> Recovery:
        entries = unfinished(self._world.store.path(journal_key(name)))
        if entries and entries[0].get("begin") == "hot_add_device":
            self._world.store.remove(journal_key(name))
            return Recovery()
        return super().hv_recover(name, deadline)


@breaks("DE-02")
class TakesTheImageFromUnderTheGuest(FakeDriver):
    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        result = super().hv_hot_del_device(name, device, force, deadline)
        self._world.close_backend(name, device)
        return result


@breaks("DE-03")
class CallsARemovalDone(FakeDriver):
    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        return attrs.evolve(super().hv_hot_del_device(name, device, force, deadline), done=True)


@breaks("DE-03")
class ForgetsWhatItAskedFor(FakeDriver):
    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        result = super().hv_hot_del_device(name, device, force, deadline)
        record = self._world.store.read(record_key(name), RuntimeRecord)
        assert record is not None
        self._world.store.write(record_key(name), attrs.evolve(record, changes=()))
        return result


@breaks("DE-04")
class ShrinksDisks(FakeDriver):
    @hookimpl
    def hv_resize_disk(self, name: str, device: str, size: int, deadline: Deadline) -> ResizeResult:
        try:
            return super().hv_resize_disk(name, device, size, deadline)
        except InvalidParameters:
            self._world.resize(name, device, size)
            return ResizeResult(device=device, before=size, after=size)


@breaks("DE-07")
class ShrinksWhenOverlaysGo(FakeDriver):
    """A disk has again the size of the image that its overlays were upon."""

    @hookimpl
    def hv_delete_snapshot(self, name: str, snapshot: str, on_progress: OnProgress, deadline: Deadline) -> Snapshot:
        gone = super().hv_delete_snapshot(name, snapshot, on_progress, deadline)
        for disk in gone.disks:
            self._world.resize(name, disk.uuid, os.path.getsize(disk.path))
        return gone


@breaks("DE-05")
class TellsWhatWasAskedFor(FakeDriver):
    @hookimpl
    def hv_balloon_instance_memory(self, name: str, memory: int, deadline: Deadline) -> BalloonResult:
        return attrs.evolve(super().hv_balloon_instance_memory(name, memory, deadline), reached=memory)


@breaks("DE-06")
class ChangesOneParameterAfterTheOther(FakeDriver):
    @hookimpl
    def hv_hot_mod_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        assert isinstance(device, LiveParameters)
        for key, value in device.values.items():
            done = super().hv_hot_mod_device(name, LiveParameters(values={key: value}), deadline)
        return done


@breaks("CO-03")
class LogsThePassword(FakeDriver):
    @hookimpl
    def hv_set_console_password(
        self, name: str, kind: str, password: str, expires: float | None, deadline: Deadline
    ) -> PasswordResult:
        logging.getLogger("fake").debug("password of %s: %s", name, password)
        return super().hv_set_console_password(name, kind, password, expires, deadline)


@breaks("CO-03")
class WritesThePasswordDown(FakeDriver):
    @hookimpl
    def hv_set_console_password(
        self, name: str, kind: str, password: str, expires: float | None, deadline: Deadline
    ) -> PasswordResult:
        with self._world.store.locked():
            self._world.events.append(name, "PASSWORD", password=password)
        return super().hv_set_console_password(name, kind, password, expires, deadline)


@breaks("CO-04")
class NobodyHasToGo(FakeDriver):
    @hookimpl
    def hv_disconnect_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        return super().hv_get_instance_console(name, kind, deadline)


@breaks("CO-04")
class DisconnectingStopsTheInstance(FakeDriver):
    @hookimpl
    def hv_disconnect_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        console = super().hv_disconnect_console(name, kind, deadline)
        with self._world.store.locked():
            self._world.pause(name)
        return console


@breaks("PA-12")
class WritesTheSecretDown(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        transition = super().hv_start_instance(instance, paused, deadline)
        record = self._world.store.read(record_key(instance.name), RuntimeRecord)
        assert record is not None
        self._world.store.write(record_key(instance.name), attrs.evolve(record, instance=instance))
        return transition


@breaks("ER-06")
class SaysItInItsOwnWords(FakeDriver):
    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        try:
            return super().hv_hot_add_device(name, device, deadline)
        except HypervisorRefused as error:
            raise HypervisorRefused(error.request, error.error_class, "it did not want to") from error


@breaks("ER-06")
class DropsTheRefusal(FakeDriver):
    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        try:
            return super().hv_hot_add_device(name, device, deadline)
        except HypervisorRefused as error:
            raise OperationFailed("the disk could not be added") from error


@breaks("ID-05")
class ShowsAnotherIdentity(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        transition = super().hv_start_instance(instance, paused, deadline)
        process = self._world.process(instance.name)
        assert process is not None
        shown = ("00000000-0000-0000-0000-000000000000", *process.shown[1:])
        self._world.store.write(process_key(instance.name), attrs.evolve(process, shown=shown))
        return transition


@breaks("ID-06")
class KnowsProcessesByTheirPid(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        info = super().hv_get_instance_info(name, deadline)
        record = self._world.store.read(record_key(name), RuntimeRecord)
        if record is not None and record.pid in {process.pid for process in self._world.processes()}:
            running = StateReason(cause=Cause.STARTED)
            return attrs.evolve(info, state=InstanceState.RUNNING, reason=running, pid=record.pid)
        return info


@breaks("ID-06")
class StopsWhoeverHasThePid(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        record = self._world.store.read(record_key(name), RuntimeRecord)
        for process in self._world.processes():
            if record is not None and process.pid == record.pid:
                self._world.store.remove(process_key(process.name))
        return super().hv_stop_instance(name, force, grace, retry, escalate, deadline)


@breaks("ST-09")
class RestartsOfTheHostAreCrashes(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        info = super().hv_get_instance_info(name, deadline)
        if info.reason.cause is Cause.HOST_RESTARTED:
            return attrs.evolve(info, reason=attrs.evolve(info.reason, cause=Cause.DIED))
        return info


@breaks("ST-10")
class ShuttingDownIsRunning(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        info = super().hv_get_instance_info(name, deadline)
        if info.state is InstanceState.SHUTTING_DOWN:
            return attrs.evolve(info, state=InstanceState.RUNNING)
        return info


@breaks("QU-06")
class CountersBeginAnew(FakeDriver):
    _asked = 0

    @hookimpl
    def hv_get_instance_stats(self, name: str, deadline: Deadline) -> InstanceStats:
        self._asked += 1
        stats = super().hv_get_instance_stats(name, deadline)
        return attrs.evolve(stats, vcpu_times=tuple(1.0 / self._asked for _ in stats.vcpu_times))


@breaks("LC-05")
class DropsWhatTheProcessSaid(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_start_instance(instance, paused, deadline)
        except OperationFailed as error:
            raise type(error)("it did not start") from error


@breaks("ER-01")
class FailsInItsOwnWay(FakeDriver):
    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        try:
            return super().hv_hot_del_device(name, device, force, deadline)
        except HypervisorError as error:
            raise DriverFault("this is a defect") from error
