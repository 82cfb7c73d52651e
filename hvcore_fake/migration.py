"""Moving an instance between two modelled hosts, each operation a transaction on one of the two worlds."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs

from hvcore import (
    AlreadyRunning,
    Cause,
    Finding,
    FindingSet,
    HostError,
    Instance,
    InstanceState,
    InvalidParameters,
    MigrationCompatibility,
    MigrationInfo,
    MigrationPhase,
    MigrationPolicy,
    MigrationStatus,
    MigrationTarget,
    NotRunning,
    RecordError,
    Transition,
    WrongState,
    as_plain,
)
from hvcore_fake.account import Account, account_keys, directory_key, look, record_key
from hvcore_fake.copied import (
    check_choice,
    check_copies,
    disks_to_copy,
    make_images,
    plan_images,
    remove_images,
)
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.finishing import carry_out_source, destination_todo, not_incoming, source_todo
from hvcore_fake.life import remove_account, write_record
from hvcore_fake.link import connection_key, takes
from hvcore_fake.record import Process
from hvcore_fake.recovery import settle
from hvcore_fake.sending import begin, disks_are_there, gives_up, goes_over_early, status, steered
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.travel import RUN_STATES, describe, read_info
from hvcore_fake.world import World, process_key, process_keys

_DETAILS = {
    "": "it has arrived",
    "coming": "it runs here; the rest of its memory is still being fetched",
    "cut-off": "it is here; the rest of its memory is cut off",
}

_TRUTH = "look at both sides: the guest may run on one of them only"


def compatible(source: str, destination: str) -> MigrationCompatibility:
    """Whether two versions can exchange an instance: those of one major version can."""
    if source.partition(".")[0] != destination.partition(".")[0]:
        return MigrationCompatibility(safe=False, reason="they differ in their first number")
    return MigrationCompatibility(safe=True, reason="" if source == destination else "the versions differ")


def information(call: Call, name: str) -> MigrationInfo:
    """What the destination needs to know; see the hook of the same name."""
    account = look(call.world, name)
    process = _living(account, name)
    definition = None if account is None else account.definition
    if definition is None:
        raise RecordError("what it runs with is not known", instance=name, code="record-missing")
    return describe(process, definition)


def accept(call: Call, info: MigrationInfo, policy: MigrationPolicy, foreign: bool) -> MigrationTarget:
    """Prepare the destination; see the hook of the same name."""
    travel, instance, findings = read_info(info, foreign)
    if not findings:
        copied = disks_to_copy(policy, instance)
        others = attrs.evolve(instance, disks=tuple(disk for disk in instance.disks if disk not in copied))
        findings = [*check_disks(others), *check_use(call.world, instance)]
        findings += check_copies(policy, instance, travel.images)
    if findings:
        raise InvalidParameters("this host cannot take the instance", FindingSet(findings))
    world, name = call.world, info.instance
    if _is_cut_off(world, look(world, name), instance):
        # It listens again for the rest of a guest that runs here.
        return MigrationTarget(address=world.address(name))
    _refuse_alive(look(world, name))
    with world.store.locked(call.deadline):
        settle(world, name)
        _refuse_alive(look(world, name))
        _sweep(world, name)
        made, images = plan_images(policy, instance, travel.images)
        with transaction(call, name, {"made": as_plain(made)}) as effects:
            directory = directory_key(name)
            call.in_time()
            effects.effect("directory", lambda: world.store.make(directory), files=(directory,))
            if made:
                effects.effect("image", lambda: make_images(made, images, copied), undo=lambda: remove_images(made))
            held = (connection_key(name), *process_keys(name))
            takes = tuple(disk.uuid or "" for disk in copied)
            effects.effect("process", lambda: world.spawn(instance, incoming=True, takes=takes), files=held)
            record = functools.partial(write_record, world, instance, incoming=True, images=made)
            effects.effect("record", record, files=(record_key(name),))
            call.in_time()
        return MigrationTarget(address=world.address(name))


def send(call: Call, name: str, target: MigrationTarget, policy: MigrationPolicy) -> MigrationStatus:
    """Begin to send; see the hook of the same name."""
    world = call.world
    findings = [*_address(target)]
    if findings:
        raise InvalidParameters("it cannot be sent like this", FindingSet(findings), instance=name)
    with world.store.locked(call.deadline):
        settle(world, name)
        account = look(world, name)
        process = _living(account, name)
        if process.sending is not None and process.sending.phase is MigrationPhase.POSTCOPY_PAUSED:
            with transaction(call, name) as effects:
                effects.effect("send", lambda: world.send_rest(name), files=(process_key(name),))
            return _status(world, name)
        if process.sending is not None and not process.sending.phase.is_final:
            raise WrongState("it is being migrated already", instance=name, hint="wait for it, or cancel it")
        if process.state.value not in RUN_STATES or process.cause is Cause.MIGRATION:
            raise WrongState(f"it cannot be sent: it is {process.state}", instance=name, hint=_TRUTH)
        definition = None if account is None else account.definition
        disks, size = _copied(process, definition, policy)
        if set(disks) - set(takes(target.address)):
            message = f"what listens at {target.address} does not take the disks that are to be copied"
            raise HostError(message, instance=name, hint="give both sides the same policy")
        sending = begin(process, target.address, policy, world.clock(), disks, size)
        with transaction(call, name) as effects:
            effects.effect("send", lambda: world.send(name, sending, live=policy.live), files=process_keys(name))
        return _status(world, name)


def progress(call: Call, name: str) -> MigrationStatus:
    """How it goes; see the hook of the same name."""
    return status(_living(look(call.world, name), name), call.world.clock())


def go_on(call: Call, name: str, switch_over: bool, wait: float) -> MigrationStatus:
    """Do what is due; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        process = _living(look(world, name), name)
        sending = process.sending
        over = False
        if sending is not None and not sending.phase.is_final:
            now = world.clock()
            change = steered(sending, now)
            over = switch_over and sending.phase is MigrationPhase.PRE_SWITCHOVER
            ready = disks_are_there(sending, now)
            early = goes_over_early(process, sending, now)
            if change != sending or over or ready or early or gives_up(sending, now):
                with transaction(call, name) as effects:
                    if ready:
                        effects.effect("steer", lambda: world.begin_memory(name), files=(process_key(name),))
                    elif early:
                        # A guest that has gone over does not come back.
                        effects.effect("steer", lambda: world.go_over_early(name))
                    elif gives_up(sending, now):
                        effects.effect("steer", lambda: world.cancel(name), files=process_keys(name))
                    elif change != sending:
                        effects.effect("steer", lambda: world.send(name, change), files=(process_key(name),))
                    if over:
                        effects.effect("switch-over", lambda: world.switch_over(name), files=(process_key(name),))
            if wait > 0 and not over:
                world.wait_for_phase(name, min(wait, call.deadline.timeout()))
        return _status(world, name)


def cancel(call: Call, name: str) -> MigrationStatus:
    """Cancel it; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        _living(look(world, name), name)
        with transaction(call, name) as effects:
            effects.effect("cancel", lambda: world.cancel(name), files=process_keys(name))
        return _status(world, name)


def finish_source(call: Call, name: str, success: bool) -> Transition:
    """Finish on the source; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        state = None if before is None else before.state
        todo = source_todo(before, name, success)
        if todo:
            with transaction(call, name, {"success": success}) as effects:
                carry_out_source(world, name, todo, effects.effect)
        after = look(world, name)
    return Transition(
        name=name,
        before=state,
        after=None if after is None else after.state,
        changed=bool(todo),
        detail="it has moved to another host" if success else "it stays on this host",
    )


def finish_destination(call: Call, info: MigrationInfo, success: bool, foreign: bool) -> Transition:
    """Finish on the destination; see the hook of the same name."""
    world, name = call.world, info.instance
    travel, _, findings = read_info(info, foreign)
    if findings:
        raise InvalidParameters("what the source sent is damaged", FindingSet(findings))
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        state = None if before is None else before.state
        process = None if before is None else before.process
        rest = "" if process is None else world.rest_of(process)
        todo = destination_todo(before, name, success, rest)
        if todo == "finish":
            with transaction(call, name) as effects:
                effects.effect("record", lambda: not_incoming(world, name), files=(record_key(name),))
        elif todo == "run":
            was, because = InstanceState(travel.state), travel.cause
            with transaction(call, name) as effects:
                effects.effect("resume", lambda: world.let_in(name, was, because), files=process_keys(name))
                if not rest:
                    effects.effect("record", lambda: not_incoming(world, name), files=(record_key(name),))
        elif todo:
            with transaction(call, name) as effects:
                effects.effect("kill", lambda: world.kill_incoming(name))
                effects.effect("removal", lambda: remove_account(world, name, account_keys(name)))
        after = look(world, name)
    return Transition(
        name=name,
        before=state,
        after=None if after is None else after.state,
        changed=bool(todo),
        detail=_DETAILS[rest] if success else "nothing of it is left here",
    )


def _copied(process: Process, definition: Instance | None, policy: MigrationPolicy) -> tuple[tuple[str, ...], int]:
    """The disks that are copied, and how many bytes they are.

    Raises:
        InvalidParameters: the instance has no such disk.
    """
    if definition is None or not policy.copy_disks:
        return (), 0
    findings = [*check_choice(policy, definition)]
    if findings:
        raise InvalidParameters("it cannot be sent like this", FindingSet(findings), instance=process.name)
    disks = tuple(disk.uuid or "" for disk in disks_to_copy(policy, definition))
    sizes = (device.size for device in process.attached if device.ident in disks)
    return disks, sum(sizes)


def _status(world: World, name: str) -> MigrationStatus:
    return status(_living(look(world, name), name), world.clock())


def _sweep(world: World, name: str) -> None:
    """What an earlier arrival of the same name has left."""
    if world.process(name) is None:
        world.store.remove(connection_key(name), process_key(name))


def _is_cut_off(world: World, account: Account | None, instance: Instance) -> bool:
    record, process = (None, None) if account is None else (account.record, account.process)
    if record is None or process is None or not record.incoming or record.instance.uuid != instance.uuid:
        return False
    return world.rest_of(process) == "cut-off"


def _address(target: MigrationTarget) -> Iterator[Finding]:
    if not target.address.startswith("/") or "\0" in target.address or target.port is not None:
        message = "is not the path that a modelled destination listens at"
        yield Finding(code="invalid-value", path="target.address", message=message)


def _refuse_alive(account: Account | None) -> None:
    if account is not None and account.process is not None:
        message = f"it is alive here as process {account.process.pid}"
        raise AlreadyRunning(message, instance=account.name, hint="stop it first")


def _living(account: Account | None, name: str) -> Process:
    if account is None or account.process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    return account.process
