"""Who the driver is, what it claims, and what it derives."""

from __future__ import annotations

from collections.abc import Callable

from hvcore.capabilities import Capability, ClaimLevel
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.conformance.watching import PROCESSES, actions
from hvcore.errors import HypervisorError, InstanceNotFound, UnsupportedOperation
from hvcore.hookspecs.table import OPERATIONS
from hvcore.model.instance import Nic
from hvcore.model.state import Cause, InstanceState


@check("ID-01")
def describing_starts_no_process(subject: Subject) -> None:
    """Asking a driver who it is starts no process."""
    expect_equal(actions(PROCESSES, subject.driver.describe_driver), [], "what describe_driver started")


@check("ID-02")
def every_claimed_operation_has_its_hook(subject: Subject) -> None:
    """The driver's object has the hook of every operation that it claims."""
    description = subject.driver.describe_driver()
    for operation in OPERATIONS:
        if operation.capability is None or description.claim(operation.capability).offered:
            hook = getattr(subject.driver.plugin, operation.hook, None)
            expect(callable(hook), f"{operation.hook} is not there, and {operation.name} is offered")


@check("ID-02")
def what_is_claimed_is_not_refused_as_unsupported(subject: Subject) -> None:
    """An operation on a running instance whose capability is claimed without a condition is supported."""
    description = subject.driver.describe_driver()
    name = subject.start()
    calls: dict[Capability, Callable[[], object]] = {
        Capability.PAUSE: lambda: (subject.driver.pause_instance(name), subject.driver.resume_instance(name)),
        Capability.STATS: lambda: subject.driver.get_instance_stats(name),
        Capability.VERIFY_INSTANCE: lambda: subject.driver.verify_instance(name),
        Capability.CONSOLE: lambda: subject.driver.get_instance_console(name),
        Capability.HOTPLUG: lambda: subject.driver.hotplug_supported(name),
        Capability.RECOVER: lambda: subject.driver.recover(name),
        Capability.LIST_INTERRUPTED: lambda: subject.driver.list_interrupted(),
        Capability.RESET: lambda: subject.driver.reboot_instance(name, mode="reset"),
        Capability.EVENTS: lambda: subject.driver.events(),
        Capability.ANCILLARY_FILES: lambda: subject.driver.get_ancillary_files(),
    }
    for capability, call in calls.items():
        if description.claim(capability).level is ClaimLevel.FULL:
            try:
                call()
            except UnsupportedOperation as error:
                expect(False, f"{capability.value} is claimed, and refused: {error}")
            except HypervisorError:
                # Whether it works is the business of the checks of that operation.
                continue


@check("ID-03")
def claims_with_conditions_say_which(subject: Subject) -> None:
    """Every conditional and every impossible claim has a reason."""
    for claim in subject.driver.describe_driver().claims:
        if claim.level in (ClaimLevel.CONDITIONAL, ClaimLevel.IMPOSSIBLE):
            expect(claim.reason.strip(), f"{claim.capability.value} is {claim.level.value} without a reason")


@check("ID-04")
def identities_are_the_same_at_each_start(subject: Subject) -> None:
    """A uuid that is not given is the same at each start on the same host."""
    name = subject.start()
    first = subject.info(name).uuid
    expect(first, "a running instance has no uuid")
    subject.driver.stop_instance(name, force=True)
    subject.driver.start_instance(subject.definition(name))
    expect_equal(subject.info(name).uuid, first, "the uuid after the second start")


@check("ID-04", capabilities=[Capability.PLAN])
def planned_identities_are_those_of_the_start(subject: Subject) -> None:
    """The uuid and hardware addresses in a plan are derived from the host and the name alone."""
    definition = subject.definition(nics=[Nic()])
    first = subject.driver.plan_start(definition)
    second = subject.load().plan_start(definition)
    expect_equal(second.argv, first.argv, "the plan of another host application")
    subject.driver.start_instance(definition)
    uuid = subject.info(definition.name).uuid
    expect(any(uuid in word for word in first.argv if uuid), f"the uuid {uuid} is not what was planned")


@check("ID-05", needs=["identity"])
def the_guest_sees_who_it_is(subject: Subject) -> None:
    """The system UUID and the hardware addresses it is shown are those of the definition."""
    uuid, macs = "5b2f3a7c-0d1e-4f2a-8b3c-9d4e5f6a7b8c", ("52:54:00:c0:ff:ee", "52:54:00:c0:ff:ef")
    look, name = subject.profile.identity, subject.start(uuid=uuid, nics=[Nic(mac=mac) for mac in macs])
    expect_equal(look(subject.driver, name) if look else None, frozenset((uuid, *macs)), "what the guest is shown")


@check("ID-06", needs=["impostor"])
def who_took_over_the_process_id_is_somebody_else(subject: Subject) -> None:
    """A process that has the process id of one that died is neither listed as alive nor stopped."""
    impostor, name = subject.profile.impostor, subject.start()
    if impostor is None:
        return
    with impostor(subject.driver, name) as lives:
        driver = subject.load()
        info = driver.get_instance_info(name)
        seen = (info.state, info.reason.cause, info.pid)
        expect_equal(seen, (InstanceState.CRASHED, Cause.DIED, None), "state, cause and process of one that died")
        rows = [row.alive for row in driver.list_instances().instances if row.name == name]
        expect_equal(rows, [False], "whether it is listed as alive")
        driver.stop_instance(name, force=True)
        expect(lives(), "a process of somebody else was ended by a stop")
        driver.cleanup_instance(name)
        expect(lives(), "a process of somebody else was ended by a cleanup")
        expect_error(InstanceNotFound, lambda: driver.get_instance_info(name), "information after the cleanup")
