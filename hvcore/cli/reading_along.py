"""Showing what a guest writes to its console, from the log of the console, beside whoever is attached."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from typing import Self

from hvcore.cli.terminal import LEAVE, raw_terminal
from hvcore.errors import HostError, UnsupportedOperation
from hvcore.inotify import FileWatch
from hvcore.model.console import Console

_CHUNK = 65536

LOOK_EVERY = 2**20
"""Bytes after which the instance is looked at, so that its log is held to its size while somebody reads along."""


class ConsoleLog:
    """The log of a console, read from its first data on; a context manager.

    Args:
        console: the console.

    Raises:
        UnsupportedOperation: it keeps no log.
        HostError: its log cannot be read.
    """

    def __init__(self, console: Console) -> None:
        if console.log_path is None:
            raise UnsupportedOperation(
                f"the {console.kind} console keeps no log",
                instance=console.instance,
                hint=f"set params.{console.kind}.log = true at its next start",
            )
        self.path = console.log_path
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError(f"cannot read {self.path}: {error.strerror}", instance=console.instance) from error
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def skip(self) -> None:
        """Go to the end."""
        self._offset = os.fstat(self._fd).st_size

    def pieces(self) -> Iterator[bytes]:
        """What is there and has not been read; what has been given back to the file system is passed over."""
        while True:
            with contextlib.suppress(OSError):
                # At the end of the data this is an error, and so is there nothing to read.
                self._offset = os.lseek(self._fd, self._offset, os.SEEK_DATA)
            piece = os.pread(self._fd, _CHUNK, self._offset)
            if not piece:
                return
            self._offset += len(piece)
            yield piece


def show(log: ConsoleLog, sink: int) -> int:
    """Write to a descriptor what has not been read; returns how many bytes."""
    count = 0
    for piece in log.pieces():
        count += len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(sink, view) :]
    return count


def read_along(log: ConsoleLog, source: int, sink: int, ended: int | None, look: Callable[[], object]) -> bool:
    """Show what is written until the instance ends.

    Args:
        log: what to show.
        source: a terminal on which Ctrl-] leaves; anything else is not read.
        sink: descriptor that shows it.
        ended: a descriptor that becomes readable when the instance's process has ended, if there is one.
        look: looks at the instance.

    Returns:
        Whether somebody left; otherwise the instance has ended.
    """
    seen = 0
    with FileWatch(log.path) as watch, raw_terminal(source) as typed_by_hand:
        waiting: list[int] = [watch.fileno(), *([source] if typed_by_hand else []), *([] if ended is None else [ended])]
        while True:
            # Cleared before the file is read: what is written after that wakes us again.
            watch.clear()
            seen += show(log, sink)
            if seen >= LOOK_EVERY:
                seen = 0
                look()
            ready, _, _ = select.select(waiting, [], [])
            if source in ready and _leaves(source):
                return True
            if ended is not None and ended in ready:
                show(log, sink)
                return False


def _leaves(source: int) -> bool:
    try:
        typed = os.read(source, _CHUNK)
    except OSError:
        return True  # the terminal has gone
    return not typed or LEAVE in typed or b"\x03" in typed
