"""Faulty drivers, each a few lines on top of the fake one, each readable alone: what it does wrong is its name.

This file has those whose life cycle is wrong; the other modules beside it have the rest.
"""

from __future__ import annotations

from typing import Any

import attrs
from breaking import breaks

from hvcore import (
    AlreadyRunning,
    Deadline,
    FindingSet,
    HypervisorError,
    Instance,
    InstanceNotFound,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    RecoveredInstance,
    Recovery,
    Transition,
    hookimpl,
)
from hvcore_fake import FakeDriver
from hvcore_fake.account import directory_key, ending_key, look, record_key
from hvcore_fake.record import RuntimeRecord
from hvcore_fake.transaction import journal_key


def unchanged(name: str, state: InstanceState | None) -> Transition:
    return Transition(name=name, before=state, after=state, changed=False)


@breaks("LC-01")
class StartDoesNothing(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        return Transition(name=instance.name, before=None, after=InstanceState.RUNNING, changed=True)


@breaks("LC-02")
class FailedStartLeavesItsDirectory(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_start_instance(instance, paused, deadline)
        except HypervisorError:
            self._world.store.make(directory_key(instance.name))
            raise


@breaks("LC-03")
class SecondStartIsNoError(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_start_instance(instance, paused, deadline)
        except AlreadyRunning:
            return unchanged(instance.name, InstanceState.RUNNING)


@breaks("LC-04")
class StartIgnoresPaused(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        return super().hv_start_instance(instance, False, deadline)


@breaks("LC-06")
class StartRefusesLeftovers(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        if self._world.store.exists(record_key(instance.name)):
            raise AlreadyRunning("there is a record of it")
        return super().hv_start_instance(instance, paused, deadline)


@breaks("LC-07")
class ForcedStopLeavesTheProcess(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        if force:
            return Transition(name=name, before=InstanceState.RUNNING, after=InstanceState.STOPPED, changed=True)
        return super().hv_stop_instance(name, force, grace, retry, escalate, deadline)


@breaks("LC-08")
class StopOfNothingIsAnError(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        if look(self._world, name) is None:
            raise InstanceNotFound("there is no account of it")
        return super().hv_stop_instance(name, force, grace, retry, escalate, deadline)


@breaks("LC-08")
class StopOfTheDeadSaysItChangedSomething(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return attrs.evolve(super().hv_stop_instance(name, force, grace, retry, escalate, deadline), changed=True)


@breaks("LC-09")
class StopNeedsTheRecord(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        self._world.store.read(record_key(name), RuntimeRecord)
        return super().hv_stop_instance(name, force, grace, retry, escalate, deadline)


@breaks("LC-10")
class StopNeverAsks(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return super().hv_stop_instance(name, True, grace, retry, escalate, deadline)


@breaks("LC-11")
class ForcedStopAsksFirst(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return super().hv_stop_instance(name, False, 60.0, retry, True, deadline)


@breaks("LC-12")
class StopAlwaysEscalates(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return super().hv_stop_instance(name, force, grace, retry, True, deadline)


@breaks("LC-15")
class StopOfTheDeafBeginsThem(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        if not force and self.hv_get_instance_info(name, deadline).state is InstanceState.PRELAUNCH:
            self.hv_resume_instance(name, deadline)
        return super().hv_stop_instance(name, force, grace, retry, escalate, deadline)


@breaks("LC-13")
class StopNeverEscalates(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return super().hv_stop_instance(name, force, grace, retry, False, deadline)


@breaks("LC-14")
class StopIgnoresRetry(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return super().hv_stop_instance(name, force, grace, False, escalate, deadline)


@breaks("LC-16")
class ColdRestartIsAReset(FakeDriver):
    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        return super().hv_reboot_instance(name, instance, "reset", grace, deadline)


@breaks("LC-17")
class ResetIsAColdRestart(FakeDriver):
    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        return super().hv_reboot_instance(name, instance, "hard", grace, deadline)


@breaks("LC-18")
class SoftRestartUsesForce(FakeDriver):
    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        return super().hv_reboot_instance(name, instance, mode.replace("soft", "hard"), grace, deadline)


@breaks("LC-19")
class RestartIgnoresTheNewDefinition(FakeDriver):
    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        return super().hv_reboot_instance(name, None, mode, grace, deadline)


@breaks("LC-20")
class RestartStopsBeforeItLooks(FakeDriver):
    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        if instance is None or mode == "reset":
            return super().hv_reboot_instance(name, instance, mode, grace, deadline)
        self.hv_stop_instance(name, True, grace, False, True, deadline)
        return self.hv_start_instance(instance, False, deadline)


@breaks("LC-21")
class PauseOfNothingIsNoError(FakeDriver):
    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        try:
            return super().hv_pause_instance(name, deadline)
        except NotRunning:
            return unchanged(name, None)


@breaks("LC-22")
class PauseDoesNothing(FakeDriver):
    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        return Transition(name=name, before=InstanceState.RUNNING, after=InstanceState.PAUSED, changed=True)


@breaks("LC-23")
class ResumeIsAReset(FakeDriver):
    @hookimpl
    def hv_resume_instance(self, name: str, deadline: Deadline) -> Transition:
        super().hv_resume_instance(name, deadline)
        return self.hv_reboot_instance(name, None, "hard", 0.0, deadline)


@breaks("LC-27")
class CleanupForgetsNothing(FakeDriver):
    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        return Transition(name=name, before=InstanceState.STOPPED, after=None, changed=True)


@breaks("LC-27")
class CleanupEmptiesDisks(FakeDriver):
    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        account = look(self._world, name)
        for disk in account.definition.disks if account and account.definition else ():
            with open(disk.path, "r+b") as file:
                file.write(b"wiped")
        return super().hv_cleanup_instance(name, deadline)


@breaks("LC-28")
class CleanupStopsTheLiving(FakeDriver):
    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        self.hv_stop_instance(name, True, 0.0, False, True, deadline)
        return super().hv_cleanup_instance(name, deadline)


@breaks("LC-29")
class RecoverDropsTheJournal(FakeDriver):
    @hookimpl
    def hv_recover(self, name: str, deadline: Deadline) -> Recovery:
        self._world.store.remove(journal_key(name))
        return Recovery()


@breaks("LC-30")
class RecoverAlwaysFindsSomething(FakeDriver):
    @hookimpl
    def hv_recover(self, name: str, deadline: Deadline) -> Recovery:
        super().hv_recover(name, deadline)
        return Recovery(instances=(RecoveredInstance(name=name, operation="start_instance", outcome="undone"),))


@breaks("ER-01")
class ConsoleRaisesKeyError(FakeDriver):
    @hookimpl
    def hv_get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Any:
        known: dict[str, str] = {}
        return known[name]


@breaks("ER-03")
class RefusedStartLeavesItsDirectory(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        if not self._host_findings(instance).ok:
            self._world.store.make(directory_key(instance.name))
        return super().hv_start_instance(instance, paused, deadline)


@breaks("ER-04")
class FailedStartForgetsTheLastLife(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        self._world.store.remove(ending_key(instance.name))
        return super().hv_start_instance(instance, paused, deadline)


@breaks("ER-05")
class UnansweredPauseIsCalledDone(FakeDriver):
    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        try:
            return super().hv_pause_instance(name, deadline)
        except OutcomeUnknown:
            return Transition(name=name, before=InstanceState.RUNNING, after=InstanceState.PAUSED, changed=True)


@breaks("ER-09")
class StartTakesItsTime(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        return super().hv_start_instance(instance, paused, Deadline.after(None))


@breaks("PA-07")
class StartFindsOneThing(FakeDriver):
    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        try:
            return super().hv_start_instance(instance, paused, deadline)
        except InvalidParameters as error:
            raise InvalidParameters(error.message, FindingSet(error.findings[:1])) from error


@breaks("ST-08")
class StopForgetsWhy(FakeDriver):
    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        transition = super().hv_stop_instance(name, force, grace, retry, escalate, deadline)
        self.hv_cleanup_instance(name, deadline)
        return transition


@breaks("ST-11")
class PauseAlwaysSaysItChangedSomething(FakeDriver):
    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        return attrs.evolve(super().hv_pause_instance(name, deadline), changed=True)


@breaks("LD-09")
class ClosingKillsInstances(FakeDriver):
    def close(self) -> None:
        for process in self._world.processes():
            self._world.kill(process.name)
