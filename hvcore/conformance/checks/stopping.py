"""Stopping: gracefully, by force, in time, by name alone."""

from __future__ import annotations

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.errors import DeadlineExceeded, UnsupportedOperation
from hvcore.model.state import Cause, InstanceState

_GRACE = 0.5
"""Seconds that a guest which heeds nothing is given."""


@check("LC-07")
def a_stop_leaves_nothing_that_was_held(subject: Subject) -> None:
    """After a stop no process lives, nothing is listed and nothing on the host is held."""
    counted = subject.profile.resources
    held = counted(subject.driver) if counted else frozenset()
    name = subject.start(disks=[subject.raw_disk()])
    subject.driver.stop_instance(name, force=True)
    expect(not subject.lives(name), "a process of it lives after the stop")
    expect(name not in [row.name for row in subject.driver.list_instances().instances], "it is listed after the stop")
    expect_equal((counted(subject.driver) if counted else held) - held, frozenset(), "what is held after the stop")


@check("LC-07")
def what_was_stopped_can_be_used_again(subject: Subject) -> None:
    """After a stop another instance starts from the same disk."""
    disk = subject.raw_disk()
    first = subject.start(disks=[disk])
    subject.driver.stop_instance(first, force=True)
    expect(subject.lives(subject.start(disks=[disk])), "the second instance does not live")


@check("LC-08")
def stopping_what_is_not_alive_changes_nothing(subject: Subject) -> None:
    """A stop of a name without an account, and a second stop, return and change nothing."""
    name = subject.name()
    for force in (False, True):
        expect(not subject.driver.stop_instance(name, force=force).changed, "a stop of nothing changed something")
    expect_equal(subject.state(name), None, "the state of what never was")
    started = subject.start()
    expect(subject.driver.stop_instance(started, force=True).changed, "the first stop says that it changed nothing")
    expect(not subject.driver.stop_instance(started).changed, "the second stop says that it changed something")


@check("LC-08", needs=["kill"])
def stopping_what_died_changes_nothing(subject: Subject) -> None:
    """A stop of an instance whose process was killed puts away what is left, and says that nothing changed."""
    name = subject.start()
    subject.provoke("kill", name)
    expect(not subject.driver.stop_instance(name).changed, "the stop says that it changed something")
    expect(name not in [row.name for row in subject.driver.list_instances().instances], "it is listed after the stop")


@check("LC-09", needs=["damage_records"])
def a_stop_needs_no_record(subject: Subject) -> None:
    """An instance whose records are damaged is stopped by its name, by a host application that never saw it."""
    name = subject.start()
    subject.provoke("damage_records", name)
    expect(subject.lives(name), "its process did not outlive the damage")
    subject.load().stop_instance(name, force=True)
    expect(not subject.lives(name), "its process lives after the stop")


@check("LC-10", capabilities=[Capability.GRACEFUL_STOP])
def a_guest_is_asked_before_force(subject: Subject) -> None:
    """A guest that heeds the power button powers itself off when it is stopped without force."""
    name = subject.start(ready=True)
    subject.driver.stop_instance(name, timeout=PATIENCE, escalate=False)
    expect(not subject.lives(name), "its process lives after the stop")
    expect_equal(subject.info(name).reason.cause, Cause.HOST_STOP, "why it ended")


@check("LC-10", capabilities=[Capability.GRACEFUL_STOP], needs=["times_asked", "deafen"])
def the_button_is_pressed(subject: Subject) -> None:
    """A guest that heeds nothing was asked all the same."""
    asked = subject.profile.times_asked
    name = subject.start(deaf=True)
    expect_error(
        DeadlineExceeded,
        lambda: subject.driver.stop_instance(name, timeout=_GRACE, escalate=False),
        "the graceful stop of a guest that heeds nothing",
    )
    expect(asked and asked(subject.driver, name) > 0, "the guest was not asked")


@check("LC-11")
def with_force_the_guest_is_not_asked(subject: Subject) -> None:
    """A guest that would have powered off at once is stopped by force."""
    name = subject.start(ready=True)
    subject.driver.stop_instance(name, force=True)
    expect_equal(subject.info(name).reason.cause, Cause.HOST_FORCE_STOP, "why it ended")


@check("LC-12", capabilities=[Capability.GRACEFUL_STOP], needs=["deafen"])
def without_escalation_a_deaf_guest_stays_alive(subject: Subject) -> None:
    """A guest that does not power off in its time runs on when force is not allowed."""
    name = subject.start(deaf=True)
    pid = subject.info(name).pid
    expect_error(
        DeadlineExceeded,
        lambda: subject.driver.stop_instance(name, timeout=_GRACE, escalate=False),
        "the graceful stop of a guest that heeds nothing",
    )
    expect(subject.lives(name), "its process is gone after the stop that failed")
    expect_equal(subject.info(name).pid, pid, "its process after the stop that failed")


@check("LC-13", needs=["deafen"])
def with_escalation_a_deaf_guest_is_stopped_by_force(subject: Subject) -> None:
    """A guest that does not power off in its time is stopped by force."""
    name = subject.start(deaf=True)
    transition = subject.driver.stop_instance(name, timeout=_GRACE)
    expect(transition.changed, "the stop says that it changed nothing")
    expect(not subject.lives(name), "its process lives after the stop")
    info = subject.info(name)
    expect_equal((info.state, info.reason.cause), (InstanceState.STOPPED, Cause.HOST_FORCE_STOP), "how it ended")


@check("LC-15", capabilities=[Capability.GRACEFUL_STOP, Capability.START_PAUSED])
def a_guest_that_cannot_be_asked_is_not_stopped(subject: Subject) -> None:
    """A guest before its first instruction notices no button: without escalation the stop is refused."""
    name = subject.start(paused=True)
    expect_error(
        UnsupportedOperation,
        lambda: subject.driver.stop_instance(name, timeout=PATIENCE, escalate=False),
        "the graceful stop of a guest that has not begun",
    )
    expect_equal(subject.state(name), InstanceState.PRELAUNCH, "the state after the stop that was refused")


@check("LC-14", capabilities=[Capability.GRACEFUL_STOP], needs=["deafen", "times_asked"])
def a_retry_asks_at_once(subject: Subject) -> None:
    """With retry the guest is asked again, although it was asked just before."""
    asked = subject.profile.times_asked
    name = subject.start(deaf=True)

    def stop(*, retry: bool) -> int:
        expect_error(
            DeadlineExceeded,
            lambda: subject.driver.stop_instance(name, timeout=_GRACE, retry=retry, escalate=False),
            "the graceful stop of a guest that heeds nothing",
        )
        return asked(subject.driver, name) if asked else 0

    before = stop(retry=False)
    expect(stop(retry=True) > before, "with retry the guest was not asked again")
