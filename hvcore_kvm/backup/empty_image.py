"""An empty qcow2 image, written without QEMU. Source: QEMU, docs/interop/qcow2.txt, version 3.

QEMU could do so itself, by a job ``blockdev-create``. While that opens the new image, whoever asks for the block nodes
makes QEMU 7.2 abort: ``qcow2_get_specific_info: Assertion `false' failed``.
"""

from __future__ import annotations

import os
import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_TABLE_SPAN = _CLUSTER * (_CLUSTER // 8)
"""Bytes of the disk that one entry of the first table stands for."""

_REFCOUNT_ORDER = 4
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 104
_BACKING_FORMAT = 0xE2792ACA
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _FIRST_TABLE = 1, 2, 3
"""Clusters of these; the header is in the first."""

_MOST = _TABLE_SPAN * (32 << 20) // 8
"""The largest disk: QEMU reads no larger first table than of 32 MiB."""


def write_empty_image(fd: int, size: int, base: str | None) -> None:
    """Make an image of a file that is empty.

    Args:
        fd: the file.
        size: bytes of the disk.
        base: name of the qcow2 image it is on; ``None`` for none.

    Raises:
        ValueError: the disk is too large for such an image.
        OSError: it cannot be written.
    """
    if size > _MOST:
        raise ValueError(f"a qcow2 image with clusters of {_CLUSTER} bytes has no room for {size} bytes")
    entries = -(-size // _TABLE_SPAN)
    clusters = _FIRST_TABLE + max(-(-8 * entries // _CLUSTER), 1)
    name = b"" if base is None else os.fsencode(base)
    extensions = b""
    if name:
        extensions = struct.pack(">II8s", _BACKING_FORMAT, len(b"qcow2"), b"qcow2")
    extensions += bytes(8)
    header = _HEADER.pack(
        b"QFI\xfb",
        3,
        _HEADER_LENGTH + len(extensions) if name else 0,
        len(name),
        _CLUSTER_BITS,
        size,
        0,
        entries,
        _FIRST_TABLE * _CLUSTER,
        _REFCOUNT_TABLE * _CLUSTER,
        1,
        0,
        0,
        0,
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER_LENGTH,
    )
    os.ftruncate(fd, clusters * _CLUSTER)
    _write(fd, struct.pack(">Q", _REFCOUNT_BLOCK * _CLUSTER), _REFCOUNT_TABLE * _CLUSTER)
    _write(fd, struct.pack(">H", 1) * clusters, _REFCOUNT_BLOCK * _CLUSTER)
    _write(fd, header + extensions + name, 0)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
