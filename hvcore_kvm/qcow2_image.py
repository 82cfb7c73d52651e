"""Making an empty qcow2 image in an open file. Source: QEMU, docs/interop/qcow2.txt, version 3."""

from __future__ import annotations

import os
import struct

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_ENTRY = 8
_REFCOUNT_ORDER = 4
"""Reference counts of 16 bits, as QEMU makes them."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_TABLE = 1
_REFCOUNT_BLOCK = 2
_L1_TABLE = 3
"""What the clusters hold, by number; the header is in the first."""


def make_qcow2(fd: int, size: int) -> None:
    """Write an empty image over the beginning of a file or block device.

    Args:
        fd: the file, open for writing. What is behind the image's last table stays.
        size: bytes that its guest sees, a multiple of 512.

    Raises:
        OSError: it cannot be written.
    """
    covered = _CLUSTER * (_CLUSTER // _ENTRY)
    entries = max(1, -(-size // covered))
    l1_clusters = -(-entries * _ENTRY // _CLUSTER)
    clusters = _L1_TABLE + l1_clusters
    header = _HEADER.pack(
        *(b"QFI\xfb", 3),
        *(0, 0),  # no backing file
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
    # Last: until then it is no image. The extensions of the header end with eight zeros.
    _write(fd, 0, header.ljust(_CLUSTER, b"\0"))


def _write(fd: int, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
