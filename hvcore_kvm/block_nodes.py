"""The block nodes that the devices of a QEMU use. Source: QEMU QMP reference, ``query-block``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvcore_kvm.monitor import Monitor


def attached_nodes(monitor: Monitor) -> Mapping[str, Mapping[str, Any]]:
    """What QEMU says of the block node on top, by id of the device that the guest sees.

    Raises:
        OutcomeUnknown: no answer.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for row in monitor.execute("query-block"):
        inserted = row.get("inserted")
        # A device has its backend below it: /machine/peripheral/ID/virtio-backend.
        for part in str(row.get("qdev") or "").split("/") if isinstance(inserted, dict) else ():
            found[part] = inserted
    return found
