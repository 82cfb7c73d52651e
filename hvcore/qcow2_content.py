"""Reading what a qcow2 image holds, with those it is on. Source: QEMU, docs/interop/qcow2.txt, versions 2 and 3."""

from __future__ import annotations

import os
import struct
import zlib

_BLOCK = 1 << 16
_HEADER = struct.Struct(">4sIQIIQIIQ")
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_ENTRY = 8
_SECTOR = 512
_HARMLESS = 0b11
"""Features that do not change where the content is: counts that are not up to date, and a mark of damage."""

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1
_LONGEST_NAME = 1023
_LARGEST_TABLE = 32 << 20
_DEEPEST = 64


def read_qcow2(path: str) -> tuple[int, dict[int, bytes]]:
    """Read an image as its guest sees it. It is read as it is: nobody may write to it meanwhile.

    An image it is on is looked for beside it, by the name in its header, and has to be qcow2 too.

    Args:
        path: the image.

    Returns:
        Bytes of the disk, and its blocks of 64 KiB by number, without those that hold zeros only. The last block may be
        shorter.

    Raises:
        ValueError: it is no such image, is damaged, encrypted or has features that are not known here, such as zstd.
        OSError: it cannot be read.
    """
    return _read(path, _DEEPEST)


def _read(path: str, deepest: int) -> tuple[int, dict[int, bytes]]:
    if not deepest:
        raise ValueError(f"{path} is on itself, or on more than {_DEEPEST} others")
    with open(path, "rb") as file:
        fd = file.fileno()
        size, cluster, table, base = _header(fd, path)
        content: dict[int, bytes] = {}
        if base is not None:
            if os.sep in base:
                raise ValueError(f"{path} is on an image that is not beside it")
            below = _read(os.path.join(os.path.dirname(path), base), deepest - 1)[1]
            content = {number: block for number, block in below.items() if number * _BLOCK < size}
        _overlay(fd, path, size, cluster, table, content)
    return size, {number: block[: size - number * _BLOCK] for number, block in content.items() if any(block)}


def _header(fd: int, path: str) -> tuple[int, int, tuple[int, ...], str | None]:
    """Size, bytes of a cluster, first table, and the name of the image it is on."""
    head = os.pread(fd, _FEATURES_AT + _FEATURES.size, 0)
    if len(head) < _FEATURES_AT:
        raise ValueError(f"{path} is no qcow2 image")
    magic, version, name_at, name_length, bits, size, crypt, entries, table_at = _HEADER.unpack_from(head)
    if magic != b"QFI\xfb" or version not in (2, 3) or not 9 <= bits <= 21:
        raise ValueError(f"{path} is no qcow2 image of version 2 or 3")
    features = _FEATURES.unpack_from(head, _FEATURES_AT)[0] if version == 3 and len(head) > _FEATURES_AT else 0
    if crypt or features & ~_HARMLESS:
        raise ValueError(f"{path} is encrypted, or has features that cannot be read here")
    if name_length > _LONGEST_NAME or entries * _ENTRY > _LARGEST_TABLE:
        raise ValueError(f"{path} is damaged")
    name = os.fsdecode(os.pread(fd, name_length, name_at)) if name_at and name_length else None
    return size, 1 << bits, _table(fd, path, table_at, entries), name


def _overlay(fd: int, path: str, size: int, cluster: int, table: tuple[int, ...], content: dict[int, bytes]) -> None:
    """Put what an image has of its own over what it is on."""
    span = cluster // _ENTRY
    for index, first in enumerate(table):
        if not first & _OFFSET:
            continue
        for place, entry in enumerate(_table(fd, path, first & _OFFSET, span)):
            at = (index * span + place) * cluster
            if not entry or at >= size:
                continue
            if entry & _COMPRESSED:
                _put(content, at, _inflated(fd, path, cluster, entry))
            elif entry & _ZERO:
                _put(content, at, bytes(cluster))
            elif entry & _OFFSET:
                # The file may end within its last cluster.
                _put(content, at, os.pread(fd, cluster, entry & _OFFSET).ljust(cluster, b"\0"))


def _inflated(fd: int, path: str, cluster: int, entry: int) -> bytes:
    """A cluster that is stored compressed: in whole sectors, the first of which it may share with another one."""
    bits = 62 - (cluster.bit_length() - 1 - 8)
    offset = entry & ((1 << bits) - 1)
    sectors = ((entry & (_COMPRESSED - 1)) >> bits) + 1
    stored = os.pread(fd, sectors * _SECTOR - offset % _SECTOR, offset)
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, cluster)
    except zlib.error as error:
        raise ValueError(f"{path} is damaged: a compressed cluster cannot be read") from error
    if len(data) != cluster:
        raise ValueError(f"{path} is damaged: a compressed cluster is too short")
    return data


def _table(fd: int, path: str, at: int, entries: int) -> tuple[int, ...]:
    found = os.pread(fd, entries * _ENTRY, at)
    if len(found) < entries * _ENTRY:
        raise ValueError(f"{path} is damaged: it ends within a table")
    return struct.unpack(f">{entries}Q", found)


def _put(content: dict[int, bytes], at: int, data: bytes) -> None:
    while data:
        number, within = divmod(at, _BLOCK)
        part = data[: _BLOCK - within]
        block = content.get(number, b"").ljust(_BLOCK, b"\0")
        content[number] = block[:within] + part + block[within + len(part) :]
        at, data = at + len(part), data[len(part) :]
