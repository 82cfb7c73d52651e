"""An empty qcow2 image, made without a program that may not be there. Format: docs/interop/qcow2.txt of QEMU."""

from __future__ import annotations

import struct

_CLUSTER = 1 << 16
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def empty_qcow2(size: int) -> bytes:
    """An image of version 3 that holds nothing: header, table and block of reference counts, first-level table.

    Args:
        size: bytes of the disk, at most 512 MiB.
    """
    header = _HEADER.pack(
        b"QFI\xfb",
        3,
        0,  # no backing file
        0,
        16,  # bits of a cluster
        size,
        0,  # no encryption
        1,  # entries of the first-level table, of which each is good for 512 MiB
        3 * _CLUSTER,
        _CLUSTER,
        1,
        0,  # no snapshots
        0,
        0,  # no features
        0,
        0,
        4,  # bits of a reference count: 16
        _HEADER.size,
    )
    counts = struct.pack(">4H", 1, 1, 1, 1)
    clusters = (header, struct.pack(">Q", 2 * _CLUSTER), counts, b"")
    return b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in clusters)
