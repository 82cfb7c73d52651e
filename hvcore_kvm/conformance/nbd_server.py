"""An NBD server that can be made to fail: full, or gone. Source: ``doc/proto.md`` of NBD.

What is written to it is not kept. It has one export of any name, and serves one client after the other.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Iterator

from hvcore import FailingTarget

_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 0b11)
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_MAGIC = 0x3E889045565A9
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001
_EXPORT = struct.Struct(">HQH")
_FLAGS = 0b101
"""Of the export: it has flags, and takes a flush."""

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3


@contextlib.contextmanager
def failing_server(size: int) -> Iterator[FailingTarget]:
    """Serve an export until it is to fail, and put the server away.

    Args:
        size: bytes of the export.
    """
    server = _Server(size)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        uri = f"nbd://127.0.0.1:{server.port}/disk"
        yield FailingTarget(target=uri, faults={"full": server.fill, "gone": server.close})
    finally:
        server.close()
        thread.join()


class _Server:
    """One export.

    Args:
        size: its bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._turn = threading.Lock()
        self._client: socket.socket | None = None
        self._closed = False
        self._full = False
        self.port = self._listener.getsockname()[1]

    def fill(self) -> None:
        """From now on there is no room for anything that is written."""
        self._full = True

    def close(self) -> None:
        """End every connection, and take none any more."""
        with self._turn:
            self._closed = True
            for each in (self._listener, self._client):
                if each is not None:
                    # It wakes up who waits at it; closing it does not.
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        """Take clients until it is closed."""
        with self._listener:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                with client:
                    with self._turn:
                        if self._closed:
                            return
                        self._client = client
                    self._attend(client)

    def _attend(self, client: socket.socket) -> None:
        # A client may go at any point.
        with contextlib.suppress(OSError, EOFError):
            client.sendall(_GREETING)
            _exactly(client, 4)
            if self._negotiate(client):
                while self._answer(client):
                    pass
        with self._turn:
            # Before it is closed: its number may become another one's.
            self._client = None

    def _negotiate(self, client: socket.socket) -> bool:
        while True:
            _, option, length = _OPTION.unpack(_exactly(client, _OPTION.size))
            _exactly(client, length)
            if option == _GO:
                information = _EXPORT.pack(0, self._size, _FLAGS)
                _reply(client, option, _INFO, information)
                _reply(client, option, _ACK)
                return True
            _reply(client, option, _ACK if option == _ABORT else _UNSUPPORTED)
            if option == _ABORT:
                return False

    def _answer(self, client: socket.socket) -> bool:
        _, _, kind, handle, _, length = _REQUEST.unpack(_exactly(client, _REQUEST.size))
        if kind == _DISCONNECT:
            return False
        number, content = 0, b""
        if kind == _WRITE:
            _exactly(client, length)
            number = errno.ENOSPC if self._full else 0
        elif kind == _READ:
            content = bytes(length)
        elif kind != _FLUSH:
            number = errno.EINVAL
        client.sendall(_REPLY.pack(_REPLY_MAGIC, number, handle) + content)
        return True


def _reply(client: socket.socket, option: int, kind: int, content: bytes = b"") -> None:
    client.sendall(_OPTION_REPLY.pack(_OPTION_MAGIC, option, kind, len(content)) + content)


def _exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = client.recv(count - len(found))
        if not part:
            raise EOFError
        found += part
    return found
