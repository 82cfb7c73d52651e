"""Starting, stopping and everything between, each operation a transaction on the modelled world."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hvcore import (
    AlreadyRunning,
    Cause,
    DeadlineExceeded,
    Finding,
    FindingSet,
    Instance,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    RecordError,
    Transition,
    UnsupportedOperation,
    WrongState,
    format_seconds,
)
from hvcore_fake.account import Account, account_keys, definition_key, look
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.life import finish, launch, put_in_order
from hvcore_fake.parameters import without_secrets
from hvcore_fake.record import Process
from hvcore_fake.recovery import settle
from hvcore_fake.snapshots import refuse_overlays
from hvcore_fake.transaction import Call, Transaction, journal_key, transaction
from hvcore_fake.world import World, process_key

PRESS_AGAIN = 5.0
"""Seconds after which the power button is pressed again: a guest that was still booting missed the first."""

_LONGEST_WAIT = 7 * 86400.0

_RUNS: tuple[InstanceState, ...] = (InstanceState.RUNNING,)

_ASKABLE = (InstanceState.RUNNING, InstanceState.SHUTTING_DOWN, InstanceState.PAUSED)
"""States in which a guest can notice its power button; a paused one is let run for it."""

_MOVING = (InstanceState.INCOMING, InstanceState.MIGRATING, InstanceState.POSTMIGRATE)

_STILL: tuple[InstanceState, ...] = (InstanceState.PAUSED, InstanceState.PRELAUNCH)


def start(call: Call, instance: Instance, paused: bool) -> Transition:
    """Start an instance; see the hook of the same name."""
    world, name = call.world, instance.name
    if not world.store.exists(journal_key(name)):
        # Before the first file of the world is made: what is refused leaves nothing behind.
        _refuse_alive(look(world, name))
        _refuse_host(check_disks(instance))
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        _refuse_alive(before)
        _refuse_host([*check_disks(instance), *check_use(world, instance)])
        with transaction(call, name) as effects:
            launch(world, effects.effect, instance, paused, call.in_time)
    after = InstanceState.PRELAUNCH if paused else InstanceState.RUNNING
    return Transition(name=name, before=_state(before), after=after, changed=True, detail="started")


def stop(call: Call, name: str, force: bool, grace: float, retry: bool, escalate: bool) -> Transition:
    """Stop an instance; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        if before is None or not before.listed:
            return _unchanged(name, before, "it was not running")
        if before.process is None:
            with transaction(call, name) as effects:
                finish(world, name, effects.effect)
            return _unchanged(name, before, "it was not running; what it had left was cleaned up")
        with transaction(call, name) as effects:
            asked = not force and _power_off(call, effects, before.process, grace, retry, escalate)
            if not asked:
                effects.effect("kill", lambda: world.quit(name), undo=lambda: put_in_order(world, name))
            detail = "the guest powered off" if asked else "stopped by force"
            if not force and not asked:
                detail = f"the guest did not power off within {format_seconds(grace)}; stopped by force"
            finish(world, name, effects.effect, None if asked else Cause.HOST_FORCE_STOP, detail)
    return Transition(name=name, before=before.state, after=InstanceState.STOPPED, changed=True, detail=detail)


def reboot(call: Call, name: str, instance: Instance | None, mode: str, grace: float) -> Transition:
    """Restart an instance; see the hook of the same name."""
    if mode == "reset":
        return control(call, name, "reset")
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        process = _living(before, name)
        definition = instance or (before.definition if before else None)
        if definition is None:
            raise RecordError(
                "what it runs with is not known", hint="give the definition", instance=name, code="record-missing"
            )
        _refuse_host([*check_disks(definition), *check_use(world, definition)])
        with transaction(call, name, {"process": process.pid}) as effects:
            effects.effect(
                "definition",
                lambda: world.store.write(definition_key(name), without_secrets(definition)),
                files=(definition_key(name),),
            )
            if mode == "soft":
                _power_off(call, effects, process, grace, retry=True, escalate=False)
            else:
                effects.effect("kill", lambda: world.quit(name), undo=lambda: put_in_order(world, name))
            launch(world, effects.effect, definition, False, call.in_time)
    return Transition(name=name, before=_state(before), after=InstanceState.RUNNING, changed=True, detail=mode)


def control(call: Call, name: str, effect: str) -> Transition:
    """Pause, resume or reset the guest; see the hooks of these names."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        process = _living(before, name)
        if not process.answering:
            world.advance(call.deadline.timeout())
            raise OutcomeUnknown(f"its process took {effect} and did not answer", instance=name, hint="look at it")
        do, after = _control(world, process, effect)
        if do is None:
            return _unchanged(name, before, f"it was {process.state} already")
        with transaction(call, name) as effects:
            effects.effect(effect, do, files=(process_key(name),))
    return Transition(name=name, before=process.state, after=after, changed=True, detail=effect)


def cleanup(call: Call, name: str) -> Transition:
    """Forget an instance that is not alive; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        _refuse_alive(before)
        refuse_overlays(world, name)
        kept = [key for key in account_keys(name) if world.store.exists(key)]
        if kept:
            with transaction(call, name) as effects:
                effects.effect("removal", lambda: world.store.remove(*kept))
    return Transition(name=name, before=_state(before), after=None, changed=bool(kept), detail="forgotten")


def _power_off(call: Call, effects: Transaction, process: Process, grace: float, retry: bool, escalate: bool) -> bool:
    """Ask the guest to power off and give it its time; says whether it did."""
    world, name = call.world, process.name
    if process.state not in _ASKABLE:
        if escalate:
            return False
        raise UnsupportedOperation(
            f"the guest cannot be asked to power off: it is in state {process.state}",
            hint="resume it, or stop it by force",
            instance=name,
        )
    outstanding = process.pressed is not None and world.clock() - process.pressed < PRESS_AGAIN
    if retry or not outstanding:
        effects.effect("button", lambda: world.press(name), undo=lambda: put_in_order(world, name))
    effects.effect("wait", lambda: _wait(world, name, grace), undo=lambda: put_in_order(world, name))
    if world.process(name) is None or call.lying:
        return True
    if not escalate:
        raise DeadlineExceeded(
            f"the guest did not power off within {format_seconds(grace)} and runs on",
            hint="give it more time, or stop it by force",
            instance=name,
        )
    return False


def _wait(world: World, name: str, grace: float) -> None:
    left = min(grace, _LONGEST_WAIT)
    while left > 0 and not world.wait_for_end(name, min(left, PRESS_AGAIN)):
        left -= PRESS_AGAIN
        if left > 0:
            world.press(name)


def _control(world: World, process: Process, effect: str) -> tuple[Callable[[], object] | None, InstanceState]:
    name, state = process.name, process.state
    if state in _MOVING or process.cause is Cause.MIGRATION:
        hint = "finish the migration first, or cancel it"
        raise WrongState(f"{effect} makes no sense: it is moving between two hosts", instance=name, hint=hint)
    if effect == "reset":
        running = state is InstanceState.RUNNING
        return (lambda: world.reset(name)), state if running else InstanceState.PRELAUNCH
    do, done, after = world.resume, _RUNS, InstanceState.RUNNING
    possible = (*_STILL, InstanceState.IO_ERROR)
    if effect == "pause":
        do, done, possible, after = world.pause, _STILL, _RUNS, InstanceState.PAUSED
    if state in done:
        return None, state
    if state not in possible:
        raise WrongState(f"{effect} makes no sense: it is in state {state}", instance=name, hint="reset or stop it")
    return (lambda: do(name)), after


def _living(account: Account | None, name: str) -> Process:
    if account is None or account.process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    return account.process


def _refuse_alive(account: Account | None) -> None:
    if account is not None and account.process is not None:
        raise AlreadyRunning(
            f"it is alive as process {account.process.pid}", instance=account.name, hint="stop it first"
        )


def _refuse_host(findings: Iterable[Finding]) -> None:
    found = FindingSet(findings)
    if not found.ok:
        raise InvalidParameters("this host cannot run the definition", found)


def _state(account: Account | None) -> InstanceState | None:
    return None if account is None else account.state


def _unchanged(name: str, account: Account | None, detail: str) -> Transition:
    return Transition(name=name, before=_state(account), after=_state(account), changed=False, detail=detail)
