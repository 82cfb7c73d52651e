"""What only looks changes nothing."""

from __future__ import annotations

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal
from hvcore.conformance.subject import Subject
from hvcore.conformance.watching import CHANGES, LOOKS, PROCESSES, SOCKETS, actions

_ANYTHING = CHANGES | PROCESSES | SOCKETS | LOOKS | {"open-read", "open-write"}


@check("PU-01")
def syntax_checks_touch_nothing(subject: Subject) -> None:
    """Listing parameters and checking syntax touch no file, process or socket."""
    definition = subject.definition(disks=[subject.raw_disk()])
    subject.driver.check_parameter_syntax(definition)
    fresh = subject.load()
    expect_equal(actions(_ANYTHING, fresh.parameters), [], "what parameters touched")
    touched = actions(_ANYTHING, lambda: fresh.check_parameter_syntax(definition))
    expect_equal(touched, [], "what check_parameter_syntax touched")


@check("PU-02")
def host_checks_change_nothing(subject: Subject) -> None:
    """Checking a definition against the host, and giving advice on it, change nothing."""
    definition = subject.definition(disks=[subject.raw_disk()])
    for call in (subject.driver.validate_parameters, subject.driver.assess_parameters):
        call(definition)
        before = subject.files()
        changed = actions(CHANGES | PROCESSES, lambda call=call: call(definition))  # type: ignore[misc]
        expect_equal(changed, [], f"what {call.__name__} changed")
        expect_equal(subject.files(), before, f"the driver's files after {call.__name__}")


@check("PU-03", capabilities=[Capability.PLAN])
def a_plan_touches_nothing(subject: Subject) -> None:
    """Planning creates nothing, opens nothing for writing, starts and connects to nothing."""
    definition = subject.definition(disks=[subject.raw_disk()])
    # The hypervisor program may be asked once what it can do.
    subject.driver.plan_start(definition)
    before = subject.files()
    wanted = CHANGES | PROCESSES | SOCKETS | {"open-write"}
    expect_equal(actions(wanted, lambda: subject.driver.plan_start(definition)), [], "what plan_start did")
    expect_equal(subject.files(), before, "the driver's files after plan_start")
    expect_equal(subject.state(definition.name), None, "the state of an instance that was only planned")


@check("PU-04", capabilities=[Capability.PLAN])
def plans_are_the_same(subject: Subject) -> None:
    """The same definition on the same host gives the same plan, whoever asks."""
    definition = subject.definition(disks=[subject.raw_disk()])
    first = subject.driver.plan_start(definition)
    expect_equal(subject.driver.plan_start(definition), first, "the second plan")
    expect_equal(subject.load().plan_start(definition), first, "the plan of another host application")


@check("PU-05", capabilities=[Capability.PLAN], needs=["argv"])
def what_is_planned_is_what_runs(subject: Subject) -> None:
    """The argument list of the running process is the one of the plan."""
    argv = subject.profile.argv
    definition = subject.definition(disks=[subject.raw_disk()])
    plan = subject.driver.plan_start(definition)
    subject.driver.start_instance(definition)
    expect(argv is not None, "the profile cannot see argument lists")
    if argv is not None:
        expect_equal(argv(subject.driver, definition.name), plan.argv, "what runs")


@check("PU-06")
def queries_change_nothing(subject: Subject) -> None:
    """After every query the instance is what it was, and so are the driver's files."""
    name = subject.start(paused=subject.driver.description.claim(Capability.START_PAUSED).offered)
    before, seen = subject.files(), subject.info(name)
    subject.driver.list_instances()
    subject.driver.get_all_instances_info()
    if subject.driver.description.claim(Capability.STATS).offered:
        subject.driver.get_instance_stats(name)
    if subject.driver.description.claim(Capability.VERIFY_INSTANCE).offered:
        subject.driver.verify_instance(name)
    if subject.driver.description.claim(Capability.LIST_INTERRUPTED).offered:
        subject.driver.list_interrupted()
    after = subject.info(name)
    expect_equal((after.state, after.pid), (seen.state, seen.pid), "state and process after the queries")
    expect(subject.lives(name), "its process is gone after the queries")
    expect_equal(subject.files(), before, "the driver's files after the queries")
