"""Devices of a QEMU process, looked at from outside: what it has open, shows its guest, and cannot read."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from hvcore import Deadline, Disk
from hvcore_kvm.directory import QUERY
from hvcore_kvm.qmp import QmpClient, QmpRefused

_PATIENCE = 30.0
_PERIPHERAL = "/machine/peripheral"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""Header of a qcow2 image of version 3 (``docs/interop/qcow2.txt`` of QEMU)."""
_UNKNOWN_FEATURE = 1 << 40


def holds(pids: Iterable[int], path: str) -> bool:
    """One of some processes has a file open."""
    found = os.stat(path)
    for pid in pids:
        # Descriptors are closed while they are looked at.
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    opened = os.stat(f"/proc/{pid}/fd/{fd}")
                    if (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino):
                        return True
    return False


def unreadable(directory: str) -> tuple[Disk, str]:
    """An image with a feature that no QEMU knows, and what QEMU says of it."""
    path = os.path.join(directory, "unknown-feature.qcow2")
    header = _HEADER.pack(
        *(b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 3 << 16, 1 << 16, 1, 0, 0),
        *(_UNKNOWN_FEATURE, 0, 0, 4, _HEADER.size),
    )
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(4 << 16)
    return Disk(path=path, format="qcow2"), f"Unknown incompatible feature: {_UNKNOWN_FEATURE:x}"


def shown_identity(directory: str) -> frozenset[str]:
    """The system UUID, and the hardware addresses of all devices that have one."""
    with _monitor(directory) as client:
        found = {str(_ask(client, "query-uuid")["UUID"])}
        for row in _ask(client, "qom-list", {"path": _PERIPHERAL}):
            with contextlib.suppress(QmpRefused):
                found.add(_ask(client, "qom-get", {"path": f"{_PERIPHERAL}/{row['name']}", "property": "mac"}))
    return frozenset(word.lower() for word in found)


def polling_interval(directory: str) -> object:
    """How often the balloon asks the guest for its statistics, in seconds."""
    where = {"path": f"{_PERIPHERAL}/balloon0", "property": "guest-stats-polling-interval"}
    with _monitor(directory) as client:
        return _ask(client, "qom-get", where)


def write_disk(directory: str, uuid: str, offset: int, count: int, value: int) -> None:
    """Write bytes of one value through the device of a disk, as its guest would."""
    with _monitor(directory) as client:
        places = [str(row.get("qdev", "")) for row in _ask(client, "query-block")]
        device = next(place for place in places if f"disk-{uuid[:8]}" in place)
        line = f'qemu-io -d {device} "write -P {value} {offset} {count}"'
        _ask(client, "human-monitor-command", {"command-line": line})


@contextlib.contextmanager
def _monitor(directory: str) -> Any:
    folder = os.open(directory, os.O_PATH)
    try:
        with QmpClient.connect(f"/proc/self/fd/{folder}/{QUERY}", Deadline.after(_PATIENCE)) as client:
            yield client
    finally:
        os.close(folder)


def _ask(client: QmpClient, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    return client.execute(command, arguments, deadline=Deadline.after(_PATIENCE))
