"""What is written down about the devices of a running instance, and what is under way with them."""

from __future__ import annotations

import attrs

from hvcore import Disk, Instance, Nic
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


def kind_of(device: Disk | Nic) -> DeviceKind:
    """What a device is."""
    return "disk" if isinstance(device, Disk) else "nic"
