"""A person's terminal, or a pipe, joined to a console's socket or terminal device until one of them ends.

Knows descriptors and bytes; nothing of instances and drivers.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import selectors
import socket
import termios
import time
import tty
from collections.abc import Iterator

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh."""

_CHUNK = 65536
_PENDING_LIMIT = 65536
_FLUSH_SECONDS = 1.0


class Ended(enum.Enum):
    """Why a conversation with a console ended."""

    LEFT = "left"
    CLOSED = "closed"


def connect(path: str) -> socket.socket:
    """Connect to a UNIX socket, however long its path.

    Raises:
        OSError: nobody listens there.
    """
    directory, name = os.path.split(path)
    directory_fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # sun_path holds 107 bytes; this name of the same directory always fits.
        client.connect(f"/proc/self/fd/{directory_fd}/{name}")
    except BaseException:
        client.close()
        raise
    finally:
        os.close(directory_fd)
    return client


def open_terminal(path: str) -> int:
    """Open a terminal device, raw, and not as the terminal of this process.

    Raises:
        OSError: it cannot be opened, or is no terminal.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        tty.setraw(fd)
    except termios.error as error:
        os.close(fd)
        raise OSError(*error.args) from error
    return fd


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[bool]:
    """Every key goes through as it is while the context lasts; the terminal is put back on every way out.

    Yields:
        Whether ``fd`` is a terminal; nothing is done to anything else.
    """
    if not os.isatty(fd):
        yield False
        return
    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield True
    finally:
        # The terminal may have gone with a SIGHUP; then there is nothing to put back.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def converse(console: int, source: int, sink: int) -> Ended:
    """Copy what is typed to the console and what it says to the sink.

    The end of the source is not the end: what the console says goes on being copied, until it closes or Ctrl-] is
    read.

    Args:
        console: descriptor of the connection.
        source: descriptor of what is typed.
        sink: descriptor that shows what the console says.
    """
    os.set_blocking(console, False)
    with raw_terminal(source) as typed_by_hand, selectors.PollSelector() as selector:
        conversation = _Conversation(console, source, sink, typed_by_hand, selector)
        return conversation.run()


class _Conversation:
    def __init__(
        self, console: int, source: int, sink: int, typed_by_hand: bool, selector: selectors.BaseSelector
    ) -> None:
        self._console = console
        self._source = source
        self._sink = sink
        self._typed_by_hand = typed_by_hand
        self._selector = selector
        self._pending = b""
        self._source_open = True

    def run(self) -> Ended:
        self._selector.register(self._console, selectors.EVENT_READ)
        self._selector.register(self._source, selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select():
                if key.fd == self._console:
                    if events & selectors.EVENT_WRITE:
                        self._send()
                    if events & selectors.EVENT_READ and not self._receive():
                        return Ended.CLOSED
                elif not self._read_source():
                    self._flush()
                    return Ended.LEFT
            self._watch()

    def _receive(self) -> bool:
        try:
            data = os.read(self._console, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            # A terminal whose other side has gone says EIO.
            return False
        view = memoryview(data)
        while view:
            view = view[os.write(self._sink, view) :]
        return bool(data)

    def _send(self) -> None:
        try:
            self._pending = self._pending[os.write(self._console, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            # It has closed; what it said before that is still to be read.
            self._pending = b""

    def _read_source(self) -> bool:
        try:
            data = os.read(self._source, _CHUNK)
        except OSError:
            # A terminal whose other side has gone says EIO.
            data = b""
        if not data:
            self._source_open = False
            return not self._typed_by_hand
        typed, leave, _ = data.partition(LEAVE)
        self._pending += typed
        return not leave

    def _watch(self) -> None:
        """Wait for what matters now: a guest that does not read must not stop Ctrl-], nor fill our memory."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0)
        self._selector.modify(self._console, wanted)
        read_source = self._source_open and (self._typed_by_hand or len(self._pending) < _PENDING_LIMIT)
        watched = self._source in self._selector.get_map()
        if read_source and not watched:
            self._selector.register(self._source, selectors.EVENT_READ)
        elif watched and not read_source:
            self._selector.unregister(self._source)

    def _flush(self) -> None:
        """Give what was typed before Ctrl-] a moment to arrive."""
        end = time.monotonic() + _FLUSH_SECONDS
        with contextlib.suppress(OSError):
            while self._pending and select.select([], [self._console], [], max(0.0, end - time.monotonic()))[1]:
                self._pending = self._pending[os.write(self._console, self._pending) :]
