"""Saving to a file and restoring from it."""

from __future__ import annotations

import os

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import AlreadyRunning, HypervisorError, InvalidParameters, RecordError
from hvcore.model.progress import Progress
from hvcore.model.state import Cause, InstanceState

_SAVES = (Capability.SAVE_RESTORE,)
_LAYERED = (Capability.SAVE_RESTORE, Capability.SNAPSHOT, Capability.SNAPSHOT_EXTERNAL)


def _path(subject: Subject, name: str = "saved") -> str:
    return os.path.join(subject.directory, name)


def _saved(subject: Subject, *, paused: bool = False) -> tuple[str, str]:
    """Name and file of an instance that is saved."""
    name, path = subject.start(paused=paused), _path(subject)
    subject.driver.save_instance(name, path)
    return name, path


@check("LC-25", capabilities=_SAVES)
def a_saved_instance_is_in_a_file_and_nowhere_else(subject: Subject) -> None:
    """After a save there is a file of the size that is said, and no process."""
    name, path = subject.start(), _path(subject)
    saved = subject.driver.save_instance(name, path)
    expect(not subject.lives(name), "a process of it lives after the save")
    expect(os.path.isfile(path), "there is no file after the save")
    expect_equal((saved.name, saved.path, saved.size), (name, path, os.stat(path).st_size), "what the save says")
    expect_equal(sorted(os.listdir(os.path.dirname(path))).count("saved"), 1, "files of that name")
    names = [row.name for row in subject.driver.list_instances().instances]
    expect(name not in names, "it is listed after the save")


@check("LC-26", capabilities=_SAVES)
def a_restored_instance_runs_on(subject: Subject) -> None:
    """What ran when it was saved runs after the restore."""
    name, path = _saved(subject)
    transition = subject.driver.restore_instance(path)
    expect_equal((transition.name, transition.after), (name, InstanceState.RUNNING), "what the restore says")
    expect(transition.changed, "the restore says that it changed nothing")
    expect(subject.lives(name), "no process of it lives after the restore")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the restore")


@check("LC-26", capabilities=_SAVES)
def a_restored_instance_waits_if_it_is_asked_to(subject: Subject) -> None:
    """With paused, what ran when it was saved is paused after the restore, and can be resumed."""
    name, path = _saved(subject)
    subject.driver.restore_instance(path, paused=True)
    expect_equal(subject.state(name), InstanceState.PAUSED, "the state after a paused restore")
    subject.driver.resume_instance(name)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the resume")


@check("LC-26", capabilities=(*_SAVES, Capability.PAUSE))
def what_was_paused_is_paused_again(subject: Subject) -> None:
    """An instance that was paused when it was saved is paused after the restore."""
    name, path = subject.start(), _path(subject)
    subject.driver.pause_instance(name)
    subject.driver.save_instance(name, path)
    expect_equal(subject.driver.restore_instance(path).after, InstanceState.PAUSED, "what the restore says it is now")
    expect_equal(subject.state(name), InstanceState.PAUSED, "the state after the restore")


@check("SA-01", capabilities=_SAVES)
def a_saved_instance_says_so(subject: Subject) -> None:
    """The state is saved, with its cause, also for another host application."""
    name, _ = _saved(subject)
    for driver in (subject.driver, subject.load()):
        info = driver.get_instance_info(name)
        expect_equal(info.state, InstanceState.SAVED, "the state after the save")
        expect_equal(info.reason.cause, Cause.HOST_SAVE, "the cause after the save")


@check("SA-02", capabilities=_SAVES)
def a_file_that_is_there_is_not_overwritten(subject: Subject) -> None:
    """A save to a path that is taken is refused, and the instance runs on."""
    name, path = subject.start(), _path(subject)
    with open(path, "wb") as file:
        file.write(b"precious")
    expect_error(InvalidParameters, lambda: subject.driver.save_instance(name, path), "a save to a file that is there")
    with open(path, "rb") as file:
        expect_equal(file.read(), b"precious", "what is in the file afterwards")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")


@check("SA-03", capabilities=_SAVES)
def a_save_without_any_time_leaves_no_file(subject: Subject) -> None:
    """A save that is not done in time is undone: the instance runs on, and there is no file."""
    name, path = subject.start(), _path(subject)
    before = sorted(os.listdir(subject.directory))
    expect_error(
        HypervisorError, lambda: subject.driver.save_instance(name, path, timeout=0.0), "a save without any time"
    )
    expect_equal(sorted(os.listdir(subject.directory)), before, "the files beside it afterwards")
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state afterwards")
    subject.driver.save_instance(name, path)
    expect_equal(subject.state(name), InstanceState.SAVED, "the state after a save with time enough")


@check("SA-04", capabilities=_SAVES)
def a_damaged_file_is_not_restored(subject: Subject) -> None:
    """A file with a changed byte, one that is cut short and one of something else are refused."""
    name, path = _saved(subject)
    with open(path, "rb") as file:
        whole = file.read()
    last = bytes([whole[-20] ^ 1])
    other = _path(subject, "broken")
    broken = {
        "a changed byte": whole[:-20] + last + whole[-19:],
        "half of a file": whole[: len(whole) // 2],
        "an empty file": b"",
        "another file": b'[instance]\nname = "web1"\n' * 100,
    }
    for what, data in broken.items():
        with open(other, "wb") as file:
            file.write(data)
        expect_error(RecordError, lambda: subject.driver.restore_instance(other), f"a restore from {what}")
        expect(not subject.lives(name), f"a process of it lives after a restore from {what}")
        expect_equal(subject.state(name), InstanceState.SAVED, f"the state after a restore from {what}")
    missing = _path(subject, "missing")
    expect_error(RecordError, lambda: subject.driver.restore_instance(missing), "a restore from no file")


@check("SA-05", capabilities=_SAVES)
def a_file_is_restored_once(subject: Subject) -> None:
    """A second restore is refused unless it is forced."""
    name, path = _saved(subject)
    subject.driver.restore_instance(path)
    subject.driver.stop_instance(name, force=True)
    expect_error(InvalidParameters, lambda: subject.driver.restore_instance(path), "a second restore")
    expect(not subject.lives(name), "a process of it lives after the second restore")
    subject.driver.restore_instance(path, force=True)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after a forced restore")


@check("SA-05", capabilities=_SAVES)
def what_has_run_since_is_not_restored(subject: Subject) -> None:
    """A file whose instance was started anew is refused."""
    name, path = _saved(subject)
    subject.driver.start_instance(subject.definition(name))
    subject.driver.stop_instance(name, force=True)
    expect_error(InvalidParameters, lambda: subject.driver.restore_instance(path), "a restore after another life")
    expect(not subject.lives(name), "a process of it lives afterwards")


@check("SA-06", capabilities=_SAVES)
def what_is_alive_is_not_restored(subject: Subject) -> None:
    """An instance that was started anew is refused while it lives, and stays as it is."""
    name, path = _saved(subject)
    subject.driver.start_instance(subject.definition(name))
    pid = subject.info(name).pid
    for force in (False, True):
        call = lambda force=force: subject.driver.restore_instance(path, force=force)  # noqa: E731
        expect_error(AlreadyRunning, call, "a restore of what is alive")
        expect_equal(subject.info(name).pid, pid, "its process after the restore")


@check("SA-07", capabilities=_SAVES)
def a_restore_that_fails_can_be_tried_again(subject: Subject) -> None:
    """A restore that is not done in time leaves the instance saved, and the next one succeeds."""
    name, path = _saved(subject)
    expect_error(
        HypervisorError, lambda: subject.driver.restore_instance(path, timeout=0.0), "a restore without any time"
    )
    expect(not subject.lives(name), "a process of it lives after the restore that failed")
    expect_equal(subject.state(name), InstanceState.SAVED, "the state after the restore that failed")
    subject.driver.restore_instance(path)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the next one")


@check("SA-08", capabilities=_SAVES)
def progress_is_told(subject: Subject) -> None:
    """Both ways it is said how far it is."""
    name, path = subject.start(), _path(subject)
    seen: list[Progress] = []
    subject.driver.save_instance(name, path, on_progress=seen.append)
    expect(seen, "the save says nothing of how far it is")
    restoring: list[Progress] = []
    subject.driver.restore_instance(path, on_progress=restoring.append)
    expect(restoring, "the restore says nothing of how far it is")
    for one in (*seen, *restoring):
        expect(0 <= one.done <= one.total or one.total == 0, f"more is done than there is: {one}")


@check("SA-09", capabilities=_LAYERED)
def one_with_external_snapshots_goes_on_upon_them(subject: Subject) -> None:
    """They are listed and given up as without the save; after a revert its memory would meet other disks."""
    driver = subject.driver
    name = subject.start(disks=(subject.raw_disk(), subject.qcow2_disk()))
    taken = [driver.create_snapshot(name, one, external=True) for one in ("first", "second")]
    for path in (_path(subject), _path(subject, "again")):
        driver.save_instance(name, path)
        expect(not subject.lives(name), "a process of it lives after the save")
        expect_equal(list(driver.list_snapshots(name).snapshots), taken, "its snapshots while it is saved")
        driver.restore_instance(path)
        expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the restore")
        expect_equal(list(driver.list_snapshots(name).snapshots), taken, "its snapshots after the restore")
        driver.delete_snapshot(name, taken.pop().name)
    driver.create_snapshot(name, "third", external=True)
    path = _path(subject, "left")
    driver.save_instance(name, path)
    driver.revert_snapshot(name, "third")
    expect_error(InvalidParameters, lambda: driver.restore_instance(path), "a restore with other disks")
    expect(not subject.lives(name), "a process of it lives after what was refused")
    driver.restore_instance(path, force=True)
    expect_equal(subject.state(name), InstanceState.RUNNING, "the state after a forced restore")
    driver.delete_snapshot(name, "third")
