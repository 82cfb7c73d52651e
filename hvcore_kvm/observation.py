"""What an instance is doing, from its process, its events and what QEMU answers; asks many side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hvcore import (
    Cause,
    Deadline,
    DeviceInfo,
    Directories,
    InstanceInfo,
    InstanceNotFound,
    InstanceState,
    MigrationPhase,
    PeripheralInfo,
    RecordError,
    StateReason,
    boot_id,
    unfinished,
)
from hvcore_kvm import process
from hvcore_kvm.companions import COMPANIONS, CompanionRecords
from hvcore_kvm.directory import COMPANIONS_OUTPUT, EVENTS, JOURNAL, QUERY, STDERR, InstanceDirectory
from hvcore_kvm.events import LIMIT as EVENTS_LIMIT
from hvcore_kvm.events import QemuEvent, ending, last, last_of_each, read_events
from hvcore_kvm.listing import find_process
from hvcore_kvm.qmp import Answer, Question, ask_many
from hvcore_kvm.runtime import (
    HISTORY,
    HOTPLUG,
    LOADED,
    MIGRATION,
    PROCESS,
    RECORD,
    SCHEMA,
    STOP_REQUEST,
    UNSENT,
    Changes,
    History,
    MigrationRecord,
    ProcessRecord,
    RuntimeRecord,
    StopRequest,
)

EXTRA_ARGUMENTS = "extra-args"
"""Mark of an instance that runs with QEMU options of its owner."""

COMMANDS = ("query-status", "query-cpus-fast", "query-balloon")

OUTPUT_LIMIT = 256 * 2**10
"""How much is kept of what QEMU and its companions print, in bytes."""

_RUN_STATES: dict[str, tuple[InstanceState, Cause]] = {
    "prelaunch": (InstanceState.PRELAUNCH, Cause.STARTED_PAUSED),
    "running": (InstanceState.RUNNING, Cause.STARTED),
    "paused": (InstanceState.PAUSED, Cause.HOST_PAUSE),
    "debug": (InstanceState.PAUSED, Cause.OTHER),
    "suspended": (InstanceState.PAUSED, Cause.GUEST_SUSPEND),
    "watchdog": (InstanceState.PAUSED, Cause.WATCHDOG),
    "shutdown": (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN),
    "guest-panicked": (InstanceState.PANICKED, Cause.GUEST_PANIC),
    "io-error": (InstanceState.IO_ERROR, Cause.IO_ERROR),
    "internal-error": (InstanceState.CRASHED, Cause.HYPERVISOR_ERROR),
    "inmigrate": (InstanceState.INCOMING, Cause.MIGRATION),
    "finish-migrate": (InstanceState.MIGRATING, Cause.MIGRATION),
    "restore-vm": (InstanceState.MIGRATING, Cause.MIGRATION),
    "save-vm": (InstanceState.MIGRATING, Cause.MIGRATION),
    "postmigrate": (InstanceState.POSTMIGRATE, Cause.MIGRATION),
    "colo": (InstanceState.MIGRATING, Cause.MIGRATION),
}
"""QEMU's run states (``RunState`` of its QAPI schema) in ours."""

_BROKEN_OFF = (
    "it came from another host, and the connection broke before all of its memory was here: "
    "migrate it to this host again, or stop it if the other has lost it"
)
_ARRIVING = "it comes from another host; whether it may run here is for finalize_migration_dst to say"

_SINCE = {
    InstanceState.RUNNING: ("RESUME",),
    InstanceState.PAUSED: ("STOP", "SUSPEND", "WATCHDOG"),
    InstanceState.PANICKED: ("GUEST_PANICKED",),
    InstanceState.IO_ERROR: ("BLOCK_IO_ERROR", "STOP"),
}


@attrs.frozen(kw_only=True)
class Observed:
    """What the files say of an instance, before QEMU is asked.

    Attributes:
        name: name of the instance.
        process: its process, if one was started.
        record: the decisions it runs with.
        request: the last time the guest was asked to power off.
        companions: the processes that serve it.
        changes: what is under way with its devices.
        events: the end of its event file.
        alive: its process lives.
        unfinished: its start has not been completed.
        starter: pid of the host application that is starting it at this moment.
        migration: a migration of it that nobody has finished.
        ended: how this life has ended, if that has been written down already: its removal was interrupted.
        unsent: its state was given away and did not arrive; it is paused, whatever QEMU calls that.
        loaded: its guest was loaded from a snapshot; the same.
        damage: what of this could not be read.
    """

    name: str
    process: ProcessRecord | None
    record: RuntimeRecord | None
    request: StopRequest | None
    events: tuple[QemuEvent, ...]
    alive: bool
    companions: CompanionRecords = CompanionRecords()
    changes: Changes = Changes()
    unfinished: bool = False
    starter: int | None = None
    migration: MigrationRecord | None = None
    ended: History | None = None
    unsent: bool = False
    loaded: bool = False
    damage: str = ""

    @property
    def started(self) -> bool:
        """It is alive, and its start has been completed."""
        return self.alive and not self.unfinished


def observe(directory: InstanceDirectory) -> Observed:
    """Read the files of an instance whose volatile directory is there. A damaged record is said, not raised."""
    damage = []
    found: dict[str, Any] = {}
    kinds: dict[str, type] = {
        PROCESS: ProcessRecord,
        RECORD: RuntimeRecord,
        STOP_REQUEST: StopRequest,
        COMPANIONS: CompanionRecords,
        HOTPLUG: Changes,
        MIGRATION: MigrationRecord,
    }
    for name, kind in kinds.items():
        try:
            found[name] = directory.read(name, kind, schema=SCHEMA)
        except RecordError as error:
            damage.append(error.message)
    _hold_to_size(directory, found.get(RECORD))
    running: ProcessRecord | None = found.get(PROCESS) or _lost_process(directory)
    # Asked before the events are read: a process seen dead has written its last line.
    alive = running is not None and process.is_alive(running.identity)
    # Not empty: a start is under way, or its host application was killed in it.
    entries = unfinished(directory.join(JOURNAL))
    return Observed(
        name=directory.name,
        process=running,
        record=found.get(RECORD),
        request=found.get(STOP_REQUEST),
        companions=found.get(COMPANIONS) or CompanionRecords(),
        changes=found.get(HOTPLUG) or Changes(),
        events=read_events(directory),
        alive=alive,
        unfinished=bool(entries) and {"done": "cont"} not in entries,
        starter=_starter(entries),
        migration=found.get(MIGRATION),
        ended=None if alive else _written_end(directory, running),
        unsent=bool(directory.tail(UNSENT, 1)),
        loaded=bool(directory.tail(LOADED, 1)),
        damage="; ".join(damage),
    )


def _hold_to_size(directory: InstanceDirectory, record: RuntimeRecord | None) -> None:
    """Give back what is too old of everything that grows: nobody else watches these files."""
    directory.hold_to_size(EVENTS, EVENTS_LIMIT, last_of_each)
    for name in (STDERR, COMPANIONS_OUTPUT):
        directory.hold_to_size(name, OUTPUT_LIMIT)
    for name, limit in record.logs.items() if record is not None else ():
        directory.hold_to_size(name, limit)


def _lost_process(directory: InstanceDirectory) -> ProcessRecord | None:
    """What can be said of a process whose record is missing or damaged."""
    identity = find_process(directory)
    if identity is None:
        return None
    try:
        history = directory.read(HISTORY, History, schema=SCHEMA, data=True)
    except RecordError:
        history = None
    started = history.started if history is not None else os.stat(directory.path).st_mtime
    return ProcessRecord(identity=identity, started=started, qemu="")


def _starter(entries: Sequence[Mapping[str, Any]]) -> int | None:
    """Who is starting it: the writer of its journal, while that lives. Only for reports; a pid alone proves nothing."""
    if not entries or any("undo" in entry for entry in entries):
        return None
    pid = entries[0].get("pid")
    return pid if isinstance(pid, int) and os.path.exists(f"/proc/{pid}") else None


def _written_end(directory: InstanceDirectory, running: ProcessRecord | None) -> History | None:
    try:
        history = directory.read(HISTORY, History, schema=SCHEMA, data=True)
    except RecordError:
        return None
    if history is None or history.ended is None or (running is not None and running.started != history.started):
        return None
    return history


def get_info(directories: Directories, name: str, deadline: Deadline) -> InstanceInfo:
    """What one instance is doing, or why it ended.

    Raises:
        InstanceNotFound: there is no account of it.
    """
    with InstanceDirectory(directories, name) as directory:
        if not directory.exists:
            return _ended(directory)
    return get_infos(directories, [name], deadline)[0]


def get_infos(directories: Directories, names: Iterable[str], deadline: Deadline) -> tuple[InstanceInfo, ...]:
    """What some instances are doing, all asked side by side, in the order of their names."""
    observed: dict[str, Observed] = {}
    questions = []
    for name in names:
        with InstanceDirectory(directories, name) as directory:
            if not directory.exists:
                continue  # it went while we looked
            observed[name] = observe(directory)
            if observed[name].alive and observed[name].starter is None:
                questions.append(Question(key=name, path=directory.join(QUERY)))
    answers = ask_many(questions, COMMANDS, deadline)
    return tuple(_info(directories, seen, answers.get(name)) for name, seen in observed.items())


def _info(directories: Directories, seen: Observed, answer: Answer | None) -> InstanceInfo:
    if answer is not None and answer.error is not None:
        # It may have ended between the look at its process and the question.
        with InstanceDirectory(directories, seen.name) as directory:
            seen = observe(directory)
    if seen.starter is not None:
        return _starting(seen)
    if not seen.alive or seen.process is None:
        return _dead(seen)
    base = InstanceInfo(
        name=seen.name,
        uuid=seen.record.instance.uuid if seen.record else None,
        state=InstanceState.UNKNOWN,
        reason=StateReason(cause=Cause.OTHER, boot_id=seen.process.identity.boot_id),
        pid=seen.process.identity.pid,
        memory=seen.record.instance.memory if seen.record else 0,
        memory_max=seen.record.instance.memory if seen.record else 0,
        vcpus=seen.record.instance.vcpus if seen.record else 0,
        uptime=max(0.0, time.time() - seen.process.started),
        cpu_time=_cpu_time(seen.process.identity.pid),
        machine=seen.record.machine if seen.record else None,
        accelerator=seen.record.accelerator if seen.record else None,
        marks=_marks(seen),
        devices=_devices(seen),
        peripherals=_peripherals(seen),
        incomplete=seen.damage,
    )
    if answer is None or answer.error is not None:
        why = str(answer.error) if answer else "it was not asked"
        reason = StateReason(
            cause=Cause.NOT_ANSWERING,
            detail=f"QEMU lives and does not answer: {why}",
            boot_id=seen.process.identity.boot_id,
        )
        return attrs.evolve(base, reason=reason, incomplete=why)
    return _answered(base, seen, answer.results)


def _devices(seen: Observed) -> tuple[DeviceInfo, ...]:
    """What the record says it has; whether the guest has let go of one meanwhile, the next change of it finds out."""
    if seen.record is None:
        return ()
    instance = seen.record.instance
    states = _under_way(seen)
    found = [
        DeviceInfo(
            kind="disk",
            uuid=disk.uuid or "",
            name=disk.name,
            source=disk.path or disk.uri or "",
            state=states.get(disk.uuid or "", "present"),
        )
        for disk in instance.disks
    ]
    for nic in instance.nics:
        source = f"{nic.mode} {nic.link}" if nic.link else nic.mode
        state = states.get(nic.uuid or "", "present")
        found.append(DeviceInfo(kind="nic", uuid=nic.uuid or "", name=nic.name, source=source, state=state))
    return tuple(found)


def _peripherals(seen: Observed) -> tuple[PeripheralInfo, ...]:
    """The same of what its parameters describe."""
    if seen.record is None:
        return ()
    params = seen.record.instance.params
    found = []
    if params.get("rng", True) is not False:
        given = {name: params[f"rng_{name}"] for name in ("source", "rate") if f"rng_{name}" in params}
        found.append(PeripheralInfo(kind="rng", given=given, state=_under_way(seen).get("rng0", "present")))
    for kind, name in (("port", "virtio_ports"), ("usb", "usb")):
        found += [PeripheralInfo(kind=kind, given=dict(entry)) for entry in params.get(name) or ()]
    return tuple(found)


def _under_way(seen: Observed) -> dict[str, Literal["present", "adding", "removing"]]:
    # What is being changed is there all the time.
    pending = [change for change in seen.changes.pending if change.action != "change"]
    return {change.uuid: "adding" if change.action == "add" else "removing" for change in pending}


def _answered(base: InstanceInfo, seen: Observed, results: Mapping[str, Any]) -> InstanceInfo:
    status = results["query-status"]
    run_state = str(status.get("status", "")) if isinstance(status, dict) else ""
    state, cause = _RUN_STATES.get(run_state, (InstanceState.UNKNOWN, Cause.OTHER))
    if (run_state == "postmigrate" and seen.unsent) or (run_state == "prelaunch" and seen.loaded):
        state, cause = InstanceState.PAUSED, Cause.HOST_PAUSE
    detail = "" if state is not InstanceState.UNKNOWN else f"QEMU's run state is {run_state[:40]!r}"
    event = last(seen.events, *_SINCE.get(state, ()))
    since = event.time if event else (seen.process.started if seen.process else None)
    if seen.migration is not None and seen.migration.role == "destination":
        if not seen.migration.over:
            # What has arrived is paused, and yet not anybody's to resume.
            cause, detail = Cause.MIGRATION, _ARRIVING
        elif state is InstanceState.RUNNING and _waits_for_memory(seen.migration, seen.events):
            # QEMU calls that running. The guest stops at the first page that is not there.
            state, cause, detail = InstanceState.UNKNOWN, Cause.MIGRATION, _BROKEN_OFF
    if state is InstanceState.RUNNING and seen.request is not None and time.time() < seen.request.until:
        state, cause, since = InstanceState.SHUTTING_DOWN, Cause.STOP_REQUESTED, seen.request.time
    cpus = results["query-cpus-fast"]
    balloon = results["query-balloon"]
    # A QEMU that its guest has taken over may answer anything; it must not spoil the account of the others.
    actual = balloon.get("actual") if isinstance(balloon, dict) else None
    return attrs.evolve(
        base,
        state=state,
        reason=attrs.evolve(base.reason, cause=cause, detail=detail, since=since),
        vcpus=len(cpus) if isinstance(cpus, list) else base.vcpus,
        # Without a balloon QEMU refuses the question, and the guest has what it was started with.
        memory=actual if isinstance(actual, int) else base.memory,
    )


def _waits_for_memory(record: MigrationRecord, events: Sequence[QemuEvent]) -> bool:
    """Post-copy was broken off: what is missing of its memory is on the other host."""
    from hvcore_kvm.migration.evidence import arriving_phase

    return arriving_phase(record, events) is MigrationPhase.POSTCOPY_PAUSED


def _starting(seen: Observed) -> InstanceInfo:
    words = f"it is being started by process {seen.starter}"
    return InstanceInfo(
        name=seen.name,
        uuid=seen.record.instance.uuid if seen.record else None,
        state=InstanceState.PRELAUNCH,
        reason=StateReason(cause=Cause.STARTED, detail=words),
        pid=seen.process.identity.pid if seen.process and seen.alive else None,
        incomplete="it is not asked before its start is completed",
    )


def _marks(seen: Observed) -> tuple[str, ...]:
    """What the driver cannot answer for: options it knows nothing of."""
    return (EXTRA_ARGUMENTS,) if seen.record is not None and seen.record.instance.params.get("extra_args") else ()


def _dead(seen: Observed) -> InstanceInfo:
    boot = seen.process.identity.boot_id if seen.process else None
    if seen.ended is not None and not seen.unfinished:
        state, reason = _from_history(seen.ended)
    elif seen.process is None or seen.unfinished:
        words = "a start was interrupted" + (f"; {seen.damage}" if seen.damage else "")
        state, reason = InstanceState.CRASHED, StateReason(cause=Cause.DIED, detail=words)
    elif boot != boot_id():
        words = "the host was restarted while it ran"
        state, reason = InstanceState.CRASHED, StateReason(cause=Cause.HOST_RESTARTED, detail=words, boot_id=boot)
    else:
        state, reason = ending(seen.events, seen.request, boot)
        if seen.migration is not None and state is InstanceState.CRASHED:
            state, reason = _moving_dead(seen.migration, seen.events, state, reason)
    return InstanceInfo(
        name=seen.name,
        uuid=seen.record.instance.uuid if seen.record else None,
        state=state,
        reason=reason,
        machine=seen.record.machine if seen.record else None,
        accelerator=seen.record.accelerator if seen.record else None,
        incomplete=seen.damage,
    )


def _moving_dead(
    record: MigrationRecord, events: Sequence[QemuEvent], state: InstanceState, reason: StateReason
) -> tuple[InstanceState, StateReason]:
    """How one has ended that was on its way: nobody must start it again while it may run elsewhere."""
    from hvcore_kvm.migration.evidence import Whereabouts, whereabouts

    if record.role == "destination":
        if record.over:
            return state, reason
        words = "its guest did not arrive from the other host"
        return InstanceState.STOPPED, attrs.evolve(reason, cause=Cause.MIGRATION, detail=words)
    where = whereabouts(record, events)
    if where is Whereabouts.GONE:
        words = "its guest was moved to another host, and its process here has ended"
        return InstanceState.STOPPED, attrs.evolve(reason, cause=Cause.MIGRATION, detail=words)
    if where is Whereabouts.PERHAPS:
        words = "QEMU ended while the guest went over; it may run on the other host"
        return InstanceState.UNKNOWN, attrs.evolve(reason, cause=Cause.MIGRATION, detail=words)
    return state, reason


def ended_state(seen: Observed) -> tuple[InstanceState, StateReason]:
    """How an observed instance that is not alive has ended."""
    info = _dead(seen)
    return info.state, info.reason


def _ended(directory: InstanceDirectory) -> InstanceInfo:
    history = directory.read(HISTORY, History, schema=SCHEMA, data=True)
    if history is None:
        raise InstanceNotFound(
            "there is no account of it", instance=directory.name, hint="'hv list' shows the instances there are"
        )
    state, reason = _from_history(history)
    return InstanceInfo(name=directory.name, uuid=history.uuid, state=state, reason=reason)


def _from_history(history: History) -> tuple[InstanceState, StateReason]:
    if history.ended is None or history.state is None or history.cause is None:
        words = "the host was restarted while it ran"
        return InstanceState.CRASHED, StateReason(cause=Cause.HOST_RESTARTED, detail=words, boot_id=history.boot_id)
    return history.state, StateReason(
        cause=history.cause, detail=history.detail, since=history.ended, boot_id=history.boot_id
    )


def _cpu_time(pid: int) -> float | None:
    import psutil  # not needed for a listing, which should be quick

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
