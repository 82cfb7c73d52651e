"""What connects two modelled hosts: the destination's process is a file, and its path is the address to send to."""

from __future__ import annotations

import os

import attrs

from hvcore import Cause, Directories, InstanceState, MigrationPhase, RecordError
from hvcore_fake.images import opened_path, read_disk, replace_disk, write_disk
from hvcore_fake.record import Connection, Process, Sending
from hvcore_fake.store import Store

PROCESSES = "state/processes/"
CONNECTIONS = "state/connections/"


def connection_key(name: str) -> str:
    """Where a destination has what it knows of its source."""
    return f"{CONNECTIONS}{name}.json"


def listens(target: str) -> Process | None:
    """The process at the other end, if it waits for a guest."""
    found = _process(target)
    return found if found is not None and found.state is InstanceState.INCOMING else None


def connect(target: str, source: str, source_pid: int) -> bool:
    """Connect a source to its destination; says whether somebody listens there."""
    return _write(target, source, source_pid, None)


def takes(target: str) -> tuple[str, ...]:
    """The disks that the process at the other end takes with its guest."""
    listener = listens(target)
    return () if listener is None else listener.takes


def copy_disks(process: Process, sending: Sending) -> bool:
    """Let the images at the other end hold what the disks hold that are copied; says whether they do."""
    listener = listens(sending.target)
    theirs = {} if listener is None else {backend.ident: backend for backend in listener.backends}
    for backend in process.backends:
        if backend.ident not in sending.disks:
            continue
        there = theirs.get(backend.ident)
        try:
            if there is None:
                return False
            size, blocks = read_disk(opened_path(backend.source, backend.identity), backend.format, backend.key)
            replace_disk(opened_path(there.source, there.identity), there.format, size, blocks, there.key)
        except (OSError, ValueError):
            return False
    return True


def write_taken(target: str, ident: str, offset: int, data: bytes) -> bool:
    """Write to a disk at the other end, as the source of its guest does; says whether that was taken."""
    there = _process(target)
    backends = () if there is None or ident not in there.takes else there.backends
    for backend in backends:
        if backend.ident == ident:
            try:
                path = opened_path(backend.source, backend.identity)
                write_disk(path, backend.format, offset, data, backend.key)
            except (OSError, ValueError):
                return False
            return True
    return False


def deliver(target: str, source: str, guest: Process, *, whole: bool = True) -> bool:
    """Send the last of a guest, or a guest the rest of whose memory follows; says whether it arrived."""
    return _write(target, source, guest.pid, guest, whole=whole)


def complete(target: str, guest: Process) -> bool:
    """Send the rest of the memory of a guest that has gone over; says whether it arrived."""
    there, store = _process(target), _store(target)
    if there is None:
        return False
    found = store.read(connection_key(there.name), Connection)
    if found is None or found.pid != there.pid or found.source_pid != guest.pid:
        return False
    store.write(connection_key(there.name), attrs.evolve(found, whole=True))
    return True


def rest_of(store: Store, process: Process, own: str) -> str:
    """What a guest that has arrived lacks: ``""``, ``coming``, or ``cut-off`` from its source."""
    found = store.read(connection_key(process.name), Connection)
    if found is None or found.pid != process.pid or found.guest is None or found.whole:
        return ""
    if _is_sending(found, own):
        return "coming"
    # It may have sent the last since.
    found = store.read(connection_key(process.name), Connection) or found
    return "" if found.whole else "cut-off"


def received(store: Store, process: Process, own: str) -> Process | None:
    """A process that waits for a guest as it really is: with the guest, or gone when the connection broke before."""
    connection = store.read(connection_key(process.name), Connection)
    if connection is None or connection.pid != process.pid:
        return process
    if connection.guest is None and not _is_sending(connection, own):
        # It may have sent the last since.
        connection = store.read(connection_key(process.name), Connection) or connection
        if connection.guest is None:
            return None
    return process if connection.guest is None else _with_guest(process, connection.guest)


def _with_guest(process: Process, guest: Process) -> Process:
    frozen = 0.0 if guest.frozen is None else guest.frozen

    def since_then(moment: float | None) -> float | None:
        return None if moment is None else moment - frozen

    return attrs.evolve(
        process,
        state=InstanceState.PAUSED,
        cause=Cause.MIGRATION,
        booted=since_then(guest.booted),
        powers_off=since_then(guest.powers_off),
        panics=since_then(guest.panics),
        asked=guest.asked,
        memory=guest.memory,
        memory_target=guest.memory_target,
        # Its definition has counted the virtual CPUs that were plugged.
        attached=tuple(device for device in guest.attached if device.kind != "vcpu"),
        stood=-process.started,
        checkpoints=tuple(
            each for each in guest.checkpoints if each.lasting and each.name and each.ident not in process.takes
        ),
        # Its clock begins when it is told to run: two hosts have two clocks.
        frozen=0.0,
    )


def _is_sending(connection: Connection, own: str) -> bool:
    sender = _process(connection.source)
    if sender is None or sender.pid != connection.source_pid or sender.sending is None:
        return False
    paused = sender.sending.phase is MigrationPhase.POSTCOPY_PAUSED
    return sender.sending.target == own and not sender.sending.phase.is_final and not paused


def _write(target: str, source: str, source_pid: int, guest: Process | None, *, whole: bool = True) -> bool:
    listener = listens(target)
    if listener is None:
        return False
    connection = Connection(pid=listener.pid, source=source, source_pid=source_pid, guest=guest, whole=whole)
    _store(target).write(connection_key(listener.name), connection)
    return True


def _process(path: str) -> Process | None:
    if not os.path.isabs(path):
        return None
    try:
        return _store(path).read(f"{PROCESSES}{os.path.basename(path)}", Process)
    except RecordError:
        return None


def _store(path: str) -> Store:
    root = os.path.dirname(os.path.dirname(path))
    return Store(Directories(state=root, data=root, cache=root))
