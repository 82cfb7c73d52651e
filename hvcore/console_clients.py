"""Which process is at the other end of a console that takes one client at a time."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable

from hvcore.linux import process_start_time
from hvcore.model.console import ConsoleHolder
from hvcore.unix_clients import unix_clients

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def console_holder(path: str) -> ConsoleHolder | None:
    """Who holds the console behind a listening UNIX socket.

    Args:
        path: of the socket.

    Returns:
        The process, with nothing known of it when it belongs to a user whose processes we may not see; ``None`` when
        nobody holds it, or the kernel does not say.
    """
    clients = unix_clients(path)
    if clients is None or not clients.connected:
        return None
    return describe_holder(clients.connected)


def describe_holder(inodes: tuple[int, ...]) -> ConsoleHolder:
    """The first process found that has one of these sockets open."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return _first(lambda link: os.readlink(link) in wanted)


def device_holder(path: str) -> ConsoleHolder | None:
    """Who has a device file open; ``None`` when nobody is seen to."""
    try:
        wanted = os.stat(path).st_rdev
    except OSError:
        return None
    found = _first(lambda link: os.stat(link).st_rdev == wanted)
    return found if found.pid is not None else None


def _first(fits: Callable[[str], bool]) -> ConsoleHolder:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            descriptors = os.listdir(f"/proc/{entry}/fd")
        except OSError:
            continue  # gone, or somebody else's
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if fits(f"/proc/{entry}/fd/{descriptor}"):
                    return _process(int(entry))
    return ConsoleHolder()


def _process(pid: int) -> ConsoleHolder:
    user = program = ""
    since = None
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{pid}").st_uid
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:
            user = str(uid)
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            program = file.read().rstrip("\n")
        since = _boot_time() + process_start_time(pid) / _CLOCK_TICKS
    return ConsoleHolder(pid=pid, user=user, program=program, since=since)


def _boot_time() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0
