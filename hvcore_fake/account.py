"""What the driver can say of an instance: from its record, its process, its events and how it ended. Only reads."""

from __future__ import annotations

import attrs

from hvcore import Cause, Instance, InstanceState, RecordError, StateReason
from hvcore_fake.events import events_key
from hvcore_fake.processes import checkpoints_key
from hvcore_fake.record import Ending, Process, RuntimeRecord
from hvcore_fake.world import World

INSTANCES = "state/instances/"
ENDINGS = "data/instances/"

_WORDS: dict[Cause, str] = {
    Cause.STARTED: "it was started",
    Cause.STARTED_PAUSED: "it waits before its first instruction",
    Cause.HOST_PAUSE: "the host paused it",
    Cause.GUEST_PANIC: "the guest's kernel panicked",
    Cause.IO_ERROR: "a disk reported an error",
    Cause.MIGRATION: "it is moving between two hosts",
}

_ENDINGS: dict[str, tuple[InstanceState, Cause, str]] = {
    "guest-shutdown": (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN, "the guest powered itself off"),
    "guest-panic": (InstanceState.PANICKED, Cause.GUEST_PANIC, "the guest's kernel panicked"),
    "host-qmp-quit": (InstanceState.STOPPED, Cause.HOST_FORCE_STOP, "the host stopped it by force"),
}


@attrs.frozen(kw_only=True)
class Account:
    """One instance as far as the driver can know.

    Attributes:
        name: its name.
        state: its state.
        reason: why.
        process: its process, ``None`` when none lives.
        record: what it was started with, ``None`` when there is none or it is damaged.
        ending: how it ended, when it was stopped since.
        damage: what is wrong with the record.
    """

    name: str
    state: InstanceState
    reason: StateReason
    process: Process | None = None
    record: RuntimeRecord | None = None
    ending: Ending | None = None
    damage: str = ""

    @property
    def listed(self) -> bool:
        """It holds something on this host."""
        return self.ending is None

    @property
    def definition(self) -> Instance | None:
        """What it runs or ran with, if that is known."""
        if self.record is not None:
            return self.record.instance
        return None if self.ending is None else self.ending.instance


def directory_key(name: str) -> str:
    """The directory of an instance that holds something."""
    return f"{INSTANCES}{name}/"


def record_key(name: str) -> str:
    """Its runtime record."""
    return f"{INSTANCES}{name}/record.json"


def definition_key(name: str) -> str:
    """The definition a reboot under way will start with."""
    return f"{INSTANCES}{name}/definition.json"


def ending_key(name: str) -> str:
    """How it ended."""
    return f"{ENDINGS}{name}/ending.json"


def snapshots_key(name: str) -> str:
    """Its snapshots."""
    return f"{ENDINGS}{name}/snapshots.json"


def account_keys(name: str) -> tuple[str, ...]:
    """Everything that is kept about an instance, the innermost first; the process and its journal are not."""
    kept = (record_key(name), definition_key(name), directory_key(name))
    data = (ending_key(name), snapshots_key(name), checkpoints_key(name), events_key(name), f"{ENDINGS}{name}/")
    return (*kept, *data)


def listed_names(world: World) -> tuple[str, ...]:
    """The names of all instances that hold something on this host, sorted."""
    recorded = (n for n in world.store.names(INSTANCES, "") if world.store.exists(record_key(n)))
    return tuple(sorted({*recorded, *(process.name for process in world.processes())}))


def look(world: World, name: str) -> Account | None:
    """What is known of an instance, ``None`` when there is no account of it."""
    damage = ""
    record = None
    # Before the process: one that is seen dead afterwards has written its last event.
    try:
        record = world.store.read(record_key(name), RuntimeRecord)
    except RecordError as error:
        damage = error.message
    process = world.process(name)
    if process is not None:
        state, reason = _living(world, process)
        return Account(name=name, state=state, reason=reason, process=process, record=record, damage=damage)
    if damage:
        reason = StateReason(cause=Cause.OTHER, detail=damage)
        return Account(name=name, state=InstanceState.UNKNOWN, reason=reason, damage=damage)
    if record is not None:
        state, reason = _ended(world, record)
        return Account(name=name, state=state, reason=reason, record=record)
    ending = _ending(world, name)
    if ending is None:
        return None
    return Account(name=name, state=ending.state, reason=ending.reason, ending=ending)


def _ending(world: World, name: str) -> Ending | None:
    try:
        return world.store.read(ending_key(name), Ending)
    except RecordError as error:
        return Ending(state=InstanceState.UNKNOWN, reason=StateReason(cause=Cause.OTHER, detail=error.message))


def _living(world: World, process: Process) -> tuple[InstanceState, StateReason]:
    state, cause, since = process.state, process.cause, process.since
    words = _WORDS.get(cause, "")
    if not process.answering:
        state, cause, words = InstanceState.UNKNOWN, Cause.NOT_ANSWERING, "its process does not answer"
    elif world.rest_of(process) == "cut-off":
        state, cause, words = InstanceState.UNKNOWN, Cause.MIGRATION, "some of its memory is on its source, and cut off"
    elif process.stopping and state is InstanceState.RUNNING:
        state, cause, words = InstanceState.SHUTTING_DOWN, Cause.STOP_REQUESTED, "the guest was asked to power off"
    return state, StateReason(cause=cause, detail=words, since=since, boot_id=world.boot)


def _ended(world: World, record: RuntimeRecord) -> tuple[InstanceState, StateReason]:
    events = [numbered.event for numbered in world.events.of(record.instance.name, record.events_before)]
    last = next((event for event in reversed(events) if event.name == "SHUTDOWN"), None)
    if last is None and record.boot_id != world.boot:
        state, cause, words = InstanceState.CRASHED, Cause.HOST_RESTARTED, "the host was restarted while it ran"
        return state, StateReason(cause=cause, detail=words, boot_id=record.boot_id)
    if last is None:
        state, cause, words = InstanceState.CRASHED, Cause.DIED, "its process ended without a word"
        return state, StateReason(cause=cause, detail=words, boot_id=record.boot_id)
    state, cause, words = _ENDINGS[last.data["reason"]]
    if last.data.get("asked"):
        state, cause = InstanceState.STOPPED, Cause.HOST_STOP
        words = "the guest powered off because the host asked it to"
    return state, StateReason(cause=cause, detail=words, since=last.time, boot_id=record.boot_id)
