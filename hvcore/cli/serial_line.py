"""One end of an instance's serial console, for a program that talks to the guest: every wait is bounded."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Self

from hvcore.cli.terminal import connect

_CHUNK = 65536
_ON_ITS_WAY = 0.1
"""Seconds within which everything that was said has arrived."""


class GuestSilent(Exception):
    """The guest did not say in time what was waited for, or its console closed."""


class SerialLine:
    """A connection to a serial console; a context manager.

    Args:
        path: UNIX socket of the console.
        show: called with each line the guest has finished.
    """

    def __init__(self, path: str, show: Callable[[str], None]) -> None:
        self._socket = connect(path)
        self._show = show
        self._unread = b""
        self._line = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, text: bytes) -> None:
        """Type something."""
        self._socket.sendall(text)

    def until(self, *markers: bytes, seconds: float) -> bytes:
        """Read up to and with the first of some markers.

        Raises:
            GuestSilent: none came in time.
        """
        end = time.monotonic() + seconds
        while True:
            found = [(self._unread.find(marker), marker) for marker in markers if marker in self._unread]
            if found:
                position, marker = min(found)
                cut = position + len(marker)
                text, self._unread = self._unread[:cut], self._unread[cut:]
                return text
            wanted = " or ".join(repr(marker.decode(errors="replace")) for marker in markers)
            if not self._wait(end - time.monotonic()):
                raise GuestSilent(f"the guest did not say {wanted} within {seconds:g} s")
            if not self._read():
                raise GuestSilent(f"the console closed before the guest said {wanted}")

    def forget(self) -> None:
        """Drop what has been said so far, also what is still on its way."""
        while self._wait(_ON_ITS_WAY) and self._read():
            pass
        self._unread = b""

    def stays_silent(self, seconds: float) -> bool:
        """Whether nothing comes for a while."""
        return not self._wait(seconds)

    def finish(self, seconds: float) -> None:
        """Show what the guest still has to say, until the console closes."""
        end = time.monotonic() + seconds
        while self._wait(end - time.monotonic()) and self._read():
            pass
        if self._line.strip():
            self._show(self._line.decode(errors="replace"))
            self._line = b""

    def _wait(self, seconds: float) -> bool:
        return bool(select.select([self._socket], [], [], max(0.0, seconds))[0])

    def _read(self) -> bool:
        try:
            data = self._socket.recv(_CHUNK)
        except ConnectionError:
            return False
        self._unread += data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._show(line.decode(errors="replace"))
        return bool(data)


def listens(path: str) -> bool:
    """Whether somebody listens on a UNIX socket."""
    if not os.path.exists(path):
        return False
    try:
        connect(path).close()
    except OSError:
        return False
    return True
