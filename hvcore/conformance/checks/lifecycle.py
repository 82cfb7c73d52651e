"""Starting, pausing, forgetting."""

from __future__ import annotations

import os

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import AlreadyRunning, HypervisorError, NotRunning, OutcomeUnknown, SpawnFailed
from hvcore.model.state import InstanceState


@check("LC-01")
def a_started_instance_lives_and_runs(subject: Subject) -> None:
    """When a start returns, a process lives and the guest runs."""
    definition = subject.definition()
    transition = subject.driver.start_instance(definition)
    expect(subject.lives(definition.name), "no process of it lives after the start")
    expect_equal(subject.state(definition.name), InstanceState.RUNNING, "the state after the start")
    expect_equal(transition.after, InstanceState.RUNNING, "what the start says it is now")


@check("LC-02")
def a_start_that_fails_leaves_nothing(subject: Subject) -> None:
    """Of a start that is not done in time nothing is left."""
    definition = subject.definition()
    error = expect_error(
        HypervisorError, lambda: subject.driver.start_instance(definition, timeout=0.0), "a start without any time"
    )
    expect(not isinstance(error, OutcomeUnknown), f"the outcome is unknown: {error}")
    _expect_nothing(subject, definition.name)


@check("LC-02", needs=["unstartable"])
def a_start_whose_process_dies_leaves_nothing(subject: Subject) -> None:
    """Of a start whose process ends at once nothing is left."""
    name = subject.name()
    expect_error(HypervisorError, lambda: _start_unstartable(subject, name), "the start")
    _expect_nothing(subject, name)


def _expect_nothing(subject: Subject, name: str) -> None:
    expect(not subject.lives(name), "a process of the failed start lives")
    expect_equal(subject.state(name), None, "the state after the failed start")
    expect_equal(subject.files_about(name), (), "what is left of the failed start")
    names = [row.name for row in subject.driver.list_instances().instances]
    expect(name not in names, "the failed start is listed")


@check("LC-03")
def a_second_start_is_refused(subject: Subject) -> None:
    """An instance that is alive is refused, and stays as it is."""
    name = subject.start()
    before = subject.info(name)
    expect_error(AlreadyRunning, lambda: subject.driver.start_instance(subject.definition(name)), "a second start")
    after = subject.info(name)
    expect_equal((after.state, after.pid), (before.state, before.pid), "state and process after the second start")
    expect(subject.lives(name), "its process is gone after the second start")


@check("LC-04", capabilities=[Capability.START_PAUSED])
def a_paused_start_waits(subject: Subject) -> None:
    """After a paused start the process lives and the guest has not begun."""
    definition = subject.definition()
    transition = subject.driver.start_instance(definition, paused=True)
    expect_equal(transition.after, InstanceState.PRELAUNCH, "what the start says it is now")
    expect_equal(subject.state(definition.name), InstanceState.PRELAUNCH, "the state after a paused start")
    expect(subject.lives(definition.name), "no process of it lives after a paused start")


@check("LC-05", needs=["unstartable"])
def the_words_of_a_process_that_dies_are_in_the_error(subject: Subject) -> None:
    """What the hypervisor process printed before it ended is in the error."""
    error = expect_error(SpawnFailed, lambda: _start_unstartable(subject, subject.name()), "the start")
    expect(error.output.strip(), "the error does not carry what the process printed")


def _start_unstartable(subject: Subject, name: str) -> object:
    make = subject.profile.unstartable
    return make and subject.driver.start_instance(make(name, subject.directory))


@check("LC-06", needs=["kill"])
def a_start_puts_away_what_a_killed_process_left(subject: Subject) -> None:
    """An instance whose process was killed is started again without anything in between."""
    name = subject.start()
    subject.provoke("kill", name)
    subject.driver.start_instance(subject.definition(name))
    expect(subject.lives(name), "no process of it lives after the second start")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the second start")


@check("LC-22", capabilities=[Capability.PAUSE])
def a_pause_stops_the_guest_once(subject: Subject) -> None:
    """A pause stops the guest; a second one changes nothing."""
    name = subject.start()
    expect(subject.driver.pause_instance(name).changed, "the pause says that it changed nothing")
    expect_equal(subject.state(name), InstanceState.PAUSED, "the state after a pause")
    expect(not subject.driver.pause_instance(name).changed, "the second pause says that it changed something")
    expect_equal(subject.state(name), InstanceState.PAUSED, "the state after the second pause")


@check("LC-22", capabilities=[Capability.PAUSE, Capability.START_PAUSED])
def a_pause_before_the_first_instruction_changes_nothing(subject: Subject) -> None:
    """An instance that was started paused is paused already."""
    name = subject.start(paused=True)
    expect(not subject.driver.pause_instance(name).changed, "the pause says that it changed something")
    expect_equal(subject.state(name), InstanceState.PRELAUNCH, "the state after the pause")


@check("LC-23", capabilities=[Capability.PAUSE])
def a_resume_lets_the_guest_run_once(subject: Subject) -> None:
    """A resume lets a paused guest run; a second one changes nothing."""
    name = subject.start()
    pid = subject.info(name).pid
    subject.driver.pause_instance(name)
    expect(subject.driver.resume_instance(name).changed, "the resume says that it changed nothing")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after a resume")
    expect(not subject.driver.resume_instance(name).changed, "the second resume says that it changed something")
    expect_equal(subject.info(name).pid, pid, "its process after a resume")


@check("LC-23", capabilities=[Capability.PAUSE, Capability.START_PAUSED])
def a_resume_begins_what_was_started_paused(subject: Subject) -> None:
    """A resume lets an instance run that was started paused."""
    name = subject.start(paused=True)
    subject.driver.resume_instance(name)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the resume")


@check("LC-21", capabilities=[Capability.PAUSE, Capability.REBOOT])
def what_needs_a_live_instance_is_refused_without_one(subject: Subject) -> None:
    """Pause, resume and reboot refuse an instance that never was, and one that was stopped."""
    stopped = subject.start()
    subject.driver.stop_instance(stopped, force=True)
    for name in (subject.name(), stopped):
        for call in (subject.driver.pause_instance, subject.driver.resume_instance, subject.driver.reboot_instance):
            expect_error(NotRunning, lambda call=call, name=name: call(name), call.__name__)  # type: ignore[misc]
        expect(not subject.lives(name), "a process of it lives afterwards")


@check("LC-27")
def cleanup_forgets_everything_but_disks(subject: Subject) -> None:
    """After a cleanup there is no account of the name, and its disk is what it was."""
    disk = subject.raw_disk()
    name = subject.start(disks=[disk])
    subject.driver.stop_instance(name, force=True)
    expect(subject.state(name) is not None, "there is no account of a stopped instance")
    subject.driver.cleanup_instance(name)
    expect_equal(subject.state(name), None, "the state after a cleanup")
    expect_equal(subject.files_about(name), (), "what a cleanup has left")
    expect(os.path.exists(disk.path or ""), "the disk is gone after a cleanup")
    with open(disk.path or "", "rb") as file:
        expect(not any(file.read()), "the disk was written to")


@check("LC-28")
def cleanup_of_a_live_instance_is_refused(subject: Subject) -> None:
    """An instance that is alive is not forgotten."""
    name = subject.start()
    expect_error(AlreadyRunning, lambda: subject.driver.cleanup_instance(name), "the cleanup of a live instance")
    expect(subject.lives(name), "its process is gone after the refused cleanup")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the refused cleanup")
