"""Snapshots of modelled guests: taken, reverted and deleted, each a transaction on the modelled world."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import attrs

from hvcore import (
    Cause,
    Finding,
    FindingSet,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    Progress,
    Snapshot,
    SnapshotDisk,
    SnapshotListing,
    Transition,
    WrongState,
)
from hvcore_fake import guest
from hvcore_fake.account import Account, look, snapshots_key
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.life import launch
from hvcore_fake.record import Process
from hvcore_fake.recovery import settle
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.world import World, process_keys

OnProgress = Callable[[Progress], object] | None

_KEEPABLE = (InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.PRELAUNCH)


@attrs.frozen(kw_only=True)
class Kept:
    """One snapshot: what is told of it, the definition, and the guest if its memory was kept."""

    told: Snapshot
    instance: Instance
    process: Process | None = None


@attrs.frozen(kw_only=True)
class KeptOfInstance:
    """All snapshots of an instance, the oldest first."""

    snapshots: tuple[Kept, ...] = ()


def create(
    call: Call,
    name: str,
    instance: Instance | None,
    snapshot: str,
    memory: bool | None,
    external: bool,
    on_progress: OnProgress,
) -> Snapshot:
    """Take a snapshot; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        account = look(world, name)
        process = None if account is None else account.process
        definition = instance if process is None or account is None else account.definition
        if process is None and memory:
            raise NotRunning("it is not running, and has no memory to keep", instance=name, hint="start it first")
        if definition is None:
            raise NotRunning(
                "it is not running, and what it is is not known", instance=name, hint="give its definition"
            )
        known = _kept(world, name)
        if any(one.told.name == snapshot for one in known):
            _refuse([_finding("snapshot-exists", f"there is a {snapshot} already")])
        other = [one.told.name for one in known if one.told.external is not external]
        if other:
            _refuse([_finding("snapshot-kinds", f"it has snapshots of the other kind: {', '.join(other)}")])
        state = InstanceState.STOPPED if account is None else account.state
        frozen = None
        if process is not None:
            _keepable(call, process)
            if memory is not False and not external:
                frozen = _frozen(world, process)
        tops = {disk.uuid: disk.overlay for one in known for disk in one.told.disks}
        disks = tuple(
            SnapshotDisk(
                uuid=disk.uuid or "",
                path=tops.get(disk.uuid or "") or disk.path or "",
                overlay=f"{disk.path}.{snapshot}.overlay" if external else "",
            )
            for disk in definition.disks
        )
        told = Snapshot(
            name=snapshot,
            created=world.clock(),
            state=state,
            memory=frozen is not None,
            disks=disks,
            external=external,
        )
        after = (*known, Kept(told=told, instance=definition, process=frozen))
        with transaction(call, name) as effects:
            effects.effect("snapshot", lambda: _write(world, name, after), files=(snapshots_key(name),))
            _say(on_progress, "saving", frozen)
            call.in_time()
    return told


def listing(call: Call, name: str) -> SnapshotListing:
    """List the snapshots; see the hook of the same name."""
    return SnapshotListing(snapshots=tuple(one.told for one in _kept(call.world, name)))


def revert(call: Call, name: str, snapshot: str, on_progress: OnProgress) -> Transition:
    """Go back to a snapshot; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        wanted = _find(world, name, snapshot)
        process = None if before is None else before.process
        _refuse_below(world, name, wanted)
        if process is not None and wanted.process is None:
            raise WrongState("a snapshot without memory cannot be reverted while it is alive", hint="stop it first")
        if process is not None:
            _keepable(call, process)
            _compare(wanted, before)
        elif wanted.process is not None:
            _refuse([*check_disks(wanted.instance), *check_use(world, wanted.instance)])
        with transaction(call, name) as effects:
            if wanted.process is not None:
                if process is None:
                    launch(world, effects.effect, wanted.instance, True, call.in_time)
                load = _loader(world, name, wanted.process)
                effects.effect("load", load, files=process_keys(name))
                if wanted.told.state is InstanceState.RUNNING:
                    effects.effect("resume", lambda: world.resume(name), files=process_keys(name))
            if wanted.told.external:
                effects.effect("snapshot", lambda: _renew(world, name, wanted), files=(snapshots_key(name),))
            _say(on_progress, "loading", wanted.process)
            call.in_time()
    state = None if before is None else before.state
    after = state if wanted.process is None else wanted.told.state
    return Transition(name=name, before=state, after=after, changed=True, detail=f"as it was in {snapshot}")


def delete(call: Call, name: str, snapshot: str, on_progress: OnProgress) -> Snapshot:
    """Give up a snapshot; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        wanted = _find(world, name, snapshot)
        _refuse_below(world, name, wanted)
        left = tuple(one for one in _kept(world, name) if one.told.name != snapshot)
        with transaction(call, name) as effects:
            effects.effect("snapshot", lambda: _write(world, name, left), files=(snapshots_key(name),))
            _say(on_progress, "deleting", wanted.process)
            call.in_time()
    return wanted.told


def _kept(world: World, name: str) -> tuple[Kept, ...]:
    found = world.store.read(snapshots_key(name), KeptOfInstance)
    return () if found is None else found.snapshots


def _write(world: World, name: str, snapshots: tuple[Kept, ...]) -> None:
    if snapshots:
        world.store.write(snapshots_key(name), KeptOfInstance(snapshots=snapshots))
    else:
        world.store.remove(snapshots_key(name))


def _renew(world: World, name: str, wanted: Kept) -> None:
    """New overlays take the place of those of a snapshot."""
    token = uuid.uuid4().hex[:8]
    disks = tuple(
        attrs.evolve(disk, overlay=f"{disk.path}.{wanted.told.name}-{token}.overlay") for disk in wanted.told.disks
    )
    fresh = attrs.evolve(wanted, told=attrs.evolve(wanted.told, disks=disks))
    _write(world, name, tuple(fresh if one.told.name == wanted.told.name else one for one in _kept(world, name)))


def _find(world: World, name: str, snapshot: str) -> Kept:
    known = _kept(world, name)
    found = next((one for one in known if one.told.name == snapshot), None)
    if found is None:
        has = ", ".join(one.told.name for one in known) or "none"
        _refuse([_finding("no-such-snapshot", f"it has no {snapshot}, it has {has}")])
    assert found is not None  # noqa: S101 - refused before
    return found


def overlays_of(world: World, name: str) -> tuple[str, ...]:
    """The overlays of the external snapshots of an instance, the newest last."""
    return tuple(disk.overlay for one in _kept(world, name) if one.told.external for disk in one.told.disks)


def refuse_overlays(world: World, name: str) -> None:
    """Refuse to forget an instance whose disks consist of several images.

    Raises:
        WrongState: it has external snapshots.
    """
    having = [one.told.name for one in _kept(world, name) if one.told.external]
    if having:
        raise WrongState(f"it has external snapshots: {', '.join(having)}", instance=name, hint="delete them first")


def _refuse_below(world: World, name: str, wanted: Kept) -> None:
    """Refuse what is to be done with an external snapshot upon which another one lies."""
    newest = _kept(world, name)[-1].told.name
    if wanted.told.external and newest != wanted.told.name:
        _refuse([_finding("snapshot-order", f"{newest} lies upon it, and has to be deleted first")])


def _keepable(call: Call, process: Process) -> None:
    if not process.answering:
        call.world.advance(call.deadline.timeout())
        raise OutcomeUnknown("its process does not answer", instance=process.name, hint="look at it")
    if process.state not in _KEEPABLE:
        raise WrongState(f"it is {process.state}", instance=process.name, hint="resume or stop it")


def _frozen(world: World, process: Process) -> Process:
    if process.state is InstanceState.RUNNING:
        return guest.freeze(process, world.clock(), InstanceState.PAUSED, Cause.HOST_PAUSE)
    return process


def _loader(world: World, name: str, kept: Process) -> Callable[[], None]:
    def load() -> None:
        world.load(name, kept)

    return load


def _compare(wanted: Kept, now: Account | None) -> None:
    definition = None if now is None else now.definition
    findings = []
    for what in ("memory", "vcpus"):
        was, is_now = getattr(wanted.instance, what), getattr(definition, what, None)
        if was != is_now:
            findings.append(Finding(code="differs", path=what, message=f"was {was} then, and is {is_now}"))
    _refuse(findings)


def _finding(code: str, message: str) -> Finding:
    return Finding(code=code, path="snapshot", message=message)


def _refuse(findings: list[Finding]) -> None:
    if findings:
        raise InvalidParameters("it cannot be done with that snapshot", FindingSet(findings))


def _say(on_progress: OnProgress, phase: str, process: Process | None) -> None:
    size = 0 if process is None else process.memory
    if on_progress is not None:
        on_progress(Progress(phase=phase, done=size, total=size))
