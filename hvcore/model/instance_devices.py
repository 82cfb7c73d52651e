"""The disks and NICs of a definition: finding one, and a definition with one more, one less or another one; pure."""

from __future__ import annotations

from typing import Any

import attrs

from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.instance import Disk, Instance, Nic


def find_device(instance: Instance, uuid: str) -> Disk | Nic:
    """A disk or NIC of a definition.

    Args:
        instance: the definition.
        uuid: identity of the device.

    Raises:
        InvalidParameters: there is none with this uuid.
    """
    devices: tuple[Disk | Nic, ...] = (*instance.disks, *instance.nics)
    found = next((device for device in devices if device.uuid == uuid), None)
    if found is None:
        has = ", ".join(str(device.uuid) for device in devices) or "none"
        finding = Finding(
            code="no-such-device", path="device", message=f"it has no device {uuid[:60]}", hint=f"it has {has}"
        )
        raise InvalidParameters("there is no such device", FindingSet([finding]))
    return found


def with_device(instance: Instance, device: Disk | Nic) -> Instance:
    """A definition with one more device, the last of its kind."""
    if isinstance(device, Disk):
        return attrs.evolve(instance, disks=(*instance.disks, device))
    return attrs.evolve(instance, nics=(*instance.nics, device))


def with_other_device(instance: Instance, device: Disk | Nic) -> Instance:
    """A definition with a device in place of the one of the same identity."""

    def one(known: Any) -> Any:
        return device if known.uuid == device.uuid else known

    return attrs.evolve(instance, disks=tuple(map(one, instance.disks)), nics=tuple(map(one, instance.nics)))


def without_device(instance: Instance, uuid: str) -> Instance:
    """A definition without a device; the same when it has none with this uuid."""
    return attrs.evolve(
        instance,
        disks=tuple(disk for disk in instance.disks if disk.uuid != uuid),
        nics=tuple(nic for nic in instance.nics if nic.uuid != uuid),
    )
