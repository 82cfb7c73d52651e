"""Planning one device of a running instance without planning the rest of it again.

The device is built by the code that builds it for a start. What the rest of the instance would add to the plan is known
already: its places are kept, its controllers are there. Whatever is out of the ordinary is left to a plan of the whole
instance, and so is every refusal: its findings are those of a start.
"""

from __future__ import annotations

from hvcore import Directories, Instance
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.definition import Definition, DiskDefinition, NicDefinition
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.families import NicPlan
from hvcore_kvm.hardware.builder import Builder
from hvcore_kvm.hardware.network import add_nic
from hvcore_kvm.hardware.storage import add_disk, boot_indexes
from hvcore_kvm.host_checks import check_device, image_key
from hvcore_kvm.hotplug.device_plan import DevicePlan, cut
from hvcore_kvm.launch_plan import Decisions
from hvcore_kvm.parameters.disk import SCSI_BUSES
from hvcore_kvm.runtime import PLACEMENT, SCHEMA, Placement, RuntimeRecord
from hvcore_kvm.support import check_support

PlannedDevice = tuple[DevicePlan, Placement]
"""What makes a device, and the record of all places with its own."""


def plan_single(
    definition: Definition,
    uuid: str,
    capabilities: QemuCapabilities,
    running: RuntimeRecord,
    directory: InstanceDirectory,
    directories: Directories,
) -> PlannedDevice | None:
    """Plan one disk or NIC of an instance that runs; touches nothing.

    Args:
        definition: the instance with the device, without errors.
        uuid: the device.
        capabilities: what the QEMU program can do.
        running: what the instance runs with.
        directory: its directory.
        directories: the driver's.

    Returns:
        What makes the device, and the record of all places; ``None`` when only a plan of the whole instance can say.
    """
    kept = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)
    device = next((d for d in definition.disks if d.disk.uuid == uuid), None) or next(
        (n for n in definition.nics if n.nic.uuid == uuid), None
    )
    if device is None or kept is None or kept.machine != running.machine or not _is_ordinary(definition, device, kept):
        return None
    images, findings = check_device(definition, device, capabilities, directories)
    if findings:
        return None
    decisions = Decisions(
        definition=definition,
        capabilities=capabilities,
        machine=running.machine,
        choice=Choice(accelerator=Accelerator(running.accelerator), reason="it runs with it"),
        images=images,
        firmware=None,
        programs={},
        kept=kept,
        ports=running.ports,
    )
    builder = Builder(decisions, directory, _occupied(definition.instance, kept, uuid))
    order = boot_indexes(definition)
    nics: tuple[tuple[NicDefinition, NicPlan], ...] = ()
    if isinstance(device, DiskDefinition):
        add_disk(builder, device, order.get(device.origin))
    else:
        nics = ((device, add_nic(builder, device, order.get(device.origin))),)
    options, placed = builder.placed()
    if builder.findings or list(check_support(options, capabilities)):
        return None
    return cut(definition, nics, options, builder.fds, uuid), placed


def _is_ordinary(definition: Definition, device: DiskDefinition | NicDefinition, kept: Placement) -> bool:
    """It shares nothing with the rest of the instance that would have to be there, or be there once."""
    if isinstance(device, NicDefinition):
        return device.parameters.failover is None and device.parameters.model != "usb-net"
    given = device.parameters
    if given.reservations or given.bus == "usb":
        return False
    if given.bus in SCSI_BUSES and f"driver/scsi{given.controller}" not in kept.addresses:
        return False
    others = [disk.disk.path for disk in definition.disks if disk is not device and disk.disk.path is not None]
    others += [drive.path for drive in definition.storage.cdroms if drive.path is not None]
    others += [usb.path for usb in definition.devices.usb if usb.path is not None]
    others += [definition.storage.floppy] if definition.storage.floppy is not None else []
    path = device.disk.path
    return path is None or image_key(path) not in {image_key(other) for other in others}


def _occupied(instance: Instance, kept: Placement, uuid: str) -> frozenset[str]:
    """Places of everything but the device; not those kept for disks and NICs that have gone, which may be used."""
    there = {*(disk.uuid for disk in instance.disks), *(nic.uuid for nic in instance.nics)}
    return frozenset(
        place for owner, place in kept.addresses.items() if owner != uuid and ("/" in owner or owner in there)
    )
