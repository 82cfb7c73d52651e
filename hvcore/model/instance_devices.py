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


def device_clashes(instance: Instance, device: Disk | Nic) -> list[Finding]:
    """What a device has that only one device of a definition may have, and another one has already.

    Args:
        instance: the definition, in which the device itself may be.
        device: the device. One with the same uuid is itself.

    Returns:
        A finding for each, with a path below ``device``.
    """
    place = "disks" if isinstance(device, Disk) else "nics"
    others: tuple[Disk | Nic, ...] = instance.disks if isinstance(device, Disk) else instance.nics
    findings = []
    for attribute in ("name", "mac", "path", "uri"):
        value = getattr(device, attribute, None)
        for index, other in enumerate(others):
            if value and other.uuid != device.uuid and _folded(other, attribute) == _folded(device, attribute):
                message = f"is the same as that of {place}[{index}]"
                findings.append(Finding(code="repeated-value", path=f"device.{attribute}", message=message))
    return findings


def _folded(device: Disk | Nic, attribute: str) -> str | None:
    value: str | None = getattr(device, attribute)
    return value.lower() if value and attribute == "mac" else value
