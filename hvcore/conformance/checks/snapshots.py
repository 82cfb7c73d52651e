"""Snapshots: taken, listed, gone back to, given up."""

from __future__ import annotations

from typing import Any

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.driver import Driver
from hvcore.errors import HypervisorError, InvalidParameters, NotRunning, WrongState
from hvcore.model.progress import Progress
from hvcore.model.state import InstanceState

_SNAPSHOTS = (Capability.SNAPSHOT,)
_EXTERNAL = (Capability.SNAPSHOT, Capability.SNAPSHOT_EXTERNAL)


def _started(subject: Subject, **changes: Any) -> str:
    """An instance with a disk that can hold snapshots."""
    return subject.start(disks=(subject.qcow2_disk(),), **changes)


def _names(subject: Subject, name: str, driver: Driver | None = None) -> list[str]:
    return [one.name for one in (driver or subject.driver).list_snapshots(name).snapshots]


@check("SN-01", capabilities=_SNAPSHOTS)
def a_snapshot_is_listed(subject: Subject) -> None:
    """A snapshot is there for every host application, and says what the instance was."""
    name = _started(subject)
    expect_equal(_names(subject, name), [], "snapshots before the first")
    taken = subject.driver.create_snapshot(name, "first")
    expect_equal(taken.name, "first", "what the snapshot says it is called")
    expect_equal((taken.memory, taken.state), (True, InstanceState.RUNNING), "what it says of the instance")
    for driver in (subject.driver, subject.load()):
        expect_equal(list(driver.list_snapshots(name).snapshots), [taken], "the snapshots that are listed")


@check("SN-01", capabilities=(*_SNAPSHOTS, Capability.PAUSE))
def taking_one_leaves_the_instance_as_it_is(subject: Subject) -> None:
    """What ran runs on in the same process, and what was paused is still paused."""
    name = _started(subject)
    pid = subject.info(name).pid
    subject.driver.create_snapshot(name, "first")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state of one that ran")
    subject.driver.pause_instance(name)
    taken = subject.driver.create_snapshot(name, "second")
    expect_equal(taken.state, InstanceState.PAUSED, "the state that the snapshot has")
    expect_equal(subject.state(name), InstanceState.PAUSED, "the state of one that was paused")
    expect_equal(subject.info(name).pid, pid, "its process")
    expect_equal(_names(subject, name), ["first", "second"], "the snapshots, the oldest first")


@check("SN-02", capabilities=_SNAPSHOTS)
def a_name_that_is_taken_is_refused(subject: Subject) -> None:
    """A second snapshot of a name, and one with a name that is none, are refused."""
    name = _started(subject)
    taken = subject.driver.create_snapshot(name, "first")
    for wrong in ("first", "", "1", "../first", "-first", "a b"):
        call = lambda wrong=wrong: subject.driver.create_snapshot(name, wrong)  # noqa: E731
        expect_error(InvalidParameters, call, f"a snapshot with the name {wrong!r}")
    expect_equal(list(subject.driver.list_snapshots(name).snapshots), [taken], "the snapshots afterwards")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")


@check("SN-03", capabilities=(*_SNAPSHOTS, Capability.PAUSE))
def it_goes_on_in_the_state_of_the_snapshot(subject: Subject) -> None:
    """One that is alive is in its old state again, in the same process."""
    name = _started(subject)
    subject.driver.create_snapshot(name, "runs")
    subject.driver.pause_instance(name)
    subject.driver.create_snapshot(name, "stands")
    pid = subject.info(name).pid
    for snapshot, state in (("runs", InstanceState.RUNNING), ("stands", InstanceState.PAUSED)):
        transition = subject.driver.revert_snapshot(name, snapshot)
        expect_equal((transition.name, transition.after), (name, state), "what the revert says")
        expect_equal(subject.state(name), state, f"the state after the revert to {snapshot}")
    expect_equal(subject.info(name).pid, pid, "its process after the reverts")
    expect_equal(_names(subject, name), ["runs", "stands"], "the snapshots after the reverts")
    subject.driver.resume_instance(name)


@check("SN-03", capabilities=_SNAPSHOTS)
def one_that_was_stopped_is_started(subject: Subject) -> None:
    """With the memory of a snapshot, an instance that is not alive runs afterwards."""
    name = _started(subject)
    subject.driver.create_snapshot(name, "first")
    subject.driver.stop_instance(name, force=True)
    subject.driver.revert_snapshot(name, "first")
    expect(subject.lives(name), "no process of it lives after the revert")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the revert")


@check("SN-04", capabilities=_SNAPSHOTS)
def what_is_not_there_is_refused(subject: Subject) -> None:
    """Going back to, or giving up, a snapshot that the instance does not have is refused."""
    name = _started(subject)
    subject.driver.create_snapshot(name, "first")
    for operation in (subject.driver.revert_snapshot, subject.driver.delete_snapshot):
        call = lambda operation=operation: operation(name, "second")  # noqa: E731
        expect_error(InvalidParameters, call, "an operation on a snapshot that is not there")
    expect_equal(_names(subject, name), ["first"], "the snapshots afterwards")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")


@check("SN-05", capabilities=_SNAPSHOTS)
def a_deleted_snapshot_is_gone(subject: Subject) -> None:
    """It is not listed any more, the others can be gone back to, and the instance is what it was."""
    name = _started(subject)
    for snapshot in ("first", "second"):
        subject.driver.create_snapshot(name, snapshot)
    expect_equal(subject.driver.delete_snapshot(name, "first").name, "first", "what was deleted")
    expect_equal(_names(subject, name), ["second"], "the snapshots afterwards")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")
    expect_error(
        InvalidParameters, lambda: subject.driver.revert_snapshot(name, "first"), "going back to what was deleted"
    )
    subject.driver.revert_snapshot(name, "second")
    subject.driver.stop_instance(name, force=True)
    subject.driver.delete_snapshot(name, "second")
    expect_equal(_names(subject, name), [], "the snapshots after the last was deleted")


@check("SN-06", capabilities=_SNAPSHOTS)
def without_any_time_nothing_happens(subject: Subject) -> None:
    """What is not done in time is taken back: the instance, and its snapshots, are what they were."""
    name = _started(subject)
    subject.driver.create_snapshot(name, "first")
    attempts = (
        lambda: subject.driver.create_snapshot(name, "second", timeout=0.0),
        lambda: subject.driver.revert_snapshot(name, "first", timeout=0.0),
    )
    for attempt in attempts:
        expect_error(HypervisorError, attempt, "an operation without any time")
        expect_equal(_names(subject, name), ["first"], "the snapshots afterwards")
        expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")
    subject.driver.create_snapshot(name, "second")
    expect_equal(_names(subject, name), ["first", "second"], "the snapshots with time enough")


@check("SN-07", capabilities=_SNAPSHOTS)
def progress_is_told(subject: Subject) -> None:
    """Each way it is said how far it is."""
    name = _started(subject)
    driver, told = subject.driver, []
    seen: list[Progress] = []
    driver.create_snapshot(name, "first", on_progress=seen.append)
    told.append(len(seen))
    driver.revert_snapshot(name, "first", on_progress=seen.append)
    told.append(len(seen))
    driver.delete_snapshot(name, "first", on_progress=seen.append)
    told.append(len(seen))
    expect(0 < told[0] < told[1] < told[2], f"of one of three operations it is not said how far it is: {told}")
    for one in seen:
        expect(0 <= one.done <= one.total or one.total == 0, f"more is done than there is: {one}")


@check("SN-08", capabilities=_SNAPSHOTS)
def one_that_is_not_alive_has_no_memory(subject: Subject) -> None:
    """Its disks can be kept with its definition, and not without, nor a memory that there is not."""
    definition = subject.definition(disks=(subject.qcow2_disk(),))
    name = definition.name
    expect_error(NotRunning, lambda: subject.driver.create_snapshot(name, "first"), "one of a name alone")
    with_memory = lambda: subject.driver.create_snapshot(definition, "first", memory=True)  # noqa: E731
    expect_error(NotRunning, with_memory, "one with a memory that there is not")
    expect_equal(_names(subject, name), [], "the snapshots afterwards")
    taken = subject.driver.create_snapshot(definition, "first")
    expect_equal(taken.memory, False, "whether it says that it has a memory")
    expect(not subject.lives(name), "a process of it lives after its disks were kept")
    subject.driver.revert_snapshot(name, "first")
    expect(not subject.lives(name), "a process of it lives after its disks were put back")


@check("SN-09", capabilities=_SNAPSHOTS)
def disks_are_not_changed_below_a_guest(subject: Subject) -> None:
    """Going back to a snapshot without memory is refused while the instance is alive."""
    name = _started(subject)
    expect_equal(subject.driver.create_snapshot(name, "first", memory=False).memory, False, "its memory")
    pid = subject.info(name).pid
    expect_error(WrongState, lambda: subject.driver.revert_snapshot(name, "first"), "a revert below a guest")
    expect_equal((subject.state(name), subject.info(name).pid), (InstanceState.RUNNING, pid), "what it is afterwards")
    subject.driver.stop_instance(name, force=True)
    subject.driver.revert_snapshot(name, "first")


@check("SN-10", capabilities=_EXTERNAL)
def an_external_snapshot_has_overlays(subject: Subject) -> None:
    """It is listed as one, before and after a stop, and the instance runs on in its process."""
    name = _started(subject)
    pid = subject.info(name).pid
    taken = [subject.driver.create_snapshot(name, one, external=True) for one in ("first", "second")]
    expect_equal((subject.state(name), subject.info(name).pid), (InstanceState.RUNNING, pid), "what it is afterwards")
    subject.driver.stop_instance(name, force=True)
    for driver in (subject.driver, subject.load()):
        known = list(driver.list_snapshots(name).snapshots)
        expect_equal(known, taken, "the snapshots that are listed")
        expect_equal([(one.external, one.memory) for one in known], [(True, False)] * 2, "what they say of themselves")
        overlays = [disk.overlay for one in known for disk in one.disks]
        images = {disk.path for disk in known[0].disks}
        expect(all(overlays) and len(overlays) == 2 * len(images), f"not every disk has its overlays: {overlays}")
        expect(len({*overlays, *images}) == len(overlays) + len(images), f"one image is there for two: {overlays}")
    for one in ("second", "first"):
        subject.driver.delete_snapshot(name, one)


@check("SN-11", capabilities=_EXTERNAL)
def overlays_are_given_up_from_the_top(subject: Subject) -> None:
    """What lies below another snapshot is given up without harm to that, or not at all; the newest is given up."""
    name = _started(subject)
    pid = subject.info(name).pid
    for one in ("first", "second"):
        subject.driver.create_snapshot(name, one, external=True)
    try:
        subject.driver.delete_snapshot(name, "first")
        left = ["second"]
    except InvalidParameters:
        left = ["first", "second"]
    expect_equal(_names(subject, name), left, "the snapshots after the deletion of one below another")
    for one in reversed(left):
        subject.driver.delete_snapshot(name, one)
        expect_equal(subject.state(name), InstanceState.RUNNING, "the state after a deletion")
    expect_equal(_names(subject, name), [], "the snapshots after the last was deleted")
    expect_equal(subject.info(name).pid, pid, "its process")
    subject.driver.create_snapshot(name, "third", external=True)
    subject.driver.stop_instance(name, force=True)
    subject.driver.revert_snapshot(name, "third")
    expect_equal(_names(subject, name), ["third"], "the snapshots after a revert")
    expect(not subject.lives(name), "a process of it lives after its disks were put back")
    subject.driver.delete_snapshot(name, "third")


@check("SN-12", capabilities=_EXTERNAL)
def overlays_are_not_forgotten(subject: Subject) -> None:
    """What only the account of an instance knows of is not lost with it."""
    name = _started(subject)
    subject.driver.create_snapshot(name, "first", external=True)
    subject.driver.stop_instance(name, force=True)
    expect_error(WrongState, lambda: subject.driver.cleanup_instance(name), "forgetting an instance with overlays")
    expect_equal(_names(subject, name), ["first"], "the snapshots afterwards")
    subject.driver.delete_snapshot(name, "first")
    subject.driver.cleanup_instance(name)
    expect_equal(_names(subject, name), [], "the snapshots after it was forgotten")
