"""Who is connected to a listening UNIX socket, and who still waits to be, from the kernel's socket diagnostics.

A connection to a UNIX socket succeeds at once and may wait for ever in the backlog of a server that takes one client
at a time. The kernel tells the two apart, and knows which socket is at the other end of each (``sock_diag(7)``).
"""

from __future__ import annotations

import os
import socket
import struct

import attrs

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_DONE, _ERROR = 3, 2

# linux/unix_diag.h
_SHOW_FILE, _SHOW_PEER, _SHOW_PENDING = 0x02, 0x04, 0x08
_FILE, _PEER, _PENDING = 1, 2, 3
_LISTENING = 10

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_TWO_NUMBERS = struct.Struct("=II")


@attrs.frozen(kw_only=True)
class UnixClients:
    """The other ends of a listening UNIX socket, by the inodes of their sockets.

    Attributes:
        connected: those the server has accepted.
        waiting: those it has not, in the order in which it will.
    """

    connected: tuple[int, ...]
    waiting: tuple[int, ...]


def unix_clients(path: str) -> UnixClients | None:
    """The clients of a listening UNIX socket; ``None`` when the kernel does not say, or nobody listens.

    Only sockets of this network namespace are seen.

    Args:
        path: of the socket, however long.
    """
    try:
        found = os.stat(path)
        entries = _dump()
    except OSError:
        return None
    file = found.st_ino & 0xFFFFFFFF, os.major(found.st_dev) << 20 | os.minor(found.st_dev)
    ours = [entry for entry in entries if entry.file == file]
    listening = [entry for entry in ours if entry.state == _LISTENING]
    if not listening:
        return None
    connected = tuple(entry.peer for entry in ours if entry.state != _LISTENING and entry.peer)
    # One that is accepted while the kernel tells of its sockets one by one may be in both.
    waiting = tuple(inode for entry in listening for inode in entry.pending if inode not in connected)
    return UnixClients(connected=connected, waiting=waiting)


@attrs.frozen(kw_only=True)
class _Entry:
    state: int
    file: tuple[int, int] | None
    peer: int
    pending: tuple[int, ...]


def _dump() -> list[_Entry]:
    """All UNIX sockets of this network namespace.

    Raises:
        OSError: the kernel has no such diagnostics.
    """
    show = _SHOW_FILE | _SHOW_PEER | _SHOW_PENDING
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0, 0)
    entries: list[_Entry] = []
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as kernel:
        kernel.sendto(
            _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request, (0, 0)
        )
        while True:
            answer = kernel.recv(1 << 18)
            offset = 0
            while offset < len(answer):
                length, what, *_ = _HEADER.unpack_from(answer, offset)
                if what == _DONE:
                    return entries
                if what == _ERROR:
                    raise OSError(-struct.unpack_from("=i", answer, offset + _HEADER.size)[0], "sock_diag refused")
                entries.append(_entry(answer[offset + _HEADER.size : offset + length]))
                offset += (length + 3) & ~3


def _entry(message: bytes) -> _Entry:
    _, _, state, _, _, _, _ = _MESSAGE.unpack_from(message)
    found: dict[int, bytes] = {}
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, key = _ATTRIBUTE.unpack_from(message, offset)
        found[key] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    file, pending = found.get(_FILE), found.get(_PENDING, b"")
    return _Entry(
        state=state,
        file=_TWO_NUMBERS.unpack(file) if file is not None and len(file) == _TWO_NUMBERS.size else None,
        peer=int.from_bytes(found.get(_PEER, b""), "little" if _LITTLE else "big"),
        pending=struct.unpack(f"={len(pending) // 4}I", pending),
    )


_LITTLE = struct.pack("=H", 1) == b"\1\0"
