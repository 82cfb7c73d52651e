"""How the life of an instance begins and ends: the effects of a start, and of whatever ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Protocol

from hvcore import Cause, Instance, InstanceState, RecordError, StateReason
from hvcore_fake.account import ENDINGS, Account, definition_key, directory_key, ending_key, look, record_key
from hvcore_fake.copied import remove_images
from hvcore_fake.parameters import without_secrets
from hvcore_fake.record import Ending, MadeImage, RuntimeRecord
from hvcore_fake.world import World, process_keys


class Effects(Protocol):
    """Carries out one effect: as a step of a journal, or at once."""

    def __call__(
        self,
        name: str,
        do: Callable[[], object],
        *,
        files: Iterable[str] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Carry out the effect ``name``."""


def at_once(
    name: str, do: Callable[[], object], *, files: Iterable[str] = (), undo: Callable[[], None] | None = None
) -> None:
    """Carry out an effect without a journal: what puts things in order can itself be repeated."""
    del name, files, undo
    do()


def nothing() -> None:
    """Where no deadline counts."""


def launch(
    world: World, effect: Effects, instance: Instance, paused: bool, in_time: Callable[[], None] = nothing
) -> None:
    """Begin a life: directory, process, record, and the guest's first instruction.

    Args:
        world: where.
        effect: carries out each effect.
        instance: the definition.
        paused: leave out the last.
        in_time: raises when it has become too late.
    """
    name = instance.name
    directory = directory_key(name)
    records = (record_key(name), definition_key(name), ending_key(name))
    in_time()
    effect("directory", lambda: world.store.make(directory), files=(directory,))
    effect("process", lambda: world.spawn(instance), files=process_keys(name))
    effect("record", lambda: write_record(world, instance), files=records)
    if not paused:
        effect("resume", lambda: world.resume(name), files=process_keys(name))
    in_time()


def finish(
    world: World,
    name: str,
    effect: Effects = at_once,
    cause: Cause | None = None,
    detail: str = "",
    saved_as: str | None = None,
) -> None:
    """End a life whose process is gone: write down why, and remove what it held.

    Args:
        world: where.
        name: the instance.
        effect: carries out each effect.
        cause: why it ended, when its events need not be asked.
        detail: the same for people.
        saved_as: which save ended it, if one did.
    """
    data = f"{ENDINGS}{name}/"
    held = (record_key(name), definition_key(name), directory_key(name))
    effect("ending", lambda: _write_ending(world, name, cause, detail, saved_as), files=(ending_key(name), data))
    effect("removal", lambda: remove_account(world, name, held), files=held)


def remove_account(world: World, name: str, keys: Iterable[str]) -> None:
    """Remove what is kept about an instance, and before it the images of a guest that has never run here."""
    with contextlib.suppress(RecordError):
        record = world.store.read(record_key(name), RuntimeRecord)
        remove_images(record.images if record is not None else ())
    world.store.remove(*keys)


def put_in_order(world: World, name: str) -> None:
    """After a stop that failed: an instance that lives runs on; one that does not is stopped, and clean."""
    if world.process(name) is not None:
        world.forget_press(name)
    elif world.store.exists(record_key(name)):
        finish(world, name)
    else:
        world.store.remove(directory_key(name))


def write_record(
    world: World, instance: Instance, *, incoming: bool = False, images: tuple[MadeImage, ...] = ()
) -> None:
    """Write down what an instance runs with, and that it has not ended."""
    process = world.process(instance.name)
    record = RuntimeRecord(
        instance=without_secrets(instance),
        pid=0 if process is None else process.pid,
        events_before=world.events.last if process is None else process.events_before,
        boot_id=world.boot,
        incoming=incoming,
        images=images,
    )
    world.store.write(record_key(instance.name), record)
    world.store.remove(definition_key(instance.name), ending_key(instance.name))


def _write_ending(world: World, name: str, cause: Cause | None, detail: str, saved_as: str | None) -> None:
    account = look(world, name)
    known = account if account is not None and account.listed else None
    if known is None and cause is None:
        return
    if known is not None and known.process is None and cause is None:
        state, reason = known.state, known.reason
    else:
        reason = StateReason(cause=cause or Cause.HOST_STOP, detail=detail, since=world.clock(), boot_id=world.boot)
        state = InstanceState.STOPPED if saved_as is None else InstanceState.SAVED
    definition = _next_definition(world, name, known)
    uuid = None if definition is None else definition.uuid
    ending = Ending(state=state, reason=reason, uuid=uuid, instance=definition, saved_as=saved_as)
    world.store.write(ending_key(name), ending)


def _next_definition(world: World, name: str, account: Account | None) -> Instance | None:
    return kept_definition(world, name) or (None if account is None else account.definition)


def kept_definition(world: World, name: str) -> Instance | None:
    """What a reboot under way was to start with, ``None`` when that is not known."""
    try:
        return world.store.read(definition_key(name), Instance)
    except RecordError:
        return None
