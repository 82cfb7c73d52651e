"""A host application is killed in the middle of an operation; whoever comes next puts things in order."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal
from hvcore.conformance.interruption import count_cuts, kill_at, spread
from hvcore.conformance.subject import Subject
from hvcore.errors import PolicyDenied
from hvcore.hookspecs.markers import hookimpl
from hvcore.model.state import InstanceState
from hvcore.operation import OperationCall

_DISK = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"

_SNAPSHOTS = (Capability.RECOVER, Capability.LIST_INTERRUPTED, Capability.SNAPSHOT)

_MOST = 6
"""Cuts that are tried of one operation, spread over all."""


def _cut_off(
    subject: Subject,
    name: str,
    prepare: Callable[[], object],
    operation: Callable[[], object],
    allowed: frozenset[InstanceState | None],
) -> None:
    """Kill a host application in an operation at some of its cuts, recover each time, and look."""
    prepare()
    for cut in spread(count_cuts(operation), _MOST):
        prepare()
        kill_at(operation, cut)
        subject.load().recover(name)
        state, lives = subject.state(name), subject.lives(name)
        expect(state in allowed, f"killed at action {cut}, the state is {state} after recover")
        expect_equal(lives, state is not None and state.is_alive, f"killed at action {cut}: a process lives")


def _stopped(subject: Subject, name: str) -> None:
    if subject.lives(name):
        subject.driver.stop_instance(name, force=True)


def _forgotten(subject: Subject, name: str) -> None:
    _stopped(subject, name)
    subject.driver.cleanup_instance(name)


def _running(subject: Subject, name: str) -> None:
    _stopped(subject, name)
    subject.driver.start_instance(subject.definition(name))


@check("LC-29", capabilities=[Capability.RECOVER])
def a_start_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a start that was cut off the instance is not there, or it runs."""
    name = subject.name()
    _cut_off(
        subject,
        name,
        lambda: _forgotten(subject, name),
        lambda: subject.driver.start_instance(subject.definition(name)),
        frozenset({None, InstanceState.RUNNING}),
    )


@check("LC-29", capabilities=[Capability.RECOVER])
def a_stop_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a stop that was cut off the instance runs, or it is stopped."""
    name = subject.name()
    _cut_off(
        subject,
        name,
        lambda: _running(subject, name),
        lambda: subject.driver.stop_instance(name, force=True),
        frozenset({InstanceState.RUNNING, InstanceState.STOPPED}),
    )


@check("LC-29", capabilities=[Capability.RECOVER, Capability.PAUSE])
def a_pause_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a pause that was cut off the instance runs, or it is paused."""
    name = subject.name()
    _cut_off(
        subject,
        name,
        lambda: _running(subject, name),
        lambda: subject.driver.pause_instance(name),
        frozenset({InstanceState.RUNNING, InstanceState.PAUSED}),
    )


@check("LC-29", capabilities=[Capability.RECOVER, Capability.REBOOT])
def a_restart_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a cold restart that was cut off the instance runs, in the old life or the new one."""
    name = subject.name()
    _cut_off(
        subject,
        name,
        lambda: _running(subject, name),
        lambda: subject.driver.reboot_instance(name, mode="hard"),
        frozenset({InstanceState.RUNNING}),
    )


@check("LC-29", capabilities=[Capability.RECOVER, Capability.SAVE_RESTORE])
def a_save_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a save that was cut off the instance runs and there is no file, or it is saved and there is one."""
    name, path = subject.name(), os.path.join(subject.directory, "saved")

    def prepare() -> None:
        expect_equal(os.path.exists(path), subject.state(name) is InstanceState.SAVED, "the file is there")
        if os.path.exists(path):
            os.unlink(path)
        _running(subject, name)

    allowed = frozenset({InstanceState.RUNNING, InstanceState.SAVED})
    _cut_off(subject, name, prepare, lambda: subject.driver.save_instance(name, path), allowed)
    left = [entry for entry in os.listdir(subject.directory) if "saved" in entry or entry.startswith(".")]
    expect_equal(left, ["saved"] if subject.state(name) is InstanceState.SAVED else [], "what is left beside it")


@check("LC-29", capabilities=[Capability.RECOVER, Capability.SAVE_RESTORE])
def a_restore_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After a restore that was cut off the instance runs, or it is saved and can be restored."""
    name, path = subject.name(), os.path.join(subject.directory, "saved")

    def prepare() -> None:
        if subject.state(name) is InstanceState.SAVED:
            subject.driver.restore_instance(path)
        _running(subject, name)
        if os.path.exists(path):
            os.unlink(path)
        subject.driver.save_instance(name, path)

    allowed = frozenset({InstanceState.RUNNING, InstanceState.SAVED})
    _cut_off(subject, name, prepare, lambda: subject.driver.restore_instance(path), allowed)


@check("LC-29", capabilities=[Capability.RECOVER, Capability.HOTPLUG], needs=["holds"])
def an_addition_cut_off_is_undone_or_complete(subject: Subject) -> None:
    """After an addition that was cut off the instance has the disk and it is open, or neither."""
    name, disk, holds = subject.name(), attrs.evolve(subject.raw_disk(), uuid=_DISK), subject.profile.holds

    def add() -> None:
        subject.driver.hot_add_device(name, disk)

    _running(subject, name)
    for cut in spread(count_cuts(add), _MOST):
        _running(subject, name)
        kill_at(add, cut)
        subject.load().recover(name)
        info = subject.info(name)
        expect_equal(info.state, InstanceState.RUNNING, f"killed at action {cut}: the state after recover")
        rows = [(row.uuid, row.state) for row in info.devices]
        expect(rows in ([], [(_DISK, "present")]), f"killed at action {cut}: the devices after recover are {rows}")
        held = holds is not None and holds(subject.driver, name, disk.path or "")
        expect_equal(held, rows != [], f"killed at action {cut}: the disk is open")


@check("LC-30", capabilities=[Capability.RECOVER])
def a_second_recovery_finds_nothing(subject: Subject) -> None:
    """What was put in order stays in order, and so does what always was."""
    untouched = subject.start()
    expect_equal(subject.driver.recover(untouched).instances, (), "what is found of a running instance")
    name = subject.name()
    cuts = count_cuts(lambda: subject.driver.start_instance(subject.definition(name)))
    for cut in spread(cuts, 3):
        _stopped(subject, name)
        subject.driver.cleanup_instance(name)
        kill_at(lambda: subject.driver.start_instance(subject.definition(name)), cut)
        subject.driver.recover(name)
        expect_equal(subject.driver.recover(name).instances, (), f"killed at action {cut}: what is found again")


class _Refusing:
    """An extension that refuses to recover one instance."""

    def __init__(self, name: str) -> None:
        self._name = name

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall):  # type: ignore[no-untyped-def]
        """Refuse."""
        if call.name == "recover" and call.instance == self._name:
            raise PolicyDenied("not this one")
        return (yield)


@check("LC-31", capabilities=[Capability.RECOVER])
def one_that_cannot_be_recovered_does_not_stop_the_others(subject: Subject) -> None:
    """Recovery of all reports the instance it failed on, and goes on."""
    first, second = sorted((subject.start(), subject.start()))
    found = subject.load(_Refusing(first)).recover().instances
    failed = [row.name for row in found if row.outcome == "failed"]
    expect_equal(failed, [first], "what is reported as failed")
    expect_equal(subject.state(second), InstanceState.RUNNING, "the state of the other")


def _cut_while_stopped(subject: Subject, look: Callable[[str, int], None]) -> None:
    """Kill a host application at some of the cuts of a snapshot of a stopped instance, and look each time."""
    definition = subject.definition(disks=(subject.qcow2_disk(),))
    name, driver = definition.name, subject.driver
    driver.start_instance(definition)
    driver.stop_instance(name, force=True)

    def take() -> None:
        driver.create_snapshot(definition, "first")

    for cut in spread(count_cuts(take), _MOST):
        if driver.list_snapshots(name).snapshots:
            driver.delete_snapshot(name, "first")
        kill_at(take, cut)
        look(name, cut)


@check("QU-08", capabilities=_SNAPSHOTS)
def the_interrupted_are_named_though_not_listed(subject: Subject) -> None:
    """Where recovery by name finds something, the name was told before, and is not told after it."""
    running = subject.start()

    def look(name: str, cut: int) -> None:
        other = subject.load()
        expect(name not in {row.name for row in other.list_instances().instances}, "one that is stopped is listed")
        named = other.list_interrupted().names
        expect_equal(named, tuple(sorted(named)), f"killed at action {cut}: the order of the names")
        expect(running not in named, f"killed at action {cut}: one that nothing was done with is named")
        found = other.recover(name).instances
        expect(name in named or not found, f"killed at action {cut}: it is not named, and {found} was left half done")
        expect_equal(other.list_interrupted().names, (), f"killed at action {cut}: the names after it was recovered")

    _cut_while_stopped(subject, look)


@check("LC-32", capabilities=_SNAPSHOTS)
def recovery_of_all_includes_what_is_not_listed(subject: Subject) -> None:
    """After it, recovery by name finds nothing, and what it did is in its result."""

    def look(name: str, cut: int) -> None:
        other = subject.load()
        named = name in other.list_interrupted().names
        found = [row.name for row in other.recover().instances]
        expect(name in found or not named, f"killed at action {cut}: what was done with it is not told")
        expect_equal(other.recover(name).instances, (), f"killed at action {cut}: what is found again")

    _cut_while_stopped(subject, look)
