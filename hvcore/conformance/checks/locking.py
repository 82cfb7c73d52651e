"""One operation at a time on one instance, and nobody waits who need not."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.interruption import count_cuts, kill_at
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.errors import AlreadyRunning, InstanceBusy
from hvcore.hookspecs.markers import hookimpl
from hvcore.model.state import InstanceState
from hvcore.operation import OperationCall


class _Holding:
    """An extension that holds one operation on one instance until it is told to go on."""

    def __init__(self, operation: str, name: str) -> None:
        self._operation = operation
        self._name = name
        self.entered = threading.Event()
        self.go_on = threading.Event()

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall):  # type: ignore[no-untyped-def]
        """Hold it, with the instance's lock."""
        if (call.name, call.instance) == (self._operation, self._name):
            self.entered.set()
            self.go_on.wait(PATIENCE)
        return (yield)


@contextlib.contextmanager
def _held(subject: Subject, name: str) -> Iterator[None]:
    """While another thread is in the middle of a stop of an instance."""
    holding = _Holding("stop_instance", name)
    other = subject.load(holding)
    thread = threading.Thread(target=lambda: other.stop_instance(name, force=True), name="holder")
    thread.start()
    try:
        expect(holding.entered.wait(PATIENCE), "the other thread does not get to its operation")
        yield
    finally:
        holding.go_on.set()
        thread.join(PATIENCE)


@check("LK-01")
def of_many_starts_one_succeeds(subject: Subject) -> None:
    """Of four starts of one instance at the same time one succeeds, and one process lives."""
    definition = subject.definition()
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait(PATIENCE)
        try:
            subject.driver.start_instance(definition, timeout=PATIENCE)
            outcomes.append("started")
        except AlreadyRunning:
            outcomes.append("refused")
        except Exception as error:
            # In a thread nobody else would see it.
            outcomes.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=start, name=f"starter {number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    expect_equal(sorted(outcomes), ["refused"] * 3 + ["started"], "what became of four starts at once")
    expect(subject.lives(definition.name), "no process of it lives")


@check("LK-02")
def who_cannot_wait_is_told_who_holds_it(subject: Subject) -> None:
    """An operation that does not get the lock in time names the operation and the process that hold it."""
    name = subject.start()
    with _held(subject, name):
        error = expect_error(
            InstanceBusy, lambda: subject.driver.cleanup_instance(name, timeout=0.05), "a cleanup during a stop"
        )
        expect("stop_instance" in str(error), f"the error does not name the operation: {error}")
        expect(str(os.getpid()) in str(error), f"the error does not name the process: {error}")


@check("LK-03")
def the_lock_of_the_dead_is_free(subject: Subject) -> None:
    """When a host application was killed in an operation the next one does not have to wait."""
    name = subject.start()
    cuts = count_cuts(lambda: subject.driver.stop_instance(name, force=True))
    subject.driver.start_instance(subject.definition(name))
    kill_at(lambda: subject.driver.stop_instance(name, force=True), max(2, cuts // 2))
    subject.driver.stop_instance(name, force=True, timeout=PATIENCE)
    expect(not subject.lives(name), "its process lives after the stop")


@check("LK-04", capabilities=[Capability.VERIFY_INSTANCE])
def queries_do_not_wait(subject: Subject) -> None:
    """Every query answers while an operation holds the instance."""
    name = subject.start()
    with _held(subject, name):
        expect_equal(subject.driver.get_instance_info(name).state, InstanceState.RUNNING, "the state")
        expect_equal([row.name for row in subject.driver.list_instances().instances], [name], "the list")
        expect_equal(len(subject.driver.get_all_instances_info().instances), 1, "the number of instances")
        subject.driver.verify_instance(name)
        if subject.driver.description.claim(Capability.LIST_INTERRUPTED).offered:
            subject.driver.list_interrupted()


@check("LK-05")
def other_instances_do_not_wait(subject: Subject) -> None:
    """An instance is started while an operation holds another."""
    name = subject.start()
    with _held(subject, name):
        other = subject.start()
        expect(subject.lives(other), "the other does not live")
