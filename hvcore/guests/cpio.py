"""Writes cpio archives of the "newc" format, the one that Linux takes as an initial root file system.

The same entries give the same bytes: root owns everything, all times are 0, the order is by name.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_TRAILER = "TRAILER!!!"
_PARENT_MODE = 0o755


@dataclass(frozen=True)
class CpioEntry:
    """One file, directory or device of an archive.

    Attributes:
        path: the name without a leading slash, such as ``bin/sh``.
        mode: type and permissions, as in ``st_mode``.
        data: the content of a file, or the target of a symbolic link.
        device: major and minor number of a device.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio_directory(path: str, permissions: int = 0o755) -> CpioEntry:
    """Return the entry of a directory.

    Args:
        path: the name without a leading slash.
        permissions: the permission bits.
    """
    return CpioEntry(path, stat.S_IFDIR | permissions)


def cpio_file(path: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """Return the entry of a regular file.

    Args:
        path: the name without a leading slash.
        data: the content.
        permissions: the permission bits.
    """
    return CpioEntry(path, stat.S_IFREG | permissions, data)


def cpio_character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> CpioEntry:
    """Return the entry of a character device.

    Args:
        path: the name without a leading slash.
        major: the major device number.
        minor: the minor device number.
        permissions: the permission bits.
    """
    return CpioEntry(path, stat.S_IFCHR | permissions, device=(major, minor))


def cpio_archive(entries: Iterable[CpioEntry]) -> bytes:
    """Return the archive of the entries; directories on the way that are not given are added.

    Args:
        entries: what to pack, in any order.

    Returns:
        The archive, padded to 512 bytes.

    Raises:
        ValueError: a name is empty, absolute, has ``.`` or ``..`` in it, or occurs twice.
    """
    named: dict[str, CpioEntry] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or entry.path == _TRAILER:
            raise ValueError(f"not a name for a cpio archive: {entry.path!r}")
        if entry.path in named:
            raise ValueError(f"twice in one cpio archive: {entry.path!r}")
        named[entry.path] = entry
    for path in list(named):
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                named.setdefault(str(parent), cpio_directory(str(parent), _PARENT_MODE))
    # By components, so that a directory comes before what is in it.
    order = sorted(named, key=lambda path: path.split("/"))
    members = [_member(number, named[path]) for number, path in enumerate(order, 1)]
    archive = b"".join([*members, _member(0, CpioEntry(_TRAILER, 0))])
    return archive + bytes(-len(archive) % 512)


def _member(inode: int, entry: CpioEntry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = [inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0]
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
