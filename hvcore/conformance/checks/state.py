"""States, and why an instance is in them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.conformance.watching import CHANGES, watching
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.model.state import Cause, InstanceState, Transition


def _account(subject: Subject, name: str, driver: Driver | None = None) -> tuple[InstanceState, Cause]:
    info = subject.info(name, driver)
    return info.state, info.reason.cause


@check("ST-01")
def a_started_instance_is_running(subject: Subject) -> None:
    """After a start every host application sees it running."""
    name = subject.start()
    expect_equal(_account(subject, name)[0], InstanceState.RUNNING, "the state")
    expect_equal(_account(subject, name, subject.load())[0], InstanceState.RUNNING, "the state, seen by another")


@check("ST-01", capabilities=[Capability.START_PAUSED])
def one_started_paused_is_prelaunch(subject: Subject) -> None:
    """After a paused start every host application sees it before its first instruction."""
    name = subject.start(paused=True)
    expect_equal(_account(subject, name, subject.load())[0], InstanceState.PRELAUNCH, "the state, seen by another")


_BY_USER = (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN)


@check("ST-02", needs=["guest_powers_off"])
def a_guest_that_powers_off_was_shut_down_by_its_user(subject: Subject) -> None:
    """A guest that powered itself off unasked is shutdown-by-user."""
    name = subject.start(ready=True)
    subject.provoke("guest_powers_off", name)
    expect_equal(_account(subject, name), _BY_USER, "how it ended")


@check("ST-03", capabilities=[Capability.GRACEFUL_STOP])
def a_guest_that_was_asked_was_stopped_by_the_host(subject: Subject) -> None:
    """A guest that powered off because it was asked is stopped, with cause host-stop."""
    name = subject.start(ready=True)
    subject.driver.stop_instance(name, timeout=PATIENCE, escalate=False)
    expect_equal(_account(subject, name), (InstanceState.STOPPED, Cause.HOST_STOP), "how it ended")


@check("ST-04")
def force_is_told_from_a_graceful_stop(subject: Subject) -> None:
    """An instance that was stopped by force is stopped, with cause host-force-stop."""
    name = subject.start()
    subject.driver.stop_instance(name, force=True)
    expect_equal(_account(subject, name), (InstanceState.STOPPED, Cause.HOST_FORCE_STOP), "how it ended")


@check("ST-05", needs=["kill"])
def a_process_that_was_killed_has_crashed(subject: Subject) -> None:
    """A process that ended without an order and without a last word is crashed, with cause died."""
    name = subject.start()
    subject.provoke("kill", name)
    expect_equal(_account(subject, name), (InstanceState.CRASHED, Cause.DIED), "how it ended")


@check("ST-06", needs=["guest_panics"])
def a_panic_is_told_from_a_crash(subject: Subject) -> None:
    """A guest whose kernel reported a panic is panicked, with cause guest-panic."""
    name = subject.start(ready=True)
    subject.provoke("guest_panics", name)
    expect_equal(_account(subject, name), (InstanceState.PANICKED, Cause.GUEST_PANIC), "how it ended")


@check("ST-07", needs=["guest_powers_off"])
def nobody_has_to_watch(subject: Subject) -> None:
    """Why an instance ended is known although no host application was there when it did."""
    name = subject.start(ready=True)
    subject.restart(lambda: subject.provoke("guest_powers_off", name))
    expect_equal(_account(subject, name), _BY_USER, "how it ended")


@check("ST-08", needs=["guest_powers_off"])
def the_reason_stays(subject: Subject) -> None:
    """Why an instance ended is known after queries, a stop, and in another host application, until the next start."""
    name = subject.start(ready=True)
    subject.provoke("guest_powers_off", name)
    subject.driver.get_all_instances_info()
    expect_equal(_account(subject, name), _BY_USER, "how it ended, asked a second time")
    subject.driver.stop_instance(name)
    expect_equal(_account(subject, name), _BY_USER, "how it ended, after a stop")
    expect_equal(_account(subject, name, subject.load()), _BY_USER, "how it ended, asked by another")
    subject.driver.start_instance(subject.definition(name))
    expect_equal(_account(subject, name)[0], InstanceState.RUNNING, "the state after the next start")


@check("ST-09", needs=["host_restarts"])
def a_restart_of_the_host_is_told_from_a_crash(subject: Subject) -> None:
    """An instance that ran when the host was restarted is crashed, with cause host-restarted."""
    name = subject.start()
    subject.restart(lambda: subject.provoke("host_restarts", name))
    wanted = (InstanceState.CRASHED, Cause.HOST_RESTARTED)
    expect_equal(_account(subject, name), wanted, "how it ended")
    subject.driver.start_instance(subject.definition(name))
    expect_equal(_account(subject, name)[0], InstanceState.RUNNING, "the state after the next start")


_LOOK = 0.01


@check("ST-10", capabilities=[Capability.GRACEFUL_STOP], needs=["deafen", "kill"])
def a_stop_that_waits_is_seen(subject: Subject) -> None:
    """While it waits for a guest that does not power off, other host applications see it shutting down."""
    name, other = subject.start(deaf=True), subject.load()
    seen: list[InstanceState] = []
    said: list[str] = []

    def look(_: str = "") -> None:
        if InstanceState.SHUTTING_DOWN not in seen:
            seen.append(subject.info(name, other).state)

    def stop() -> None:
        try:
            # Where time is virtual nobody else gets to look: so it is looked at from within as well.
            with watching(CHANGES | {"open-write"}, look):
                subject.driver.stop_instance(name, timeout=PATIENCE, escalate=False)
        except HypervisorError as error:
            said.append(str(error))

    thread = threading.Thread(target=stop, name="stopper")
    thread.start()
    limit = time.monotonic() + PATIENCE
    while thread.is_alive() and InstanceState.SHUTTING_DOWN not in seen and time.monotonic() < limit:
        look()
        time.sleep(_LOOK)
    if thread.is_alive():
        # It has nothing to wait for any more.
        subject.provoke("kill", name)
    thread.join(2 * PATIENCE)
    expect(InstanceState.SHUTTING_DOWN in seen, f"the states during the stop are {[str(s) for s in set(seen)]}: {said}")


@check("ST-11", capabilities=[Capability.PAUSE])
def transitions_say_what_was_done(subject: Subject) -> None:
    """Before, after and changed of each operation are what the queries say."""
    driver, name = subject.driver, subject.name()
    definition = subject.definition(name)
    steps: tuple[tuple[Callable[[], Transition], bool], ...] = (
        (lambda: driver.start_instance(definition), True),
        (lambda: driver.resume_instance(name), False),
        (lambda: driver.pause_instance(name), True),
        (lambda: driver.pause_instance(name), False),
        (lambda: driver.resume_instance(name), True),
        (lambda: driver.stop_instance(name, force=True), True),
        (lambda: driver.stop_instance(name, force=True), False),
        (lambda: driver.cleanup_instance(name), True),
        (lambda: driver.cleanup_instance(name), False),
    )
    for number, (step, changed) in enumerate(steps, 1):
        before = subject.state(name)
        transition = step()
        after = subject.state(name)
        found = (transition.before, transition.after, transition.changed)
        expect_equal(found, (before, after, changed), f"before, after and changed of step {number}")
