"""What is written down about the devices of a running instance, and what is under way with them."""

from __future__ import annotations

from typing import Any

import attrs

from hvcore import Disk, Finding, FindingSet, Instance, InvalidParameters, Nic
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.runtime import (
    HOTPLUG,
    PLACEMENT,
    RECORD,
    SCHEMA,
    Change,
    Changes,
    DeviceKind,
    Placement,
    RuntimeRecord,
)


class Ledger:
    """The records of one running instance that hotplug changes.

    The record of the instance names a device from before it is added until after it is gone: whoever takes down what
    the instance had, or completes what was interrupted, knows of it.

    Args:
        directory: the instance's directory.
        record: what it runs with.
    """

    def __init__(self, directory: InstanceDirectory, record: RuntimeRecord) -> None:
        self._directory = directory
        self._record = record
        self.changes = directory.read(HOTPLUG, Changes, schema=SCHEMA) or Changes()

    @property
    def instance(self) -> Instance:
        """The definition as it is now, devices that are on their way included."""
        return self._record.instance

    @property
    def placement(self) -> Placement | None:
        """Where each device sits."""
        return self._directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)

    def begin(self, change: Change) -> None:
        """Write down that something is under way with a device."""
        self._keep((*self._others(change.uuid), change))

    def end(self, uuid: str) -> None:
        """Write down that nothing is under way with a device any more."""
        if self.changes.of(uuid) is not None:
            self._keep(self._others(uuid))

    def write(self, instance: Instance) -> None:
        """Write down another definition."""
        self._record = attrs.evolve(self._record, instance=instance)
        self._directory.write(RECORD, self._record, schema=SCHEMA)

    def place(self, placement: Placement) -> None:
        """Write down other places."""
        self._directory.write(PLACEMENT, placement, schema=SCHEMA, data=True)

    def _others(self, uuid: str) -> tuple[Change, ...]:
        return tuple(change for change in self.changes.pending if change.uuid != uuid)

    def _keep(self, pending: tuple[Change, ...]) -> None:
        self.changes = Changes(pending=pending)
        if pending:
            self._directory.write(HOTPLUG, self.changes, schema=SCHEMA)
        else:
            self._directory.remove(HOTPLUG)


def find_device(instance: Instance, uuid: str) -> Disk | Nic:
    """A disk or NIC of a definition.

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


def kind_of(device: Disk | Nic) -> DeviceKind:
    """What a device is."""
    return "disk" if isinstance(device, Disk) else "nic"


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
    """A definition without a device."""
    return attrs.evolve(
        instance,
        disks=tuple(disk for disk in instance.disks if disk.uuid != uuid),
        nics=tuple(nic for nic in instance.nics if nic.uuid != uuid),
    )
