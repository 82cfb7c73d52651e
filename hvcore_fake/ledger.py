"""What is written down about the devices of a running instance, and settling what is under way by what there is."""

from __future__ import annotations

import attrs

from hvcore import (
    Instance,
    without_device,
)
from hvcore_fake.account import record_key
from hvcore_fake.parameters import guest_parameters
from hvcore_fake.plugging import as_backend, devices_of
from hvcore_fake.record import Change, RuntimeRecord
from hvcore_fake.world import World


def begin(world: World, name: str, changes: tuple[Change, ...], after: Instance | None = None) -> None:
    """Write down what is under way with devices of an instance, and the definition with those that are added."""
    record = world.store.read(record_key(name), RuntimeRecord)
    if record is not None:
        idents = {change.ident for change in changes}
        others = tuple(change for change in record.changes if change.ident not in idents)
        begun = attrs.evolve(record, changes=(*others, *changes), instance=after or record.instance)
        world.store.write(record_key(name), begun)


def settle_devices(world: World, name: str) -> tuple[str, ...]:
    """Complete or take back what is under way with devices, by what the process has.

    What the guest has not let go of yet stays under way.

    Args:
        world: where. The caller holds its lock.
        name: the instance.

    Returns:
        What became of each that is settled, for people.
    """
    record, process = world.store.read(record_key(name), RuntimeRecord), world.process(name)
    if record is None or process is None or not record.changes:
        return ()
    instance, left, said = record.instance, [], []
    for change in record.changes:
        device = process.device(change.ident)
        if device is None:
            world.close_backend(name, change.ident)
            if change.kind == "vcpu":
                instance = attrs.evolve(instance, vcpus=instance.vcpus - 1)
            else:
                instance = without_device(instance, change.ident)
            said.append(f"{change.ident} {'removed' if change.action == 'remove' else 'not added'}")
        elif change.action == "add":
            said.append(f"{change.ident} added")
        elif device.asked is None or device.refused:
            said.append(f"{change.ident} kept")
        else:
            left.append(change)
    if said:
        world.store.write(record_key(name), attrs.evolve(record, instance=instance, changes=tuple(left)))
    return tuple(said)


def take_back(world: World, name: str) -> None:
    """Settle, where what was begun has failed."""
    settle_devices(world, name)


def align(world: World, name: str) -> None:
    """Let the process be what its record says, where the guest has no part in it."""
    record, process = world.store.read(record_key(name), RuntimeRecord), world.process(name)
    if record is None or process is None:
        return
    world.behave(name, guest_parameters(record.instance))
    for device in devices_of(record.instance):
        if process.device(device.uuid or "") is not None:
            world.open_backend(name, as_backend(device))
