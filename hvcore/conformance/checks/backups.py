"""Backups: disks as they were at one moment, and what was written since."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import HypervisorError, InvalidParameters, NotRunning
from hvcore.model.backup import Backup, DiskBackup
from hvcore.model.instance import Disk
from hvcore.model.progress import Progress
from hvcore.model.state import InstanceState
from hvcore.qcow2_content import read_qcow2

_BACKUPS = (Capability.BACKUP,)
_COMPRESSED = (Capability.BACKUP, Capability.BACKUP_COMPRESSION)
_LAYERED = (Capability.BACKUP, Capability.SNAPSHOT, Capability.SNAPSHOT_EXTERNAL)
_SIZE = 4 << 20
_BLOCK = 1 << 16
_RAW = ("6f5e8f0e-33c6-4d4e-a3a3-7a1f2f6d0001", "8c1d2a4b-33c6-4d4e-a3a3-7a1f2f6d0002")
_QCOW2 = "b07e9d55-33c6-4d4e-a3a3-7a1f2f6d0003"
_UNHURRIED = 16 << 20
"""Bytes a second with which there are moments in which it is not done."""

_SLOW = 1 << 20
"""Bytes a second with which it is not done for some seconds."""

_WITHOUT_TIME: tuple[dict[str, Any], ...] = ({"timeout": 0.0}, {"timeout": 0.5, "bandwidth": _SLOW})
_MOST_WRITES = 6


class _Written:
    """An instance, and what its guest has written to its disks.

    Attributes:
        name: the instance.
        place: the directory for its backups.
        content: what each disk holds, by uuid.
    """

    def __init__(self, subject: Subject, *disks: Disk) -> None:
        self._subject = subject
        self.content = {disk.uuid or "": bytearray(_SIZE) for disk in disks}
        for disk in disks:
            if disk.format == "raw":
                self.content[disk.uuid or ""][:] = content = os.urandom(_SIZE)
                with open(disk.path or "", "wb") as file:
                    file.write(content)
        self.place = os.path.join(subject.directory, "backups")
        os.mkdir(self.place)
        self.name = subject.start(disks=disks)

    def write(self, uuid: str, number: int, value: int) -> None:
        """The guest writes a value to a block, and a little more."""
        offset, count = number * _BLOCK + 4096, _BLOCK - 4096
        write = self._subject.profile.guest_writes
        expect(write is not None, "the profile has nothing to write with")
        if write is not None:
            write(self._subject.driver, self.name, uuid, offset, count, value)
        self.content[uuid][offset : offset + count] = bytes([value]) * count

    def moment(self) -> dict[str, bytes]:
        """What all disks hold now."""
        return {uuid: bytes(content) for uuid, content in self.content.items()}


def _raw(subject: Subject, index: int = 0) -> Disk:
    return attrs.evolve(subject.raw_disk(f"disk{index}.raw", _SIZE), uuid=_RAW[index])


def _qcow2(subject: Subject) -> Disk:
    return attrs.evolve(subject.qcow2_disk(size=_SIZE), uuid=_QCOW2)


def _restored(taken: Backup) -> dict[str, bytes]:
    """What the disks hold that are made of the files of a backup."""
    return {disk.device: _content(disk) for disk in taken.disks}


def _content(disk: DiskBackup) -> bytes:
    expect_equal(disk.format, "qcow2", "the format of a file of a backup")
    size, blocks = read_qcow2(disk.location)
    expect_equal(size, disk.size, "bytes of the disk in its file")
    return b"".join(blocks.get(number, b"").ljust(_BLOCK, b"\0") for number in range(-(-size // _BLOCK)))[:size]


def _expect_content(taken: Backup, wanted: dict[str, bytes], what: str) -> None:
    found = _restored(taken)
    expect_equal(sorted(found), sorted(wanted), f"the disks in {what}")
    for uuid, content in wanted.items():
        other = (at for at in range(0, _SIZE, 512) if found[uuid][at : at + 512] != content[at : at + 512])
        first = next(other, None)
        expect(first is None, f"{what}: of disk {uuid} it is something else at byte {first}")


def _once(action: Callable[[], None]) -> Callable[[Progress], None]:
    """Does something when the first progress is told."""
    left = [action]

    def told(_: Progress) -> None:
        if left:
            left.pop()()

    return told


@check("BA-01", capabilities=_BACKUPS, needs=["guest_writes"])
def what_is_copied_is_of_one_moment(subject: Subject) -> None:
    """Of a guest that writes to one disk and then to the other, nothing is there without what was written before."""
    web = _Written(subject, _raw(subject, 0), _raw(subject, 1))
    web.write(_RAW[0], 1, 1)
    moments = [web.moment()]

    def write(_: Progress) -> None:
        if len(moments) <= _MOST_WRITES:
            web.write(_RAW[len(moments) % 2], 15 - len(moments), 2)
            moments.append(web.moment())

    taken = subject.driver.backup_instance(web.name, web.place, bandwidth=_UNHURRIED, on_progress=write)
    expect_equal((taken.name, taken.mode), (web.name, "full"), "whose and what it says it is")
    expect_equal([disk.device for disk in taken.disks], list(_RAW), "the disks that it says it has")
    expect(_restored(taken) in moments, "the files hold what the disks held at no one moment")
    expect_equal(subject.state(web.name), InstanceState.RUNNING, "the state afterwards")


@check("BA-02", capabilities=(*_BACKUPS, Capability.PAUSE), needs=["guest_writes"])
def one_that_is_not_done_in_time_leaves_nothing(subject: Subject) -> None:
    """No file, no new checkpoint, the old one as it was; what ran runs, and what was paused is paused."""
    web = _Written(subject, _raw(subject))
    backup, listed = subject.driver.backup_instance, subject.driver.list_checkpoints
    backup(web.name, web.place, checkpoint="first")
    web.write(_RAW[0], 1, 1)
    before, files, pid = listed(web.name), sorted(os.listdir(web.place)), subject.info(web.name).pid
    for state in (InstanceState.RUNNING, InstanceState.PAUSED):
        if state is InstanceState.PAUSED:
            subject.driver.pause_instance(web.name)
        for given in _WITHOUT_TIME:
            call = functools.partial(backup, web.name, web.place, checkpoint="second", **given)
            expect_error(HypervisorError, call, f"a backup that has no time, {given}")
            expect_equal(sorted(os.listdir(web.place)), files, "the files afterwards")
            expect_equal(listed(web.name), before, "the checkpoints afterwards")
            expect_equal((subject.state(web.name), subject.info(web.name).pid), (state, pid), "what it is afterwards")
    taken = backup(web.name, web.place, since="first", checkpoint="second")
    _expect_content(taken, web.moment(), "what the files of the next one hold")


@check("BA-02", capabilities=_BACKUPS, needs=["guest_writes", "failing_target"])
def one_whose_target_fails_changes_no_checkpoint(subject: Subject) -> None:
    """It raises; what was written since the old checkpoint is still known, and there is no new one."""
    web = _Written(subject, _raw(subject))
    driver, make = subject.driver, subject.profile.failing_target
    driver.backup_instance(web.name, web.place, checkpoint="first")
    for number in range(16):
        web.write(_RAW[0], number, 1)
    before = driver.list_checkpoints(web.name)
    expect(make is not None, "the profile has no target that fails")
    if make is None:
        return
    with make(driver, subject.directory, _SIZE) as failing:
        told = _once(failing.faults["full"])
        call = functools.partial(driver.backup_instance, web.name, failing.target, bandwidth=_SLOW, on_progress=told)
        expect_error(HypervisorError, lambda: call(checkpoint="second"), "a backup to a target that is full")
        expect_equal(driver.list_checkpoints(web.name), before, "the checkpoints afterwards")
    taken = driver.backup_instance(web.name, web.place, since="first", checkpoint="second")
    _expect_content(taken, web.moment(), "what the files of the next one hold")


@check("BA-03", capabilities=_BACKUPS)
def what_is_there_is_not_overwritten(subject: Subject) -> None:
    """Whatever it is: a backup, a file, a directory, a link that leads nowhere."""
    web = _Written(subject, _raw(subject))
    backup = functools.partial(subject.driver.backup_instance, web.name, web.place)
    location = backup().disks[0].location

    def refused(what: str, look: Callable[[], object]) -> None:
        before, there = look(), sorted(os.listdir(web.place))
        expect_error(InvalidParameters, backup, f"a backup to where there is {what}")
        expect_equal((look(), sorted(os.listdir(web.place))), (before, there), f"{what} afterwards")

    def read() -> bytes:
        with open(location, "rb") as file:
            return file.read()

    refused("a backup", read)
    with open(location, "wb") as file:
        file.write(b"precious")
    refused("a file", read)
    os.unlink(location)
    os.mkdir(location)
    refused("a directory", lambda: os.listdir(location))
    os.rmdir(location)
    os.symlink("nowhere", location)
    refused("a link", lambda: os.readlink(location))
    os.unlink(location)
    _expect_content(backup(), web.moment(), "what the file holds once there is nothing")


@check("BA-04", capabilities=_BACKUPS, needs=["guest_writes"])
def changes_are_on_top_of_what_was(subject: Subject) -> None:
    """Two in a row and one more since the first checkpoint; also of what was written while one was taken."""
    web = _Written(subject, _raw(subject), _qcow2(subject))
    backup = subject.driver.backup_instance
    web.write(_QCOW2, 3, 1)
    first = backup(web.name, web.place, checkpoint="c0")
    _expect_content(first, web.moment(), "what the files of the full one hold")
    for uuid in web.content:
        web.write(uuid, 3, 2)
        web.write(uuid, 7, 0)
    moments = [web.moment()]

    def write() -> None:
        for uuid in web.content:
            web.write(uuid, 9, 3)
            moments.append(web.moment())

    second = backup(web.name, web.place, since="c0", checkpoint="c1", on_progress=_once(write))
    expect_equal((second.mode, second.since, second.checkpoint), ("incremental", "c0", "c1"), "what it says it is")
    for disk, base in zip(second.disks, first.disks, strict=True):
        expect_equal(disk.base, os.path.basename(base.location), "the name of the file that it is on")
    expect(_restored(second) in moments, "the files of the first changes hold what the disks held at no one moment")
    web.write(_QCOW2, 12, 4)
    for since, checkpoint in (("c1", "c2"), ("c0", "c3"), ("c0", "c4")):
        taken = backup(web.name, web.place, since=since, checkpoint=checkpoint)
        _expect_content(taken, web.moment(), f"what the files hold with the changes since {since}")
        web.write(_RAW[0], 14, len(checkpoint))


@check("BA-04", capabilities=_BACKUPS, needs=["guest_writes"])
def a_checkpoint_that_outlives_the_process_counts(subject: Subject) -> None:
    """What was written before and after a stop is in the next changes, where the checkpoint is still usable."""
    disk = _qcow2(subject)
    web = _Written(subject, disk)
    taken = subject.driver.backup_instance(web.name, web.place, checkpoint="c0")
    web.write(_QCOW2, 3, 1)
    subject.driver.stop_instance(web.name, force=True)
    subject.driver.start_instance(subject.definition(web.name, disks=(disk,)))
    web.write(_QCOW2, 5, 2)
    found = [each for each in subject.driver.list_checkpoints(web.name).checkpoints if each.name == "c0"]
    usable = bool(found) and all(each.usable for each in found[0].disks)
    expect_equal(usable, taken.disks[0].lasting, "whether a checkpoint that is said to be lasting is usable")
    call = functools.partial(subject.driver.backup_instance, web.name, web.place, since="c0", checkpoint="c1")
    if usable:
        _expect_content(call(), web.moment(), "what the files hold with the changes")
    else:
        expect_error(InvalidParameters, call, "a backup since a checkpoint that is not usable")


@check("BA-05", capabilities=_BACKUPS, needs=["guest_writes", "kill"])
def a_checkpoint_that_lost_track_is_refused(subject: Subject) -> None:
    """After the process was killed, unless what was written is known all the same; and one that never was."""
    disks = (_raw(subject), _qcow2(subject))
    web = _Written(subject, *disks)
    driver = subject.driver
    driver.backup_instance(web.name, web.place, checkpoint="c0")
    never = lambda: driver.backup_instance(web.name, web.place, since="never")  # noqa: E731
    expect_error(InvalidParameters, never, "a backup since a checkpoint that never was")
    driver.stop_instance(web.name, force=True)
    driver.start_instance(subject.definition(web.name, disks=disks))
    for uuid in web.content:
        web.write(uuid, 3, 1)
    subject.provoke("kill", web.name)
    driver.start_instance(subject.definition(web.name, disks=disks))
    for uuid in web.content:
        # What the image has of the first write may be lost with the process.
        web.write(uuid, 3, 2)
    for uuid in web.content:
        files = sorted(os.listdir(web.place))
        try:
            taken = driver.backup_instance(web.name, web.place, disks=[uuid], since="c0", checkpoint="c1")
        except InvalidParameters:
            expect_equal(sorted(os.listdir(web.place)), files, "the files after what was refused")
            continue
        _expect_content(taken, {uuid: bytes(web.content[uuid])}, "what the files hold with the changes")


@check("BA-06", capabilities=_BACKUPS, needs=["guest_writes", "failing_target"])
def a_target_that_fails_is_no_matter_of_the_guest(subject: Subject) -> None:
    """It is full, or gone, while the guest writes: what it writes is on its disk, and it runs on in its process."""
    disk = _raw(subject)
    web = _Written(subject, disk)
    driver, make = subject.driver, subject.profile.failing_target
    pid = subject.info(web.name).pid
    for what in ("full", "gone"):
        if make is None:
            break
        with make(driver, subject.directory, _SIZE) as failing:

            def fails_and_writes(what: str = what, fail: Callable[[], None] = failing.faults[what]) -> None:
                fail()
                for number in (15, 13):
                    web.write(_RAW[0], number, len(what))

            told = _once(fails_and_writes)
            call = functools.partial(
                driver.backup_instance, web.name, failing.target, bandwidth=_SLOW, on_progress=told
            )
            expect_error(HypervisorError, call, f"a backup to a target that is {what}")
        expect_equal((subject.state(web.name), subject.info(web.name).pid), (InstanceState.RUNNING, pid), "what it is")
        web.write(_RAW[0], 11, len(what))
        with open(disk.path or "", "rb") as file:
            expect(file.read() == web.moment()[_RAW[0]], f"a write is not on the disk after the target was {what}")


@check("BA-07", capabilities=_BACKUPS)
def progress_is_told(subject: Subject) -> None:
    """At least once, and never more than there is."""
    web = _Written(subject, _raw(subject))
    seen: list[Progress] = []
    subject.driver.backup_instance(web.name, web.place, on_progress=seen.append)
    expect(seen, "it is not said how far it is")
    for one in seen:
        expect(0 <= one.done <= one.total, f"more is done than there is: {one}")


@check("BA-08", capabilities=_BACKUPS, needs=["guest_writes"])
def a_deleted_checkpoint_leaves_the_others(subject: Subject) -> None:
    """It is not listed any more, nothing begins from it, and from the others what did before."""
    web = _Written(subject, _raw(subject))
    driver = subject.driver
    for name in ("c0", "c1", "c2"):
        driver.backup_instance(web.name, web.place, checkpoint=name)
        web.write(_RAW[0], 3, 1)
    before = driver.list_checkpoints(web.name)
    missing = lambda: driver.delete_checkpoint(web.name, "c3")  # noqa: E731
    expect_error(InvalidParameters, missing, "the deletion of a checkpoint that is not there")
    expect_equal(driver.list_checkpoints(web.name), before, "the checkpoints after what was refused")
    left = driver.delete_checkpoint(web.name, "c1")
    kept = tuple(each for each in before.checkpoints if each.name != "c1")
    expect_equal([each.name for each in kept], ["c0", "c2"], "the checkpoints there were beside it")
    for found in (left, driver.list_checkpoints(web.name), subject.load().list_checkpoints(web.name)):
        expect_equal(found.checkpoints, kept, "the checkpoints afterwards")
    gone = lambda: driver.backup_instance(web.name, web.place, since="c1")  # noqa: E731
    expect_error(InvalidParameters, gone, "a backup since what was deleted")
    for since in ("c0", "c2"):
        taken = driver.backup_instance(web.name, web.place, since=since, checkpoint=f"after-{since}")
        _expect_content(taken, web.moment(), f"what the files hold with the changes since {since}")


@check("BA-09", capabilities=_BACKUPS)
def one_that_is_not_alive_is_refused(subject: Subject) -> None:
    """One that never ran, and one that was stopped; nothing is made."""
    web = _Written(subject, _raw(subject))
    subject.driver.backup_instance(web.name, web.place, checkpoint="c0")
    subject.driver.stop_instance(web.name, force=True)
    files = sorted(os.listdir(web.place))
    for name in (web.name, subject.name()):
        calls: tuple[tuple[str, Callable[[], object]], ...] = (
            ("a backup", functools.partial(subject.driver.backup_instance, name, web.place, checkpoint="c1")),
            ("a list of checkpoints", functools.partial(subject.driver.list_checkpoints, name)),
            ("a deletion of a checkpoint", functools.partial(subject.driver.delete_checkpoint, name, "c0")),
        )
        for what, call in calls:
            expect_error(NotRunning, call, f"{what} of one that is not alive")
        expect(not subject.lives(name), "a process of it lives after what was refused")
    expect_equal(sorted(os.listdir(web.place)), files, "the files afterwards")


@check("BA-10", capabilities=_COMPRESSED, needs=["guest_writes"])
def what_is_compressed_is_the_same(subject: Subject) -> None:
    """In full and since a checkpoint, of disks that can be made smaller and that cannot; no server has such files."""
    web = _Written(subject, _raw(subject), _qcow2(subject))
    for number in range(4):
        web.write(_QCOW2, number, 3)
    plain = os.path.join(subject.directory, "plain")
    os.mkdir(plain)
    driver = subject.driver
    taken = driver.backup_instance(web.name, web.place, checkpoint="first", compress=True)
    _expect_content(taken, web.moment(), "what the compressed files hold")
    for one, other in zip(taken.disks, driver.backup_instance(web.name, plain).disks, strict=True):
        smaller = os.stat(one.location).st_blocks < os.stat(other.location).st_blocks
        expect(smaller or one.device == _RAW[0], f"the file of disk {one.device} is no smaller")
    web.write(_RAW[0], 2, 5)
    web.write(_QCOW2, 2, 6)
    taken = driver.backup_instance(web.name, web.place, since="first", checkpoint="second", compress=True)
    _expect_content(taken, web.moment(), "what the compressed files of the next one hold")
    exported = functools.partial(driver.backup_instance, web.name, "nbd://127.0.0.1:1/disk", compress=True)
    expect_error(InvalidParameters, exported, "a compressed backup to a server")


@check("BA-11", capabilities=_LAYERED, needs=["guest_writes"])
def one_with_external_snapshots_is_what_its_guest_sees(subject: Subject) -> None:
    """Full and since a checkpoint, before, between and after two of them; what cannot be right is refused."""
    web = _Written(subject, _raw(subject), _qcow2(subject))
    driver = subject.driver
    kept = ""

    def written_and_kept(value: int) -> None:
        nonlocal kept
        for uuid in web.content:
            web.write(uuid, value, value)
        # A refusal of what would be incomplete is as good as a complete one.
        since = kept if any(one.name == kept for one in driver.list_checkpoints(web.name).checkpoints) else None
        given: dict[str, Any] = {"checkpoint": f"c{value}"}
        try:
            taken = driver.backup_instance(web.name, web.place, since=since, **given)
        except InvalidParameters:
            expect(since is not None, "a full backup is refused")
            taken = driver.backup_instance(web.name, web.place, **given)
        _expect_content(taken, web.moment(), f"what the files hold since {taken.since}")
        for uuid in web.content:
            web.write(uuid, 20 + value, value)
        kept = f"c{value}"

    def done(call: Callable[[], object]) -> None:
        try:
            call()
        except InvalidParameters:
            for each in driver.list_checkpoints(web.name).checkpoints:
                driver.delete_checkpoint(web.name, each.name)
            call()

    written_and_kept(1)
    written_and_kept(2)
    for value, one in ((3, "first"), (5, "second")):
        done(functools.partial(driver.create_snapshot, web.name, one, external=True))
        written_and_kept(value)
        written_and_kept(value + 1)
    for value, one in ((7, "second"), (9, "first")):
        done(functools.partial(driver.delete_snapshot, web.name, one))
        written_and_kept(value)
        written_and_kept(value + 1)
