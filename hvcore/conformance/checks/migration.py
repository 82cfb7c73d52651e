"""Moving an instance to a second host: the same driver, on other directories, on this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from hvcore.capabilities import Capability
from hvcore.certificates import make_certificates
from hvcore.conformance.check import check
from hvcore.conformance.failure import ConformanceFailure, expect, expect_equal, expect_error
from hvcore.conformance.profile import EarlyMigration, EncryptedDisk
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.errors import InvalidParameters, WrongState
from hvcore.migration import migrate
from hvcore.migration_policy import read_migration_policy
from hvcore.model.instance import Disk
from hvcore.model.migration import MigrationInfo, MigrationPhase, MigrationStatus
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.state import InstanceState

ADDRESS = "127.0.0.1"
_MOVES = (Capability.MIGRATION,)
_COPIES = (Capability.MIGRATION, Capability.MIGRATION_STEPS, Capability.MIGRATION_DISKS)
_WAITS = (Capability.MIGRATION, Capability.MIGRATION_STEPS)
_ENDED = (MigrationPhase.COMPLETED, MigrationPhase.FAILED, MigrationPhase.CANCELLED)
_LOOK = 0.01
_CONTENT = 2**20
_BLOCK = 2**14
_SECRETS = (b"bought-in-basel", b"found-in-fribourg")
"""Of an encrypted disk, on the source and on the destination."""


class _Move:
    """One migration, step by step.

    Attributes:
        name: the instance.
        here: the source.
        there: the destination.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        paused: bool = False,
        waiting: bool = False,
        disk: Disk | None = None,
        early: EarlyMigration | None = None,
        tls: str | None = None,
    ) -> None:
        self._subject = subject
        wanted = {**(subject.profile.migration or {}), **({"switchover": "paused"} if waiting else {})}
        wanted = wanted if early is None else {**early.policy}
        wanted |= {"copy_disks": "all"} if disk is not None else {}
        wanted |= {"tls": {"directory": tls}} if tls is not None else {}
        self.policy, findings = read_migration_policy(wanted)
        expect_equal(findings, [], "what is wrong with the policy of the profile")
        self.here, self.there = subject.driver, subject.other_host()
        if early is not None:
            definition = early.definition(subject.name(), subject.directory)
            self.here.start_instance(definition)
            self.name = definition.name
            early.make_busy(self.here, self.name)
        else:
            self.name = subject.start() if disk is None else subject.start(disks=(disk,))
        if paused:
            self.here.pause_instance(self.name)
        self.info: MigrationInfo = self.here.migration_info(self.name)

    def accept(self) -> None:
        """Prepare the destination."""
        self.target = self.there.accept_instance(self.info, ADDRESS, self.policy)

    def begin(self) -> None:
        """Prepare the destination, and begin."""
        self.accept()
        self.here.migrate_instance(self.name, self.target, self.policy)

    def until(self, *phases: MigrationPhase, switch_over: bool = True) -> MigrationStatus:
        """Go on until it is in one of some phases."""
        limit = time.monotonic() + PATIENCE
        steps = self.here.description.claim(Capability.MIGRATION_STEPS).offered
        while True:
            if steps:
                status = self.here.continue_migration(self.name, switch_over=switch_over, wait=_LOOK)
            else:
                status = self.here.get_migration_status(self.name)
                time.sleep(_LOOK)
            if status.phase in phases:
                return status
            if status.phase in _ENDED or time.monotonic() > limit:
                raise ConformanceFailure(f"the migration is {status.phase}, expected {phases}: {status.error}")

    def complete(self) -> None:
        """Until all of it is on the destination; nothing is finished."""
        self.begin()
        self.until(MigrationPhase.COMPLETED)

    def finish(self, success: bool) -> None:
        """Both finalisers."""
        self.there.finalize_migration_dst(self.info, success)
        self.here.finalize_migration_source(self.name, success)

    def states(self) -> tuple[InstanceState | None, InstanceState | None]:
        """What both sides say of it."""
        return self._subject.state(self.name, self.here), self._subject.state(self.name, self.there)

    def lives(self) -> tuple[bool, bool]:
        """On which sides a process of it lives, whatever they say."""
        look = self._subject.profile.lives
        return look(self.here, self.name), look(self.there, self.name)


def _once(move: _Move) -> None:
    expect(move.states() != (InstanceState.RUNNING, InstanceState.RUNNING), "it runs on both hosts")


@check("MI-01", capabilities=_MOVES, needs=["migration"])
def a_guest_runs_on_one_side_all_the_way(subject: Subject) -> None:
    """From the first byte to the end it never runs on both; at the end it runs on the destination alone."""
    move = _Move(subject)
    migrate(move.here, move.there, move.name, move.policy, lambda _: _once(move), address=ADDRESS)
    expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination")
    expect_equal(move.lives(), (False, True), "where a process of it lives")


@check("MI-01", capabilities=_MOVES, needs=["migration"])
def beliefs_that_contradict_each_other_run_it_once(subject: Subject) -> None:
    """A source that is told of a failure and a destination that is told of a success do not both run it."""
    move = _Move(subject)
    move.complete()
    finishers: tuple[Callable[[], object], ...] = (
        lambda: move.here.finalize_migration_source(move.name, False),
        lambda: move.there.finalize_migration_dst(move.info, True),
        lambda: move.here.finalize_migration_source(move.name, False),
    )
    for finish in finishers:
        with contextlib.suppress(WrongState):
            finish()
        _once(move)
    move.here.finalize_migration_source(move.name, True)


@check("LC-24", capabilities=[Capability.MIGRATION, Capability.PAUSE], needs=["migration"])
def what_has_gone_over_is_not_continued(subject: Subject) -> None:
    """A source that has sent everything is not resumed, whoever asks."""
    move = _Move(subject)
    move.complete()
    expect_error(WrongState, lambda: move.here.resume_instance(move.name), "resuming a guest that has gone over")
    expect_equal(move.states()[0], InstanceState.POSTMIGRATE, "the state on the source")
    move.finish(success=True)


@check("MI-02", capabilities=_MOVES, needs=["migration"])
def finalisers_may_be_called_again(subject: Subject) -> None:
    """After a success and after a failure, in either order; nothing is left to do."""
    move = _Move(subject)
    move.accept()
    for success in (False, True):
        if success:
            move.complete()
        move.finish(success)
        again = (
            move.here.finalize_migration_source(move.name, success),
            move.there.finalize_migration_dst(move.info, success),
        )
        expect_equal([each.changed for each in again], [False, False], "what the second calls changed")
        expect_equal(move.lives(), (not success, success), "where a process of it lives")


@check("MI-03", capabilities=_MOVES, needs=["migration"])
def what_the_source_sent_is_checked(subject: Subject) -> None:
    """A record that is empty, foreign, or has a value of another type at its top is refused without a trace."""
    move = _Move(subject)
    before = subject.files(move.there)
    records: list[dict[str, Any]] = [{}, {"x" * 300: {"y": [1] * 50}}]
    for key, value in move.info.record.items():
        if value is not None:
            records.append({**move.info.record, key: 5 if isinstance(value, str | dict | list | tuple) else ["\0"]})
    for record in records:
        bad = attrs.evolve(move.info, record=record)
        expect_error(
            InvalidParameters,
            lambda bad=bad: move.there.accept_instance(bad, ADDRESS, move.policy),  # type: ignore[misc]
            f"an instance with the record {str(record)[:200]}",
        )
        expect_equal(subject.files(move.there), before, "the files on the destination")
    expect_equal(move.lives(), (True, False), "where a process of it lives")


@check("MI-04", capabilities=_MOVES, needs=["migration"])
def after_a_cancel_the_source_runs_on(subject: Subject) -> None:
    """One that had begun is cancelled; the guest runs on the source, and nowhere else."""
    move = _Move(subject, waiting=True)
    move.begin()
    move.here.cancel_migration(move.name)
    if move.here.description.claim(Capability.MIGRATION_STEPS).offered:
        move.until(MigrationPhase.CANCELLED, MigrationPhase.NONE)
    move.finish(success=False)
    expect_equal(move.states()[0], InstanceState.RUNNING, "the state on the source")
    expect_equal(move.lives(), (True, False), "where a process of it lives")


@check("MI-05", capabilities=_MOVES, needs=["migration"])
def what_has_arrived_waits(subject: Subject) -> None:
    """All of it is on the destination and executes nothing, also when somebody resumes it, until a success is told."""
    move = _Move(subject)
    move.accept()
    expect_equal(move.states()[1], InstanceState.INCOMING, "the state on a destination that waits")
    move.here.migrate_instance(move.name, move.target, move.policy)
    move.until(MigrationPhase.COMPLETED)
    expect(move.states()[1] is not InstanceState.RUNNING, "it runs before its destination was told to")
    if move.there.description.claim(Capability.PAUSE).offered:
        expect_error(WrongState, lambda: move.there.resume_instance(move.name), "resuming what has just arrived")
    move.finish(success=True)
    expect_equal(move.states()[1], InstanceState.RUNNING, "the state after the success")


@check("MI-06", capabilities=_MOVES, needs=["migration"])
def the_foreign_and_the_future_are_refused(subject: Subject) -> None:
    """Another driver and a later format are two findings, and leave nothing."""
    move = _Move(subject)
    before = subject.files(move.there)
    bad = attrs.evolve(move.info, driver="another", schema=move.info.schema + 1000)
    error = expect_error(
        InvalidParameters, lambda: move.there.accept_instance(bad, ADDRESS, move.policy), "a foreign instance"
    )
    paths = {finding.path for finding in error.findings}
    expect({"driver", "schema"} <= paths, f"the findings are about {sorted(paths)}, not about driver and schema")
    expect_equal(subject.files(move.there), before, "the files on the destination")


@check("MI-07", capabilities=_WAITS, needs=["migration"])
def a_second_migration_is_refused(subject: Subject) -> None:
    """While one waits to go over there is no second, and it goes over."""
    move = _Move(subject, waiting=True)
    move.begin()
    move.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
    expect_error(
        WrongState, lambda: move.here.migrate_instance(move.name, move.target, move.policy), "a second migration"
    )
    move.until(MigrationPhase.COMPLETED)
    move.finish(success=True)


@check("MI-08", capabilities=_MOVES, needs=["migration"])
def progress_is_told(subject: Subject) -> None:
    """None before; afterwards how much there was, how long it took, and how long the guest paused."""
    move = _Move(subject)
    expect_equal(move.here.get_migration_status(move.name).phase, MigrationPhase.NONE, "the phase before")
    move.begin()
    move.until(MigrationPhase.COMPLETED)
    status = move.here.get_migration_status(move.name)
    expect_equal(status.phase, MigrationPhase.COMPLETED, "the phase after it")
    expect(status.total_time > 0, f"the time it took is {status.total_time} s")
    expect(status.downtime is not None and status.downtime <= status.total_time, f"the pause is {status.downtime} s")
    expect(status.total > 0 and status.remaining == 0, f"{status.remaining} of {status.total} bytes remain")
    move.finish(success=True)


@check("MI-09", capabilities=_MOVES, needs=["migration"])
def beliefs_that_reality_contradicts_are_refused(subject: Subject) -> None:
    """A success that was none, and a failure that was none, on either side; nothing changes."""
    move = _Move(subject)
    here, there = move.here.finalize_migration_source, move.there.finalize_migration_dst

    def refused(call: Callable[[], object], what: str) -> None:
        before = move.states(), move.lives()
        expect_error(WrongState, call, what)
        expect_equal((move.states(), move.lives()), before, f"states and processes after {what}")

    refused(lambda: here(move.name, True), "a success on a source that has sent nothing")
    move.accept()
    refused(lambda: there(move.info, True), "a success on a destination that has got nothing")
    move.here.migrate_instance(move.name, move.target, move.policy)
    move.until(MigrationPhase.COMPLETED)
    refused(lambda: here(move.name, False), "a failure on a source that has sent all of it")
    there(move.info, True)
    refused(lambda: there(move.info, False), "a failure on a destination that runs it")
    here(move.name, True)


@check("MI-10", capabilities=[Capability.MIGRATION, Capability.PAUSE], needs=["migration"])
def paused_arrives_paused(subject: Subject) -> None:
    """A guest that was paused on the source is paused on the destination, and can be resumed there."""
    move = _Move(subject, paused=True)
    move.complete()
    move.finish(success=True)
    expect_equal(move.states()[1], InstanceState.PAUSED, "the state on the destination")
    move.there.resume_instance(move.name)
    expect_equal(move.states()[1], InstanceState.RUNNING, "the state after it was resumed")


@check("MI-11", capabilities=_MOVES, needs=["migration"])
def the_source_is_left_clean(subject: Subject) -> None:
    """No process, nothing listed."""
    move = _Move(subject)
    move.complete()
    move.finish(success=True)
    expect_equal(move.lives(), (False, True), "where a process of it lives")
    listed = [row.name for row in move.here.list_instances().instances]
    expect(move.name not in listed, "the source still lists it")


@check("MI-12", capabilities=_WAITS, needs=["migration"])
def it_waits_to_go_over_until_it_is_told(subject: Subject) -> None:
    """A policy that asks for it pauses the guest; it goes over when the caller says so, and not before."""
    move = _Move(subject, waiting=True)
    move.begin()
    move.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
    for _ in range(3):
        status = move.here.continue_migration(move.name, switch_over=False, wait=_LOOK)
        expect_equal(status.phase, MigrationPhase.PRE_SWITCHOVER, "the phase of one that waits")
    move.until(MigrationPhase.COMPLETED)
    move.finish(success=True)


@check("MI-13", capabilities=_MOVES, needs=["migration", "postcopy"])
def what_has_gone_over_early_runs(subject: Subject) -> None:
    """It runs on the destination, and only there, while its memory follows; the call after that finishes, once."""
    move = _Move(subject, early=subject.profile.postcopy)
    finish = functools.partial(move.there.finalize_migration_dst, move.info, True)
    move.begin()
    # Where its memory follows at once nobody sees the phase in between.
    if move.until(MigrationPhase.POSTCOPY, MigrationPhase.COMPLETED).phase is MigrationPhase.POSTCOPY:
        expect(move.states()[0] is not InstanceState.RUNNING, "it runs on the source after it has gone over")
        expect_equal(finish().after, InstanceState.RUNNING, "what the first call says it is now")
        expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination after the first call")
        move.until(MigrationPhase.COMPLETED)
    finish()
    _once(move)
    expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination")
    expect_equal(finish().changed, False, "whether one more call changes anything")
    move.here.finalize_migration_source(move.name, True)
    expect_equal(move.lives(), (False, True), "where a process of it lives")


@check("MI-14", capabilities=_COPIES, needs=["migration"])
def no_image_that_is_there_is_copied_to(subject: Subject) -> None:
    """Not the source's own, also where the policy overwrites, and not another one where it does not."""
    disk, path = _disk_with(subject, content := os.urandom(_CONTENT))
    move = _Move(subject, disk=disk)
    before = subject.files(move.there)

    def refused(policy: MigrationPolicy, what: str) -> None:
        expect_error(InvalidParameters, lambda: move.there.accept_instance(move.info, ADDRESS, policy), what)
        expect_equal(subject.files(move.there), before, f"the files on the destination after {what}")

    refused(move.policy, "a copy to the source's image")
    refused(attrs.evolve(move.policy, overwrite_disks=True), "a copy over the source's image")
    expect(_read(path) == content, "the source's image has changed")
    with _put_aside(path):
        _write(path, b"precious")
        refused(move.policy, "a copy to an image that is there")
        expect(_read(path) == b"precious", "an image that was there has changed")


@check("MI-15", capabilities=_COPIES, needs=["migration"])
def a_copied_disk_is_whole(subject: Subject) -> None:
    """What is in it on the source is in it on the destination."""
    disk, path = _disk_with(subject, content := os.urandom(_CONTENT))
    move = _Move(subject, disk=disk)
    with _put_aside(path):
        move.complete()
        move.finish(success=True)
        expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination")
        move.there.stop_instance(move.name, force=True)
        expect(_read(path) == content, "its disk differs from that of the source")


@check("MI-15", capabilities=_COPIES, needs=["migration", "guest_writes"])
def what_is_written_meanwhile_is_copied(subject: Subject) -> None:
    """What the guest writes once the copying has begun is on the destination."""
    uuid = "6f5e8f0e-33c6-4d4e-a3a3-7a1f2f6d0001"
    disk, path = _disk_with(subject, content := os.urandom(_CONTENT))
    move = _Move(subject, disk=attrs.evolve(disk, uuid=uuid))
    expected = bytearray(content)

    def write(offset: int, value: int) -> None:
        if subject.profile.guest_writes is not None:
            subject.profile.guest_writes(move.here, move.name, uuid, offset, _BLOCK, value)
        expected[offset : offset + _BLOCK] = bytes([value]) * _BLOCK

    with _put_aside(path):
        move.begin()
        # Nobody goes on with it meanwhile.
        for offset in (0, _CONTENT // 2, _CONTENT - _BLOCK):
            write(offset, 1 + offset // _BLOCK)
        move.until(MigrationPhase.COMPLETED)
        move.finish(success=True)
        move.there.stop_instance(move.name, force=True)
        expect(_read(path) == bytes(expected), "its disk does not hold what the guest has written meanwhile")


@check("MI-15", capabilities=_COPIES, needs=["migration", "intruder"])
def nobody_elsewhere_writes_to_it_any_more(subject: Subject) -> None:
    """Once its guest may run on the destination: neither who had connected before, nor who connects then."""
    uuid, intruder = "6f5e8f0e-33c6-4d4e-a3a3-7a1f2f6d0001", subject.profile.intruder
    expect(intruder is not None, "the profile cannot connect from elsewhere")
    if intruder is None:
        return
    disk, path = _disk_with(subject, content := os.urandom(_CONTENT))
    move = _Move(subject, disk=attrs.evolve(disk, uuid=uuid))
    with _put_aside(path):
        move.complete()
        with intruder(move.target, uuid) as early:
            move.finish(success=True)
            expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination")
            with intruder(move.target, uuid) as late:
                written = early(0, bytes(_BLOCK)), late(_BLOCK, bytes(_BLOCK))
        expect_equal(written, (False, False), "whether who had connected before can write, and who connects now")
        move.there.stop_instance(move.name, force=True)
        expect(_read(path) == content, "its disk does not hold what it held when its guest came")


@check("MI-16", capabilities=_COPIES, needs=["migration"])
def what_was_made_for_a_disk_is_gone_after_a_failure(subject: Subject) -> None:
    """Its image too, but for one that was there and empty; whoever finishes first, and once more."""
    disk, path = _disk_with(subject, os.urandom(_CONTENT))
    move = _Move(subject, disk=disk)
    with _put_aside(path):
        for empty in (False, True):
            if empty:
                _write(path, b"")
            move.begin()
            move.here.cancel_migration(move.name)
            for _ in range(2):
                move.finish(success=False)
            expect_equal(os.path.exists(path), empty, "whether there is an image")
            expect(not empty or _read(path) == b"", "an image that was empty is not")
            expect_equal(move.states()[0], InstanceState.RUNNING, "the state on the source")


@check("MI-17", capabilities=_COPIES, needs=["migration", "encrypted"])
def what_is_encrypted_stays_so(subject: Subject) -> None:
    """Its copy opens with the secret of the destination alone, and what is stored does not show what is in it."""
    content = os.urandom(_CONTENT)
    encrypted, certificates = _encrypted(subject, content)
    move = _Move(subject, disk=encrypted.disk, tls=certificates)
    path = encrypted.disk.path or ""
    with _put_aside(path):
        _write(encrypted.secret_file, _SECRETS[1])
        move.complete()
        move.finish(success=True)
        expect_equal(move.states()[1], InstanceState.RUNNING, "the state on the destination")
        move.there.stop_instance(move.name, force=True)
        stored = _read(path)
        shown = any(content[at : at + 512] in stored for at in range(0, _CONTENT, _BLOCK))
        expect(not shown, "what the guest has written is in the image as it is")
        expect(encrypted.opens(_SECRETS[1]) == content, "its copy does not hold the same for the destination's secret")
        expect(encrypted.opens(_SECRETS[0]) is None, "its copy opens with the secret of the source")


@check("MI-17", capabilities=_COPIES, needs=["migration", "encrypted"])
def what_would_be_readable_on_its_way_is_refused(subject: Subject) -> None:
    """Without TLS it is not accepted, and nothing is made; it runs on where it is."""
    encrypted, _ = _encrypted(subject, os.urandom(_CONTENT))
    move = _Move(subject, disk=encrypted.disk)
    open_policy = attrs.evolve(move.policy, tls=None)
    path = encrypted.disk.path or ""
    with _put_aside(path):
        before = subject.files(move.there)
        accept = lambda: move.there.accept_instance(move.info, ADDRESS, open_policy)  # noqa: E731
        expect_error(InvalidParameters, accept, "an encrypted disk that would be readable on its way")
        expect_equal(subject.files(move.there), before, "the files on the destination")
        expect(not os.path.lexists(path), "an image was made for what was refused")
    expect_equal(move.states()[0], InstanceState.RUNNING, "the state on the source")


@check("PU-07", capabilities=_WAITS, needs=["migration"])
def asking_how_it_goes_changes_nothing(subject: Subject) -> None:
    """No file on either side, and not the phase."""
    move = _Move(subject, waiting=True)
    move.begin()
    move.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
    before = subject.files(), subject.files(move.there)
    phases = {move.here.get_migration_status(move.name).phase for _ in range(5)}
    expect_equal(phases, {MigrationPhase.PRE_SWITCHOVER}, "the phases that were told")
    expect_equal((subject.files(), subject.files(move.there)), before, "the files of both hosts")
    move.here.cancel_migration(move.name)
    move.finish(success=False)


def _encrypted(subject: Subject, content: bytes) -> tuple[EncryptedDisk, str]:
    """An encrypted disk with something in it, and a directory of certificates for both hosts."""
    make = subject.profile.encrypted
    if make is None:
        raise ConformanceFailure("the profile makes no encrypted disks")
    place = os.path.join(subject.directory, "certificates")
    (made,) = make_certificates(place, [ADDRESS])
    return make(subject.directory, content, _SECRETS[0]), made.directory


def _disk_with(subject: Subject, content: bytes) -> tuple[Disk, str]:
    """A disk with something in it, and the path of its image."""
    disk = subject.raw_disk()
    path = disk.path or ""
    _write(path, content)
    return disk, path


@contextlib.contextmanager
def _put_aside(path: str) -> Iterator[None]:
    """While it is open on the source, an image has another name: on the destination, nothing is at its path."""
    aside = f"{path}.source"
    os.rename(path, aside)
    try:
        yield
    finally:
        os.rename(aside, path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
