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


def node_stacks(monitor: Monitor) -> Mapping[str, tuple[str, ...]]:
    """The block nodes of each device from the top down to what is below a filter, by id of the device.

    Source: QEMU QMP reference, ``query-blockstats``; ``query-block`` does not name what is below a filter. Nodes that
    QEMU has put in for a job are left out.

    Raises:
        OutcomeUnknown: no answer.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in monitor.execute("query-blockstats"):
        below = row.get("parent")
        names = [part["node-name"] for part in (row, below) if isinstance(part, Mapping) and part.get("node-name")]
        for part in filter(None, str(row.get("qdev") or "").split("/")):
            found[part] = tuple(map(str, names))
    return found


def block_chains(monitor: Monitor) -> Mapping[str, tuple[str, ...]]:
    """The block nodes of each device, each with what it reads through below it, by id of the device.

    Source: QEMU QMP reference, ``query-blockstats``, ``backing``: images that one is upon, and what is below a filter.
    Nodes that QEMU has put in for a job are left out.

    Raises:
        OutcomeUnknown: no answer.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in monitor.execute("query-blockstats"):
        names, part = [], row
        while isinstance(part, Mapping):
            names.append(str(part.get("node-name", "")))
            part = part.get("backing")
        for ident in filter(None, str(row.get("qdev") or "").split("/")):
            found[ident] = tuple(filter(None, names))
    return found


def node_names(monitor: Monitor) -> frozenset[str]:
    """The names of all block nodes.

    Raises:
        OutcomeUnknown: no answer.
    """
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    return frozenset(str(row.get("node-name")) for row in rows if isinstance(row, Mapping))
