"""What the disks of modelled instances hold, in real files: read as a whole, written here and there."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib

from hvcore import make_qcow2, read_qcow2
from hvcore_fake.sealed import seal, unseal

BLOCK = 1 << 16
"""Bytes of a block: what is kept track of, and copied, as one."""

_ENTRY = 8
_SPAN = BLOCK // _ENTRY
_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_SECTORS_AT = 54
"""Where the number of sectors after the first is in the entry of a compressed cluster, for clusters of 64 KiB."""

_SECTOR = 512
_WINDOW = 12
"""Of deflate: QEMU has no more room for what it looks back at."""

_L1_AT = 40
_COUNTS_AT = 2 * BLOCK
_MOST = BLOCK // 2
"""Clusters that one block of reference counts counts: a modelled disk holds no more than 2 GiB."""


def read_disk(path: str, image_format: str, key: str = "") -> tuple[int, dict[int, bytes]]:
    """Bytes of a disk, and its blocks by number, without those that hold zeros only.

    Args:
        path: its image.
        image_format: how it is in that.
        key: what opens an encrypted one; empty for one that is not.

    Raises:
        ValueError: it is no image of its format, or the key is wrong.
        OSError: it cannot be read.
    """
    if key:
        with open(path, "rb", buffering=0) as file:
            return unseal(file.fileno(), key)
    if image_format == "qcow2":
        return read_qcow2(path)
    found: dict[int, bytes] = {}
    with open(path, "rb", buffering=0) as file:
        size, at = os.lseek(file.fileno(), 0, os.SEEK_END), 0
        while (at := _next_data(file.fileno(), at)) < size:
            number = at // BLOCK
            block = os.pread(file.fileno(), BLOCK, number * BLOCK)
            if any(block):
                found[number] = block
            at = (number + 1) * BLOCK
    return size, found


def write_disk(path: str, image_format: str, offset: int, data: bytes, key: str = "") -> None:
    """Write something to a disk that is there.

    Args:
        path: its image.
        image_format: how it is in that.
        offset: where, in bytes.
        data: what.
        key: what opens an encrypted one; empty for one that is not.

    Raises:
        ValueError: it is no image of its format, or has no such place.
        OSError: it cannot be written.
    """
    size, blocks = read_disk(path, image_format, key)
    if not 0 <= offset <= offset + len(data) <= size:
        raise ValueError(f"{path} has {size} bytes")
    with open(path, "r+b", buffering=0) as file:
        if image_format != "qcow2" and not key:
            os.pwrite(file.fileno(), data, offset)
            return
        for number in touched(offset, len(data)):
            start = number * BLOCK
            block = bytearray(blocks.get(number, b"").ljust(BLOCK, b"\0"))
            first, last = max(offset, start), min(offset + len(data), start + BLOCK)
            block[first - start : last - start] = data[first - offset : last - offset]
            blocks[number] = bytes(block)
        file.truncate(0)
        if key:
            seal(file.fileno(), size, {n: block[: size - n * BLOCK] for n, block in blocks.items()}, key)
        else:
            write_image(file.fileno(), size, blocks)


def replace_disk(path: str, image_format: str, size: int, blocks: dict[int, bytes], key: str = "") -> None:
    """Let an image that is there hold some blocks, and nothing else.

    Args:
        path: the image.
        image_format: how the disk is in it.
        size: bytes of the disk.
        blocks: the blocks by number.
        key: what it is encrypted with; empty for one that is not.

    Raises:
        ValueError: it is too large.
        OSError: it cannot be written.
    """
    with open(path, "r+b", buffering=0) as file:
        file.truncate(0)
        if key:
            seal(file.fileno(), size, blocks, key)
            return
        if image_format == "qcow2":
            write_image(file.fileno(), size, blocks)
            return
        file.truncate(size)
        for number, block in blocks.items():
            os.pwrite(file.fileno(), block, number * BLOCK)


def write_image(
    fd: int, size: int, blocks: dict[int, bytes], base: str | None = None, *, compress: bool = False
) -> None:
    """Write a qcow2 image that holds some blocks.

    Args:
        fd: an empty file, open for writing.
        size: bytes of the disk.
        blocks: what it holds, by number.
        base: name of the image it is on, which has the rest.
        compress: store what becomes smaller by it compressed, as QEMU reads it.

    Raises:
        ValueError: it is too large.
        OSError: it cannot be written.
    """
    make_qcow2(fd, size, base)
    first = os.fstat(fd).st_size // BLOCK
    tables = sorted({number // _SPAN for number in blocks})
    l1_at = struct.unpack(">Q", os.pread(fd, 8, _L1_AT))[0]
    entries: dict[int, int] = {}
    end = (first + len(tables)) * BLOCK
    # Those that are stored whole first: they begin where a cluster does.
    stored = {number: block.ljust(BLOCK, b"\0") for number, block in sorted(blocks.items())}
    packed = {number: small for number, block in stored.items() if (small := _deflated(block))} if compress else {}
    for number in (number for number in stored if number not in packed):
        _place(fd, end, stored[number])
        entries[number] = end | _COPIED
        end += BLOCK
    counts = [1] * (end // BLOCK)
    for number, small in packed.items():
        _place(fd, end, small)
        last = end + len(small) - 1
        entries[number] = _COMPRESSED | (last // _SECTOR - end // _SECTOR) << _SECTORS_AT | end
        # A cluster of the file is counted once for each that has a part of it.
        counts += [0] * (last // BLOCK + 1 - len(counts))
        for cluster in range(end // BLOCK, last // BLOCK + 1):
            counts[cluster] += 1
        end = last + 1
    for index, table in enumerate(tables):
        at = (first + index) * BLOCK
        row = [entries.get(table * _SPAN + within, 0) for within in range(_SPAN)]
        os.pwrite(fd, struct.pack(f">{_SPAN}Q", *row), at)
        os.pwrite(fd, struct.pack(">Q", at | _COPIED), l1_at + table * _ENTRY)
    os.pwrite(fd, struct.pack(f">{len(counts)}H", *counts), _COUNTS_AT)
    os.ftruncate(fd, len(counts) * BLOCK)


def image_identity(path: str) -> str:
    """What tells an image from every other, also when it gets another name; empty when it cannot be looked at."""
    try:
        return f"file {os.stat(path).st_ino}"
    except OSError:
        return ""


def opened_path(path: str, identity: str) -> str:
    """Where an image is that was opened by a path: there, or under another name in the same directory.

    What stands for an open file in the model: the file, whatever it is called by now.
    """
    if not identity or image_identity(path) == identity:
        return path
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(path)) as entries:
        for entry in entries:
            if f"file {entry.inode()}" == identity:
                return entry.path
    return path


def touched(offset: int, length: int) -> range:
    """The numbers of the blocks that a write touches."""
    return range(offset // BLOCK, -(-(offset + length) // BLOCK))


def _deflated(block: bytes) -> bytes | None:
    """A block compressed as in a qcow2 image; ``None`` when that makes it no smaller."""
    packer = zlib.compressobj(wbits=-_WINDOW)
    small = packer.compress(block) + packer.flush()
    return small if len(small) < len(block) else None


def _place(fd: int, at: int, data: bytes) -> None:
    if at + len(data) > _MOST * BLOCK:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    os.pwrite(fd, data, at)


def _next_data(fd: int, at: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.lseek(fd, 0, os.SEEK_END)
