"""Looking at instances."""

from __future__ import annotations

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import InstanceNotFound
from hvcore.model.state import InstanceState

_SOON = 1.0
"""Seconds that a query of something that hangs is given."""

_SOON_WITH_ANSWERS = 3.0
"""The same where others have to answer within them, which takes longer on a host that is busy."""


@check("QU-01")
def alive_instances_are_listed_by_name(subject: Subject) -> None:
    """Every live instance is listed, sorted by name, with its process."""
    names = [subject.start(name=name) for name in (subject.name(), subject.name(), subject.name())[::-1]]
    rows = subject.driver.list_instances().instances
    expect_equal([row.name for row in rows], sorted(names), "what is listed")
    for row in rows:
        expect(row.alive, f"{row.name} is listed as dead")
        expect_equal(row.pid, subject.info(row.name).pid, f"the process of {row.name} in the list")


@check("QU-01", needs=["kill"])
def what_ended_is_listed_until_it_is_stopped(subject: Subject) -> None:
    """An instance that died is listed as dead; one that was stopped is not listed."""
    died, stopped = subject.start(), subject.start()
    subject.provoke("kill", died)
    subject.driver.stop_instance(stopped, force=True)
    rows = [(row.name, row.alive, row.pid) for row in subject.driver.list_instances().instances]
    expect_equal(rows, [(died, False, None)], "what is listed")


@check("QU-02", needs=["hang", "answer_again"])
def the_list_asks_nobody(subject: Subject) -> None:
    """An instance that hangs is listed as alive by a list that has no time to wait."""
    name = subject.start()
    subject.provoke("hang", name)
    rows = [(row.name, row.alive) for row in subject.driver.list_instances(timeout=_SOON).instances]
    expect_equal(rows, [(name, True)], "what is listed")


@check("QU-03", needs=["hang", "answer_again"])
def one_that_hangs_is_unknown(subject: Subject) -> None:
    """An instance that does not answer is unknown, and is itself again afterwards."""
    name = subject.start()
    subject.provoke("hang", name)
    info = subject.driver.get_instance_info(name, timeout=_SOON)
    expect_equal(info.state, InstanceState.UNKNOWN, "the state of an instance that hangs")
    expect(info.pid is not None, "an instance that hangs has no process")
    subject.provoke("answer_again", name)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state of one that answers again")


@check("QU-04")
def an_unknown_name_is_not_found(subject: Subject) -> None:
    """A name of which there is no account is refused."""
    name = subject.name()
    expect_error(InstanceNotFound, lambda: subject.driver.get_instance_info(name), "information on an unknown name")


@check("QU-05", needs=["kill"])
def everything_listed_is_described(subject: Subject) -> None:
    """Information on all is information on each, alive or dead, in the order of the list."""
    subject.start()
    subject.provoke("kill", subject.start())
    infos = subject.driver.get_all_instances_info().instances
    listed = [row.name for row in subject.driver.list_instances().instances]
    expect_equal([info.name for info in infos], listed, "what is described")
    for info in infos:
        expect_equal(info.state, subject.state(info.name), f"the state of {info.name} among all")


@check("QU-05", needs=["hang", "answer_again"])
def one_that_hangs_is_described_with_the_others(subject: Subject) -> None:
    """An instance that hangs does not keep the others from being described in time."""
    hung, healthy = subject.start(), subject.start()
    subject.provoke("hang", hung)
    infos = {
        info.name: info.state for info in subject.driver.get_all_instances_info(timeout=_SOON_WITH_ANSWERS).instances
    }
    wanted = {hung: InstanceState.UNKNOWN, healthy: InstanceState.RUNNING}
    expect_equal(infos, wanted, "the states of both")


@check("QU-07", capabilities=[Capability.VERIFY_INSTANCE])
def nothing_is_found_where_nothing_is_wrong(subject: Subject) -> None:
    """An instance that is what its record says gives no findings."""
    name = subject.start()
    expect_equal([str(finding) for finding in subject.driver.verify_instance(name)], [], "what is found")


@check("QU-06", capabilities=[Capability.STATS])
def counters_do_not_decrease(subject: Subject) -> None:
    """The counters of one process only grow."""
    name = subject.start(disks=[subject.raw_disk()])
    first = subject.driver.get_instance_stats(name)
    second = subject.driver.get_instance_stats(name)
    expect(all(b >= a for a, b in zip(first.vcpu_times, second.vcpu_times, strict=True)), "CPU time has decreased")
    for before, after in zip(first.disks, second.disks, strict=True):
        expect(after.read_bytes >= before.read_bytes, f"bytes read from {before.device} have decreased")
        expect(after.written_bytes >= before.written_bytes, f"bytes written to {before.device} have decreased")
