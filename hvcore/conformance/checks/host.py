"""The host, and what happened on it."""

from __future__ import annotations

import os

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import PolicyDenied


@check("HO-01")
def sizes_are_bytes(subject: Subject) -> None:
    """Memory and processors are those that the kernel reports."""
    node = subject.driver.get_node_info()
    with open("/proc/meminfo", encoding="ascii") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))
    expect_equal(node.memory_total, total, "memory_total")
    expect(0 <= node.memory_free <= total, f"memory_free is {node.memory_free}")
    expect_equal(node.cpus_online, os.sysconf("SC_NPROCESSORS_ONLN"), "cpus_online")


@check("HO-02", needs=["kill"])
def problems_are_findings(subject: Subject) -> None:
    """What is wrong on a host is returned, and every error among it says what to do."""
    subject.provoke("kill", subject.start())
    for finding in subject.driver.verify():
        expect(finding.code, f"a finding has no code: {finding}")
        expect(finding.hint, f"a finding says nothing of what to do: {finding}")


@check("HO-03", capabilities=[Capability.POWERCYCLE], needs=["restarts"])
def a_restart_of_the_host_has_to_be_allowed(subject: Subject) -> None:
    """Without the setting that allows it the host is not restarted."""
    restarts = subject.profile.restarts
    expect_error(PolicyDenied, subject.driver.powercycle_node, "a restart that was not allowed")
    expect_equal(restarts and restarts(subject.driver), 0, "how often a restart was asked for")


@check("HO-04", capabilities=[Capability.ANCILLARY_FILES])
def ancillary_files_are_named_in_full(subject: Subject) -> None:
    """Every path is absolute, and says whether the driver works without it."""
    for file in subject.driver.get_ancillary_files().files:
        expect(os.path.isabs(file.path), f"{file.path} is not absolute")


@check("HO-05", capabilities=[Capability.EVENTS], needs=["guest_powers_off"])
def a_cursor_outlives_the_host_application(subject: Subject) -> None:
    """A cursor of an earlier host application yields what came after it, and nothing else."""
    first = subject.start(ready=True)
    second = subject.start(ready=True)
    subject.provoke("guest_powers_off", first)
    cursor = subject.driver.events().cursor
    subject.restart(lambda: subject.provoke("guest_powers_off", second))
    found = {event.instance for event in subject.driver.events(cursor).events}
    expect_equal(found, {second}, "whose events came after the cursor")


@check("HO-06", capabilities=[Capability.EVENTS], needs=["guest_powers_off"])
def events_nobody_waited_for_are_returned(subject: Subject) -> None:
    """What happened while no host application ran is returned to the next."""
    name = subject.start(ready=True)
    cursor = subject.driver.events().cursor
    subject.restart(lambda: subject.provoke("guest_powers_off", name))
    expect(subject.driver.events(cursor).events, "nothing is known of a guest that powered off")
