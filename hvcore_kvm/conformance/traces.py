"""What an instance leaves on the host: processes, network interfaces, files; seen from outside."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Callable, Iterator
from typing import Self

from hvcore import Deadline
from hvcore.conformance import CHANGES, PATIENCE, watching

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_MADE = CHANGES | {"open-write"}
_LOOK_AGAIN = 0.05
_INTERFACES = "/sys/class/net"
_INTERFACE = "network interface "
_INTERFACE_PATIENCE = 5.0
"""Seconds that an interface has to go in; whatever stays longer is looked for once more by `confirmed`."""
_ATTEMPTS = 4


def confirmed(attempt: Callable[[], list[str]]) -> list[str]:
    """What an attempt leaves, each time it is made.

    A network interface does not tell who made it, and others may make one at the same moment. So one that is left
    counts only if there is one after each of some attempts; each has to be with another instance.

    Args:
        attempt: does something, and returns what `Traces.left` finds.

    Returns:
        What the last attempt has left.
    """
    found: list[str] = []
    for _ in range(_ATTEMPTS):
        found = attempt()
        if not found or not all(each.startswith(_INTERFACE) for each in found):
            break
    return found


class Traces:
    """What this process and all it has started bring to the host. Use it as a context manager.

    Meanwhile a process that loses its parent becomes a child of this one.

    Args:
        directory: what is below is the driver's, and looked at by others.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.path.join(os.path.realpath(directory), "")
        self._children = set(_children())
        self._interfaces: set[str] = set()
        self._made: set[str] = set()
        self._library = ctypes.CDLL(None, use_errno=True)
        self._before = ctypes.c_int()

    def __enter__(self) -> Self:
        self._library.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(self._before), 0, 0, 0)
        self._library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *error: object) -> None:
        self._library.prctl(_PR_SET_CHILD_SUBREAPER, self._before.value, 0, 0, 0)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note the files that this thread makes in the block, and the network interfaces that come up."""
        before = set(os.listdir(_INTERFACES))
        try:
            with watching(_MADE, self._note):
                yield
        finally:
            self._interfaces |= set(os.listdir(_INTERFACES)) - before

    def _note(self, event: str) -> None:
        path = event.partition(" ")[2]
        if path.startswith("/") and not path.startswith(("/proc/", self._directory)) and not os.path.lexists(path):
            self._made.add(path)

    def left(self) -> list[str]:
        """What is still there; an interface or a process that is about to go is waited for.

        An interface is reported once.
        """
        processes, interfaces = Deadline.after(PATIENCE), Deadline.after(_INTERFACE_PATIENCE)
        files = [f"file {path}" for path in sorted(self._made) if os.path.lexists(path)]
        while not files:
            running, up = self._processes(), self._up()
            if (not running or processes.expired) and (not up or interfaces.expired):
                break
            select.select([], [], [], _LOOK_AGAIN)
        else:
            running, up = self._processes(), self._up()
        self._interfaces -= set(up)
        return [*files, *running, *(f"{_INTERFACE}{name}" for name in up)]

    def _processes(self) -> list[str]:
        for pid in set(_children()) - self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return [f"process {pid} ({_program(pid)})" for pid in sorted(set(_children()) - self._children)]

    def _up(self) -> list[str]:
        return sorted(self._interfaces & set(os.listdir(_INTERFACES)))


def _children() -> list[int]:
    """Children of this process, zombies too."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found


def _program(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return "ended"
