"""Somebody on another host who writes to a disk that is copied, by NBD. Source: ``doc/proto.md`` of NBD."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

from hvcore import MigrationTarget

_PATIENCE = 30.0
_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC = 0x25609513
_MODERN = 0b11
_GO, _WRITE = 7, 1
_ACK, _FAILED = 1, 1 << 31


@contextlib.contextmanager
def intruder(target: MigrationTarget, uuid: str) -> Iterator[Callable[[int, bytes], bool]]:
    """Connect to a disk that is copied, and let go of it; who cannot connect cannot write.

    Args:
        target: what the destination has said; its disks are taken without TLS.
        uuid: the disk.

    Raises:
        TimeoutError: neither an answer nor a refusal has come.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = socket.create_connection((target.address, target.disks_port or 0), timeout=_PATIENCE)
            stack.enter_context(server)
            chosen = _choose(server, uuid)
        except (ConnectionError, EOFError):
            chosen = False
        yield lambda offset, data: chosen and _write(server, offset, data)


def _choose(server: socket.socket, export: str) -> bool:
    """Ask for an export; says whether there is one of that name."""
    _exactly(server, _GREETING.size)
    name = export.encode()
    wanted = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    server.sendall(struct.pack(">I", _MODERN) + _OPTION.pack(b"IHAVEOPT", _GO, len(wanted)) + wanted)
    while True:
        _, _, kind, length = _OPTION_REPLY.unpack(_exactly(server, _OPTION_REPLY.size))
        _exactly(server, length)
        if kind == _ACK or kind >= _FAILED:
            return bool(kind == _ACK)


def _write(server: socket.socket, offset: int, data: bytes) -> bool:
    try:
        server.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _WRITE, 1, offset, len(data)) + data)
        _, error, _ = _REPLY.unpack(_exactly(server, _REPLY.size))
    except (ConnectionError, EOFError):
        return False
    return bool(error == 0)


def _exactly(server: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = server.recv(count - len(found))
        if not part:
            raise EOFError
        found += part
    return found
