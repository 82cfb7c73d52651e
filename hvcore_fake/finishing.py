"""How a modelled migration ends on each side: what is left to do by what is seen there, also after a crash."""

from __future__ import annotations

import attrs

from hvcore import Cause, InstanceState, MigrationPhase, WrongState
from hvcore_fake.account import Account, account_keys, look, record_key
from hvcore_fake.copied import keep_images
from hvcore_fake.life import Effects, at_once, finish, remove_account
from hvcore_fake.link import connection_key
from hvcore_fake.moving import OVER
from hvcore_fake.record import RuntimeRecord
from hvcore_fake.world import World, process_key, process_keys

_TRUTH = "look at both sides: the guest may run on one of them only"


def settle_sides(world: World, name: str) -> tuple[str, str, str] | None:
    """Put in order what no journal tells of: a migration that has ended, and nobody has finished.

    Returns:
        The operation, the outcome and a detail; ``None`` when there is nothing.
    """
    account = look(world, name)
    if account is None:
        return None
    record, process = account.record, account.process
    if process is None:
        if record is None or not record.incoming:
            return None
        remove_account(world, name, (connection_key(name), process_key(name), *account_keys(name)))
        return "accept_instance", "undone", "its source is gone, and it had not got all of it"
    if process.state is InstanceState.INCOMING and not world.store.exists(connection_key(name)):
        world.kill_incoming(name)
        remove_account(world, name, account_keys(name))
        return "accept_instance", "undone", "no source had connected"
    if process.state is InstanceState.PAUSED and process.cause is Cause.MIGRATION:
        return "accept_instance", "failed", "all of it has arrived; migrate it once more from its source to finish"
    if record is not None and record.incoming and process.state is not InstanceState.INCOMING:
        if world.rest_of(process):
            return "accept_instance", "failed", "some of its memory is still on its source; migrate it once more"
        not_incoming(world, name)
        return "accept_instance", "completed", "all of it has arrived"
    sending = process.sending
    if sending is None:
        return None
    if sending.phase in OVER:
        return "migrate_instance", "failed", "it has gone over, and some of its memory has not; migrate it once more"
    if sending.phase is MigrationPhase.COMPLETED:
        return "migrate_instance", "failed", "all of it has gone over; migrate it once more to finish"
    world.cancel(name)
    left = world.process(name)
    if left is None or left.sending is None or not left.sending.phase.is_final:
        return "migrate_instance", "failed", "it is going over now; try again"
    world.send(name, None)
    return "migrate_instance", "undone", "it stays on this host"


def settle_source(world: World, name: str, success: bool) -> bool:
    """Finish what a source that was killed while it finished had begun; says whether it was done."""
    try:
        todo = source_todo(look(world, name), name, success)
    except WrongState:
        return False
    if todo:
        carry_out_source(world, name, todo, at_once)
    return True


def source_todo(account: Account | None, name: str, success: bool) -> str:
    """What is left to do on the source: ``gone``, ``stay``, or nothing.

    Raises:
        WrongState: what is seen contradicts the belief.
    """
    if account is None or account.process is None:
        moved = account is not None and account.reason.cause is Cause.MIGRATION
        if not success and moved:
            raise _contradiction(name, "it has moved to another host, and does not stay")
        return "gone" if success and account is not None and account.listed else ""
    sending = account.process.sending
    phase = MigrationPhase.NONE if sending is None else sending.phase
    if success:
        if phase is not MigrationPhase.COMPLETED:
            raise _contradiction(name, f"it has not gone over: its migration is {phase}")
        return "gone"
    if phase in (MigrationPhase.COMPLETED, MigrationPhase.DEVICE, *OVER):
        raise _contradiction(name, f"it may run elsewhere: its migration is {phase}")
    return "" if sending is None else "stay"


def carry_out_source(world: World, name: str, todo: str, effect: Effects) -> None:
    """Do what is left to do on the source."""
    if todo == "stay":
        effect("cancel", lambda: world.cancel(name), files=process_keys(name))
        effect("forget", lambda: world.send(name, None), files=(process_key(name),))
        return
    # What has been killed is not brought back: it goes on as far as it can.
    effect("kill", lambda: world.quit(name), undo=lambda: _released(world, name))
    finish(world, name, effect, Cause.MIGRATION, "it has moved to another host")


def _released(world: World, name: str) -> None:
    if world.process(name) is None:
        settle_source(world, name, success=True)


def destination_todo(account: Account | None, name: str, success: bool, rest: str) -> str:
    """What is left to do on the destination: ``run``, ``finish`` what runs already, ``remove``, or nothing.

    Args:
        account: what is known of it.
        name: its name.
        success: what the caller believes.
        rest: what of its memory is not here, as `World.rest_of` says.
    """
    process = None if account is None else account.process
    incoming = account is not None and account.record is not None and account.record.incoming
    arrived = process is not None and process.state is InstanceState.PAUSED and process.cause is Cause.MIGRATION
    if success:
        if process is None:
            raise _contradiction(name, "it is not here")
        if process.state is InstanceState.INCOMING:
            raise _contradiction(name, "it has not arrived completely")
        if arrived:
            return "run"
        return "finish" if incoming and not rest else ""
    if process is not None and (rest or (not arrived and process.state is not InstanceState.INCOMING)):
        raise _contradiction(name, f"it has arrived, and is {process.state}")
    return "remove" if process is not None or incoming else ""


def _contradiction(name: str, what: str) -> WrongState:
    return WrongState(what, instance=name, hint=_TRUTH)


def not_incoming(world: World, name: str) -> None:
    """Note that it has been told to run."""
    record = world.store.read(record_key(name), RuntimeRecord)
    if record is not None:
        keep_images(record.images)
        world.store.write(record_key(name), attrs.evolve(record, incoming=False, images=()))


def settle_destination(world: World, name: str) -> bool:
    """Finish what a destination that was killed while it finished had begun; says whether it was done."""
    account = look(world, name)
    if account is None or account.record is None or not account.record.incoming:
        return True
    process = account.process
    if process is None:
        remove_account(world, name, (connection_key(name), process_key(name), *account_keys(name)))
        return True
    if process.state is InstanceState.INCOMING or process.cause is Cause.MIGRATION or world.rest_of(process):
        return False
    not_incoming(world, name)
    return True
