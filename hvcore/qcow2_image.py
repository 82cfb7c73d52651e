"""Making an empty qcow2 image in an open file. Source: QEMU, docs/interop/qcow2.txt, version 3.

QEMU could do so itself, by a job ``blockdev-create``. While that opens the new image, whoever asks for the block nodes
makes QEMU 7.2 abort: ``qcow2_get_specific_info: Assertion `false' failed``.
"""

from __future__ import annotations

import os
import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_ENTRY = 8
_REFCOUNT_ORDER = 4
"""Reference counts of 16 bits, as QEMU makes them."""

_BACKING_FORMAT = 0xE2792ACA
_SPAN = _CLUSTER * (_CLUSTER // _ENTRY)
"""Bytes of the disk that one entry of the first table stands for."""

_MOST = _SPAN * (32 << 20) // _ENTRY
"""The largest disk: QEMU reads no larger first table than of 32 MiB."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_TABLE = 1
_REFCOUNT_BLOCK = 2
_L1_TABLE = 3
"""What the clusters hold, by number; the header is in the first."""


def make_qcow2(fd: int, size: int, base: str | None = None) -> None:
    """Write an empty image over the beginning of a file or block device.

    Args:
        fd: the file, open for writing. What is behind the image's last table stays.
        size: bytes that its guest sees, a multiple of 512.
        base: name of the qcow2 image it is on; ``None`` for none.

    Raises:
        ValueError: the disk is too large for such an image.
        OSError: it cannot be written.
    """
    if size > _MOST:
        raise ValueError(f"a qcow2 image with clusters of {_CLUSTER} bytes has no room for {size} bytes")
    entries = max(1, -(-size // _SPAN))
    l1_clusters = -(-entries * _ENTRY // _CLUSTER)
    clusters = _L1_TABLE + l1_clusters
    # The extensions of the header end with eight zeros.
    name = b"" if base is None else os.fsencode(base)
    extensions = (struct.pack(">II8s", _BACKING_FORMAT, len(b"qcow2"), b"qcow2") if name else b"") + bytes(8)
    header = _HEADER.pack(
        *(b"QFI\xfb", 3),
        *(_HEADER.size + len(extensions) if name else 0, len(name)),
        *(_CLUSTER_BITS, size),
        0,  # not encrypted
        *(entries, _L1_TABLE * _CLUSTER),
        *(_REFCOUNT_TABLE * _CLUSTER, 1),
        *(0, 0),  # no snapshots
        *(0, 0, 0),  # no features
        *(_REFCOUNT_ORDER, _HEADER.size),
    )
    table = struct.pack(">Q", _REFCOUNT_BLOCK * _CLUSTER)
    counts = struct.pack(">H", 1) * clusters
    for number, content in ((_REFCOUNT_TABLE, table), (_REFCOUNT_BLOCK, counts)):
        _write(fd, number * _CLUSTER, content.ljust(_CLUSTER, b"\0"))
    for number in range(_L1_TABLE, clusters):
        _write(fd, number * _CLUSTER, bytes(_CLUSTER))
    # Last: until then it is no image.
    _write(fd, 0, (header + extensions + name).ljust(_CLUSTER, b"\0"))


def _write(fd: int, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
