"""Getting hold of a console that takes one client at a time: told at once who has it, and in its place if wanted."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator

from hvcore.cli.terminal import connect, open_terminal
from hvcore.console_clients import describe_holder
from hvcore.errors import DeadlineExceeded, InstanceBusy, NotRunning, UnsupportedOperation
from hvcore.model.console import Console, ConsoleHolder
from hvcore.unix_clients import unix_clients

PICTURES = ("vnc", "spice", "dbus")
"""Console types whose protocol is no text, also where they are on a socket."""

_PATIENCE = 5.0
_GLANCE = 0.02
"""Seconds between two looks at whether the connection has been taken: no event says so."""


@contextlib.contextmanager
def attached(console: Console, take_over: Callable[[], object] | None = None) -> Iterator[int]:
    """Attach to a text console, and yield a descriptor of the connection, once it is the one the console serves.

    Args:
        console: where it is.
        take_over: makes whoever holds it go; without it, a console that is held is an error.

    Raises:
        UnsupportedOperation: it is no text.
        InstanceBusy: somebody holds it; says who.
        NotRunning: nobody listens there.
        DeadlineExceeded: nobody takes the connection.
    """
    if console.kind in PICTURES or not (console.socket_path or console.device_path):
        place = f"{console.address}:{console.port}" if console.address else console.socket_path or "no address"
        client = " ".join(console.command)
        raise UnsupportedOperation(
            f"a {console.kind} console is not text: it is at {place}",
            instance=console.instance,
            hint=f"attach with: {client}" if client else console.message or None,
        )
    try:
        fd = connect(console.socket_path).detach() if console.socket_path else open_terminal(console.device_path or "")
    except OSError as error:
        raise NotRunning(
            f"nothing listens on its {console.kind} console: {error.strerror}",
            instance=console.instance,
            hint="'hv info' shows what it is doing",
        ) from error
    try:
        if console.socket_path is None:
            if console.holder is not None:
                raise _held(console, console.holder)
        else:
            _wait(console, console.socket_path, fd, take_over)
        yield fd
    finally:
        os.close(fd)


def successor(console: Console, client: int) -> ConsoleHolder | None:
    """Who holds a console, or is about to, after it has let us go.

    Args:
        console: the console.
        client: our connection. QEMU may have shut it down and not closed it yet.
    """
    clients = None if console.socket_path is None else unix_clients(console.socket_path)
    if clients is None:
        return None
    ours = os.fstat(client).st_ino
    others = [tuple(inode for inode in inodes if inode != ours) for inodes in (clients.connected, clients.waiting)]
    return next((describe_holder(inodes) for inodes in others if inodes), None)


def words_for(holder: ConsoleHolder) -> str:
    """A process that holds a console, in words."""
    if holder.pid is None:
        return "a process of another user"
    since = "" if holder.since is None else time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return f"process {holder.pid} ({holder.program or '?'}, user {holder.user or '?'}){since}"


def _wait(console: Console, path: str, fd: int, take_over: Callable[[], object] | None) -> None:
    """Wait until the console serves our connection."""
    inode = os.fstat(fd).st_ino
    end = time.monotonic() + _PATIENCE
    told: tuple[int, ...] = ()
    while True:
        clients = unix_clients(path)
        if clients is None or inode not in clients.waiting:
            return
        # One that has been told to go is there a moment longer; after it may come one that was waiting before us.
        if clients.connected and clients.connected != told:
            if take_over is None:
                raise _held(console, describe_holder(clients.connected))
            told = clients.connected
            take_over()
        if time.monotonic() > end:
            raise DeadlineExceeded("its console takes no connection: QEMU may hang", instance=console.instance)
        select.select([fd], [], [], _GLANCE)


def _held(console: Console, holder: ConsoleHolder) -> InstanceBusy:
    hint = f"hv console {console.instance} --take-over takes its place"
    if console.log_path is not None:
        hint += ", --watch reads along"
    if console.socket_path is None:
        hint = "end that process" + (", or read along with --watch" if console.log_path is not None else "")
    return InstanceBusy(
        f"its {console.kind} console is held by {words_for(holder)}", instance=console.instance, hint=hint
    )
