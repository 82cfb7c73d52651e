"""Companions: processes that serve one QEMU process, such as swtpm and virtiofsd.

QEMU talks to each over a connected socket that it inherits; when QEMU ends, the connection closes and the companion
ends by itself. One that QEMU never spoke to may stay (swtpm 0.7 does): whoever undoes the start ends it. It is known by
its record, or as the writer of the file its output goes to.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable

import attrs

from hvcore import Deadline, HostError
from hvcore_kvm import private_root, process

COMPANIONS = "companions.json"
_SEARCHED = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/usr/libexec:/usr/lib/qemu"
_PATIENCE = 5.0


@attrs.frozen(kw_only=True)
class CompanionRecord:
    """One running companion."""

    name: str
    identity: process.ProcessIdentity


@attrs.frozen(kw_only=True)
class CompanionRecords:
    """The companions of one instance."""

    companions: tuple[CompanionRecord, ...] = ()


@attrs.define(kw_only=True)
class Companion:
    """A companion of an instance that is going to be started.

    Attributes:
        name: what it is called in messages and in the journal.
        argv: program and arguments; its socket is descriptor 3.
        listens: its socket is a listening one, to which QEMU's end is connected; else the two are a pair.
        inherits: opens further descriptors for it, which become numbers 4, 5, ... in their order.
        prepare: done before it is started, for example making its directory.
        writes: the directories that it keeps files in, if it needs nothing else of the host and no privilege: beside a
            QEMU with a root of its own it then has one too, is the same user, and those belong to that. ``None`` for a
            program that confines itself, or that needs privileges.
        connection: QEMU's end of the connection once it has been started, until `take` hands it on.
    """

    name: str
    argv: tuple[str, ...]
    listens: bool = False
    inherits: tuple[Callable[[], int], ...] = ()
    prepare: Callable[[], None] | None = None
    writes: tuple[str, ...] | None = None
    connection: int | None = None

    def take(self) -> int:
        """QEMU's end of the connection; the caller closes it.

        Raises:
            HostError: the companion has not been started.
        """
        if self.connection is None:
            raise HostError(f"{self.name} has not been started")
        taken, self.connection = self.connection, None
        return taken

    def let_go(self) -> None:
        """Close QEMU's end of the connection if nobody has taken it; the companion ends."""
        if self.connection is not None:
            os.close(self.take())


def find_program(name: str) -> str | None:
    """Path of a companion's program; ``None`` if it is not installed."""
    import shutil  # not before it is needed: loading a driver is quick

    return shutil.which(name, path=_SEARCHED)


@attrs.frozen(kw_only=True)
class CompanionConfinement:
    """How a companion is confined beside a QEMU that is.

    Attributes:
        launcher: words before its own, as those before QEMU's.
        namespaces: kinds of namespaces of its own.
        owner: user id it runs as.
        place: an empty directory to put its root together on.
    """

    launcher: tuple[str, ...]
    namespaces: tuple[str, ...]
    owner: int
    place: str


def start_companion(
    companion: Companion, output_fd: int, confinement: CompanionConfinement | None = None
) -> CompanionRecord:
    """Start a companion; its connection is QEMU's to take.

    Args:
        companion: which.
        output_fd: where its output goes.
        confinement: how it is confined, if it can be.

    Returns:
        The record of the process.

    Raises:
        HostError: it cannot be started.
    """
    if companion.prepare is not None:
        companion.prepare()
    launcher: tuple[str, ...] = ()
    enter: Callable[[], None] | None = None
    if confinement is not None and companion.writes is not None:
        for path in companion.writes:
            _hand_over(path, confinement.owner)
        program = private_root.program_tree(companion.argv[0])
        root = private_root.PrivateRoot(
            owner=confinement.owner, paths=(program,) if program else (), writable=companion.writes
        )
        launcher = confinement.launcher
        enter = functools.partial(private_root.enter, confinement.namespaces, root, confinement.place)
    ours, theirs = _connection(companion.listens)
    more: list[int] = []
    with ours, theirs:
        try:
            for inherit in companion.inherits:
                more.append(inherit())
            pid = process.spawn(companion.argv, [theirs.fileno(), *more], output_fd, launcher, enter)
        finally:
            for fd in more:
                os.close(fd)
        companion.connection = ours.detach()
    return CompanionRecord(name=companion.name, identity=process.identify(pid))


def _hand_over(path: str, owner: int) -> None:
    """Give a directory and its files to a user; what it leads to elsewhere stays whose it is."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in os.listdir(directory):
                os.chown(name, owner, owner, dir_fd=directory, follow_symlinks=False)
            os.fchown(directory, owner, owner)
        finally:
            os.close(directory)
    except OSError as error:
        raise HostError(f"cannot give {path} to user {owner}: {error.strerror}") from error


def _connection(listens: bool) -> tuple[socket.socket, socket.socket]:
    if not listens:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound to a name that the kernel chooses and nobody knows; the one connection waits in its backlog.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("")
        listener.listen(1)
        client.connect(listener.getsockname())
    except OSError as error:
        listener.close()
        client.close()
        raise HostError(f"cannot make a socket: {error.strerror}") from error
    return client, listener


def end_companions(records: CompanionRecords, *, spoken_to: bool) -> None:
    """Wait for companions whose QEMU is gone, and end those that stay. One that has gone is no error.

    Args:
        records: the companions.
        spoken_to: their QEMU has been up, so that they end by themselves.
    """
    for record in records.companions:
        with process.held(record.identity) as pidfd:
            if pidfd is None or process.wait_dead(pidfd, Deadline.after(_PATIENCE if spoken_to else 0.0)):
                continue
            process.end(pidfd, Deadline.after(_PATIENCE))
    process.reap_children()


def kill_companion(record: CompanionRecord) -> None:
    """End a companion at once; one that has gone is no error."""
    with process.held(record.identity) as pidfd:
        if pidfd is not None:
            process.end(pidfd, Deadline.after(_PATIENCE))
