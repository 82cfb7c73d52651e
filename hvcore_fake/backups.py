"""Backups of modelled disks: what they hold at one moment is copied to files, while the world goes on."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

import attrs

from hvcore import (
    Backup,
    Cause,
    Checkpoint,
    Checkpoints,
    DeadlineExceeded,
    DiskBackup,
    DiskCheckpoint,
    FindingSet,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
    Progress,
    RecordError,
    WrongState,
)
from hvcore_fake.account import look
from hvcore_fake.backup_files import discard, publish, write_part
from hvcore_fake.backup_plan import DEFECT, DiskPlan, Wanted, disks_of, no_checkpoint, plan_backup, tracked
from hvcore_fake.images import BLOCK, opened_path, read_disk
from hvcore_fake.record import Backend, Process
from hvcore_fake.recovery import settle
from hvcore_fake.tracking import NEXT
from hvcore_fake.transaction import Call, Transaction, transaction
from hvcore_fake.world import World, process_key

OnProgress = Callable[[Progress], object] | None

_STATES = (InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.PRELAUNCH)
_MOVING = (InstanceState.INCOMING, InstanceState.MIGRATING, InstanceState.POSTMIGRATE)
_REPORTS = 16


@attrs.frozen(kw_only=True)
class _Picture:
    """What one disk held at the moment of a backup, as far as it is copied."""

    plan: DiskPlan
    size: int
    blocks: dict[int, bytes]
    copied: int


def backup(call: Call, name: str, wanted: Wanted, on_progress: OnProgress) -> Backup:
    """Copy disks; see the hook of the same name.

    The lock of the instance keeps others from changing it. That of the world is let go of while it is copied: the guest
    goes on.
    """
    world, ident = call.world, str(uuid.uuid4())
    with world.store.locked(call.deadline):
        settle(world, name)
        process, instance = _running(call, name)
        if process.state in _MOVING or process.cause is Cause.MIGRATION or _is_sent(process):
            raise WrongState("it is moving between two hosts", instance=name, hint="finish the migration first")
        plans = plan_backup(process, instance, wanted)
        if process.state not in _STATES:
            hint = "a running or paused instance can be backed up"
            raise WrongState(f"it cannot be backed up: it is {process.state}", instance=name, hint=hint)
        call.in_time()
    files = {_part(plan.path, f"{ident}-{index}"): plan.path for index, plan in enumerate(plans)}
    with transaction(call, name, {"files": files, "checkpoint": wanted.checkpoint}) as effects:
        pictures = _moment(world, effects, name, wanted, plans)
        _copy(call, process, wanted, pictures, on_progress)
        _write(world, effects, pictures, files, compress=wanted.compress)
        with world.store.locked():
            _still_lives(world, process)
            given = wanted.checkpoint
            if given is not None:
                undo = _forgets(world, name, given)
                effects.effect("checkpoint", lambda: world.begin_checkpoint(name, given), undo=undo)
            call.in_time()
    return _result(name, wanted, pictures)


def list_checkpoints(call: Call, name: str) -> Checkpoints:
    """List the checkpoints; see the hook of the same name."""
    process, instance = _running(call, name)
    return _checkpoints(process, instance)


def delete_checkpoint(call: Call, name: str, checkpoint: str) -> Checkpoints:
    """Give a checkpoint up; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        process, instance = _running(call, name)
        if all(tracked(process, disk.uuid or "", checkpoint) is None for disk in disks_of(process, instance)):
            finding = no_checkpoint("checkpoint", f"there is no checkpoint {checkpoint}")
            raise InvalidParameters("it cannot be done", FindingSet([finding]), instance=name)
        with transaction(call, name) as effects:
            forget = lambda: world.forget_checkpoint(name, checkpoint)  # noqa: E731
            effects.effect("checkpoint", forget, files=(process_key(name),))
            call.in_time()
        return _checkpoints(world.process(name) or process, instance)


def _running(call: Call, name: str) -> tuple[Process, Instance]:
    account = look(call.world, name)
    if account is None or account.process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    if not account.process.answering:
        call.world.advance(call.deadline.timeout())
        raise OutcomeUnknown("its process does not answer", instance=name, hint="look at it")
    if account.definition is None:
        raise RecordError("what it runs with is not known", instance=name, code="record-missing")
    return account.process, account.definition


def _is_sent(process: Process) -> bool:
    return process.sending is not None and not process.sending.phase.is_final


def _moment(
    world: World, effects: Transaction, name: str, wanted: Wanted, plans: Sequence[DiskPlan]
) -> tuple[_Picture, ...]:
    """The guest stands still while all its disks are looked at: nobody changes the world meanwhile."""
    with world.store.locked():
        if wanted.checkpoint is not None:
            idents = [plan.disk.uuid or "" for plan in plans]
            effects.effect("track", lambda: world.track(name, idents), undo=_forgets(world, name, NEXT))
        process = world.process(name)
        opened = {} if process is None else {backend.ident: backend for backend in process.backends}
        return tuple(_picture(plan, opened.get(plan.disk.uuid or "")) for plan in plans)


def _picture(plan: DiskPlan, opened: Backend | None) -> _Picture:
    path = plan.disk.path or ""
    try:
        size, blocks = read_disk(path if opened is None else opened_path(path, opened.identity), plan.disk.format)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise OperationFailed(f"cannot read {plan.disk.path}: {words}", code="not-copied") from error
    if plan.blocks is None:
        return _Picture(plan=plan, size=size, blocks=blocks, copied=size)
    # One that was written with zeros hides what the base has there.
    changed = {number: blocks.get(number, bytes(BLOCK)) for number in plan.blocks if number * BLOCK < size}
    return _Picture(plan=plan, size=size, blocks=changed, copied=_length(changed, size))


def _copy(call: Call, process: Process, wanted: Wanted, pictures: Sequence[_Picture], on_progress: OnProgress) -> None:
    """Let the time pass that it takes, and say how far it is."""
    total = sum(picture.copied for picture in pictures)
    budget = call.deadline.timeout()
    for done in _steps(total):
        if on_progress is not None:
            on_progress(Progress(phase="copying", done=done, total=total))
        if done < total:
            _room(call.world, wanted.target)
        if wanted.bandwidth and done < total:
            # Virtual time passes, and the deadline is one in real time.
            seconds = total / _REPORTS / wanted.bandwidth
            call.world.advance(min(seconds, budget))
            budget -= seconds
            if budget <= 0:
                raise DeadlineExceeded("it was not backed up in time", hint="give it more time")
        _still_lives(call.world, process)
        call.in_time()


def _room(world: World, target: str) -> None:
    number = errno.ENOSPC if not world.has_room(target) else 0 if os.path.isdir(target) else errno.ENOENT
    if number:
        raise OperationFailed(f"cannot write to {target}: {os.strerror(number)}", code="file-not-written")


def _steps(total: int) -> Iterator[int]:
    yield from (total * step // _REPORTS for step in range(_REPORTS + 1))


def _write(
    world: World, effects: Transaction, pictures: Sequence[_Picture], files: dict[str, str], *, compress: bool
) -> None:
    def write() -> None:
        for (part, path), picture in zip(files.items(), pictures, strict=True):
            write_part(part, path, picture.size, picture.blocks, picture.plan.base, compress=compress)

    with world.store.locked():
        effects.effect("file", write, undo=lambda: discard(files, published=False))
        effects.effect("publish", lambda: publish(files), undo=lambda: discard(files, published=True))


def _still_lives(world: World, process: Process) -> None:
    now = world.process(process.name)
    if now is None or now.pid != process.pid:
        raise OperationFailed("it has ended while its disks were backed up", code="not-copied")


def _forgets(world: World, name: str, checkpoint: str) -> Callable[[], None]:
    def forget() -> None:
        with world.store.locked():
            world.forget_checkpoint(name, checkpoint)

    return forget


def _part(path: str, ident: str) -> str:
    return os.path.join(os.path.dirname(path), f".{ident}.part")


def _length(blocks: dict[int, bytes], size: int) -> int:
    return sum(min(BLOCK, size - number * BLOCK) for number in blocks)


def _result(name: str, wanted: Wanted, pictures: Sequence[_Picture]) -> Backup:
    disks = (
        DiskBackup(
            device=picture.plan.disk.uuid or "",
            location=picture.plan.path,
            format="qcow2",
            size=picture.size,
            copied=picture.copied,
            base=picture.plan.base,
            lasting=wanted.checkpoint is not None and picture.plan.disk.format == "qcow2",
        )
        for picture in pictures
    )
    return Backup(
        name=name,
        mode="full" if wanted.since is None else "incremental",
        checkpoint=wanted.checkpoint,
        since=wanted.since,
        compressed=wanted.compress,
        disks=tuple(disks),
    )


def _checkpoints(process: Process, instance: Instance) -> Checkpoints:
    names = sorted({each.name for each in process.checkpoints if each.name != NEXT})
    found = (Checkpoint(name=name, disks=tuple(_rows(process, instance, name))) for name in names)
    return Checkpoints(name=process.name, checkpoints=tuple(each for each in found if each.disks))


def _rows(process: Process, instance: Instance, checkpoint: str) -> Iterator[DiskCheckpoint]:
    for disk in disks_of(process, instance):
        found = tracked(process, disk.uuid or "", checkpoint)
        device = process.device(disk.uuid or "")
        if found is not None:
            yield DiskCheckpoint(
                device=found.ident,
                changed=_length(dict.fromkeys(found.blocks, b""), 0 if device is None else device.size),
                lasting=found.lasting,
                usable=found.usable,
                detail="" if found.usable else DEFECT,
            )
