"""Errors: of one family, stamped, and true about what was left."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.driver import Driver
from hvcore.errors import (
    DeadlineExceeded,
    DriverFault,
    HypervisorError,
    HypervisorRefused,
    OperationFailed,
    OutcomeUnknown,
    Refused,
    UnsupportedOperation,
)
from hvcore.hookspecs.table import OPERATION, OPERATIONS
from hvcore.model.instance import Disk
from hvcore.model.migration import MigrationInfo, MigrationTarget
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.state import InstanceState

_NAMES = ("", ".", "..", "a/b", "web\0", "x" * 300, "\udcff", "-rf", "a b", "ünder", " web", "web\n")

_ABOUT_ONE = frozenset(
    name for name in OPERATION if {"instance", "info"} & set(inspect.signature(getattr(Driver, name)).parameters)
)
"""The operations that are about one instance."""


def _calls(subject: Subject, name: str) -> dict[str, Callable[[], object]]:
    """One call of every operation, about an instance of this name."""
    driver = subject.driver
    disk = Disk(path="/nowhere/disk.raw", format="raw")
    policy, target = MigrationPolicy(), MigrationTarget(address="127.0.0.1", port=1)
    moving = MigrationInfo(schema=1, driver=driver.name, instance=name, record={})
    definition = subject.definition(name) if name.isalnum() else subject.definition("web")
    path = f"{subject.directory}/saved"
    return {
        "describe_driver": driver.describe_driver,
        "parameters": driver.parameters,
        "check_parameter_syntax": lambda: driver.check_parameter_syntax(definition),
        "validate_parameters": lambda: driver.validate_parameters(definition),
        "assess_parameters": lambda: driver.assess_parameters(definition),
        "plan_start": lambda: driver.plan_start(definition),
        "stop_instance": lambda: driver.stop_instance(name, force=True),
        "reboot_instance": lambda: driver.reboot_instance(name),
        "pause_instance": lambda: driver.pause_instance(name),
        "resume_instance": lambda: driver.resume_instance(name),
        "save_instance": lambda: driver.save_instance(name, path),
        "restore_instance": lambda: driver.restore_instance(path),
        "cleanup_instance": lambda: driver.cleanup_instance(name),
        "recover": lambda: driver.recover(name),
        "list_instances": driver.list_instances,
        "get_instance_info": lambda: driver.get_instance_info(name),
        "get_all_instances_info": driver.get_all_instances_info,
        "get_instance_stats": lambda: driver.get_instance_stats(name),
        "verify_instance": lambda: driver.verify_instance(name),
        "list_interrupted": driver.list_interrupted,
        "hotplug_supported": lambda: driver.hotplug_supported(name),
        "verify_hotplug_support": lambda: driver.verify_hotplug_support(name, "add", disk),
        "hot_add_device": lambda: driver.hot_add_device(name, disk),
        "hot_del_device": lambda: driver.hot_del_device(name, "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"),
        "hot_mod_device": lambda: driver.hot_mod_device(name, disk),
        "resize_disk": lambda: driver.resize_disk(name, "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11", 1 << 30),
        "backup_instance": lambda: driver.backup_instance(name, subject.directory),
        "list_checkpoints": lambda: driver.list_checkpoints(name),
        "delete_checkpoint": lambda: driver.delete_checkpoint(name, "monday"),
        "balloon_instance_memory": lambda: driver.balloon_instance_memory(name, 1 << 26),
        "get_instance_console": lambda: driver.get_instance_console(name),
        "disconnect_console": lambda: driver.disconnect_console(name),
        "set_console_password": lambda: driver.set_console_password(name, "vnc", "conformance"),
        "screenshot": lambda: driver.screenshot(name),
        "versions_safe_for_migration": lambda: driver.versions_safe_for_migration("1.0", "1.0"),
        "migration_info": lambda: driver.migration_info(name),
        "accept_instance": lambda: driver.accept_instance(moving, "127.0.0.1", policy),
        "migrate_instance": lambda: driver.migrate_instance(name, target, policy),
        "get_migration_status": lambda: driver.get_migration_status(name),
        "continue_migration": lambda: driver.continue_migration(name),
        "cancel_migration": lambda: driver.cancel_migration(name),
        "finalize_migration_source": lambda: driver.finalize_migration_source(name, False),
        "finalize_migration_dst": lambda: driver.finalize_migration_dst(moving, False),
        "get_node_info": driver.get_node_info,
        "verify": driver.verify,
        "get_ancillary_files": driver.get_ancillary_files,
        "events": driver.events,
    }


@check("ER-01")
def only_errors_of_hvcore_leave_an_operation(subject: Subject) -> None:
    """Whatever a name is, and whether or not there is such an instance, no foreign exception comes out."""
    for name in (*_NAMES, subject.name()):
        for operation, call in _calls(subject, name).items():
            try:
                call()
            except DriverFault as error:
                expect(False, f"{operation} of {name!r} makes the driver fail: {error}")
            except HypervisorError:
                continue
            except Exception as error:
                expect(False, f"{operation} of {name!r} raises {type(error).__name__}: {error}")


@check("ER-02")
def errors_say_where_they_come_from(subject: Subject) -> None:
    """Every error carries the names of driver, operation and instance."""
    name = subject.name()
    for operation, call in _calls(subject, name).items():
        try:
            call()
        except HypervisorError as error:
            where = (error.driver, error.operation)
            expect_equal(where, (subject.driver.name, operation), f"driver and operation of an error of {operation}")
            if operation in _ABOUT_ONE:
                expect_equal(error.instance, name, f"the instance of an error of {operation}")


@check("ER-03")
def what_is_refused_leaves_no_trace(subject: Subject) -> None:
    """A refused start, pause, restart and cleanup change nothing on the host."""
    running, name = subject.start(), subject.name()
    missing = subject.definition(name, disks=[subject.missing_disk()])
    before, pid = subject.files(), subject.info(running).pid
    calls: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a start from a disk that is not there", lambda: subject.driver.start_instance(missing)),
        ("a second start", lambda: subject.driver.start_instance(subject.definition(running))),
        ("the cleanup of a live instance", lambda: subject.driver.cleanup_instance(running)),
    )
    for what, call in calls:
        expect_error(Refused, call, what)
        changed = {path for path, content in subject.files().items() if before.get(path) != content}
        expect_equal(changed | (set(before) - set(subject.files())), set(), f"the files that {what} changed")
        expect_equal(subject.files_about(name), (), f"what {what} left")
        expect_equal(subject.info(running).pid, pid, f"the process after {what}")


@check("ER-04")
def what_failed_was_undone(subject: Subject) -> None:
    """A start that failed leaves the account of the life before it."""
    name = subject.start()
    subject.driver.stop_instance(name, force=True)
    before = subject.info(name)
    expect_error(
        HypervisorError,
        lambda: subject.driver.start_instance(subject.definition(name), timeout=0.0),
        "a start without any time",
    )
    expect(not subject.lives(name), "a process of the failed start lives")
    after = subject.info(name)
    expect_equal((after.state, after.reason), (before.state, before.reason), "the account after the failed start")


@check("ER-05", capabilities=[Capability.PAUSE], needs=["hang", "answer_again"])
def what_was_not_answered_is_not_called_done(subject: Subject) -> None:
    """A pause that is not answered has an unknown outcome, or was undone and did not happen."""
    name = subject.start()
    subject.provoke("hang", name)
    error = expect_error(
        (OutcomeUnknown, OperationFailed),
        lambda: subject.driver.pause_instance(name, timeout=0.5),
        "the pause of an instance that hangs",
    )
    subject.provoke("answer_again", name)
    if isinstance(error, OperationFailed):
        expect_equal(subject.state(name), InstanceState.RUNNING, "the state after a pause that is said to be undone")


@check("ER-06", capabilities=[Capability.HOTPLUG], needs=["unreadable"])
def the_words_of_a_refusal_are_in_the_error(subject: Subject) -> None:
    """What the hypervisor itself says of a disk that it does not open is in the error, whole."""
    make, name = subject.profile.unreadable, subject.start()
    if make is None:
        return
    disk, words = make(subject.directory)
    error = expect_error(
        HypervisorRefused, lambda: subject.driver.hot_add_device(name, disk), "a disk that the hypervisor refuses"
    )
    expect(words in str(error), f"the hypervisor's words {words!r} are not in the error: {error}")
    expect(words in error.text, f"the text of the error is {error.text!r}, without the words {words!r}")


@check("ER-08")
def what_is_not_claimed_is_refused_without_a_trace(subject: Subject) -> None:
    """An operation whose capability is not claimed is refused as unsupported, and changes nothing."""
    name = subject.start()
    calls = _calls(subject, name)
    before, pid = subject.files(), subject.info(name).pid
    for operation in OPERATIONS:
        if operation.capability is None or subject.driver.description.claim(operation.capability).offered:
            continue
        if operation.name in calls:
            expect_error(UnsupportedOperation, calls[operation.name], operation.name)
            expect_equal(subject.files(), before, f"the driver's files after {operation.name}")
            expect_equal(subject.info(name).pid, pid, f"the process after {operation.name}")


@check("ER-08")
def parts_of_operations_that_are_not_claimed_are_refused(subject: Subject) -> None:
    """A paused start, a stop without force, a reset, a compressed backup and a move with disks, where not claimed."""
    name, definition = subject.start(), subject.definition()
    policy = MigrationPolicy(tls=None, copy_disks=("all",))
    target = MigrationTarget(address="192.0.2.1", port=1)
    calls: tuple[tuple[Capability, Callable[[], object]], ...] = (
        (Capability.START_PAUSED, lambda: subject.driver.start_instance(definition, paused=True)),
        (Capability.GRACEFUL_STOP, lambda: subject.driver.stop_instance(name, escalate=False)),
        (Capability.RESET, lambda: subject.driver.reboot_instance(name, mode="reset")),
        (
            Capability.BACKUP_COMPRESSION,
            lambda: subject.driver.backup_instance(name, subject.directory, compress=True),
        ),
        (Capability.MIGRATION_DISKS, lambda: subject.driver.migrate_instance(name, target, policy)),
    )
    for capability, call in calls:
        if not subject.driver.description.claim(capability).offered:
            expect_error(UnsupportedOperation, call, capability.value)
    expect(subject.lives(name), "its process is gone after what was refused")


@check("ER-09")
def an_operation_without_time_fails(subject: Subject) -> None:
    """A start that has no time at all is not done."""
    definition = subject.definition()
    expect_error(
        DeadlineExceeded, lambda: subject.driver.start_instance(definition, timeout=0.0), "a start without any time"
    )
    expect(not subject.lives(definition.name), "it lives although there was no time to start it")
