"""Whether an instance still is what it was when a snapshot was taken: found before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hvcore import Finding, Instance
from hvcore_kvm.definition import Definition
from hvcore_kvm.runtime import RuntimeRecord
from hvcore_kvm.snapshots.live_images import LiveImage
from hvcore_kvm.snapshots.record import RESERVED, SnapshotRecord

_CONVERT = "convert it: qemu-img convert -O qcow2 OLD NEW"


def check_name(name: str, known: Sequence[SnapshotRecord]) -> Iterator[Finding]:
    """What stands against the name of a new snapshot."""
    if name.startswith(RESERVED):
        message = f"{RESERVED}... is taken by the driver itself"
        yield Finding(code="reserved-name", path="snapshot", message=message, hint="name it otherwise")
    if any(one.name == name for one in known):
        hint = "name it otherwise, or delete that one first"
        yield Finding(code="snapshot-exists", path="snapshot", message=f"there is a {name} already", hint=hint)


def check_kinds(known: Sequence[SnapshotRecord]) -> Iterator[Finding]:
    """What stands against one within the images beside the snapshots there are."""
    external = [one.name for one in known if one.external]
    if external:
        message = (
            f"it has external snapshots ({', '.join(external)}), and one within its images would be in their overlays"
        )
        hint = "take an external one, or delete them first"
        yield Finding(code="snapshot-kinds", path="external", message=message, hint=hint)


def check_disks(definition: Definition, *, memory: bool) -> Iterator[Finding]:
    """Find every disk that a snapshot within the images cannot be of.

    Args:
        definition: the instance.
        memory: memory is to be in one of them.
    """
    usable = 0
    for disk in definition.disks:
        if disk.disk.read_only:
            continue
        where = f"{disk.origin}.format"
        if disk.disk.uri is not None:
            message = "a disk on a server cannot hold a snapshot"
            yield Finding(code="no-snapshots", path=f"{disk.origin}.uri", message=message, hint="take it there")
        elif disk.disk.format != "qcow2":
            message = f"{disk.disk.path} is {disk.disk.format}, which cannot hold a snapshot"
            yield Finding(code="no-snapshots", path=where, message=message, hint=_CONVERT)
        elif disk.parameters.shared:
            message = "a disk that others write to cannot be kept at one moment"
            yield Finding(code="no-snapshots", path=f"{disk.origin}.params.shared", message=message)
        else:
            usable += 1
    if definition.storage.floppy is not None:
        message = "a floppy image cannot hold a snapshot"
        yield Finding(code="no-snapshots", path="params.floppy", message=message, hint="take it out")
    if not usable:
        message = "it has no writable disk, and a snapshot is within the images of its disks"
        hint = "give it a qcow2 disk, or save it to a file" if memory else "give it a qcow2 disk"
        yield Finding(code="no-snapshots", path="disks", message=message, hint=hint)


def check_live(instance: Instance, images: Sequence[LiveImage], tag: str) -> Iterator[Finding]:
    """What stands against a new snapshot of the images that QEMU has."""
    by_uuid = {image.uuid: image for image in images}
    for index, disk in enumerate(instance.disks):
        image = by_uuid.get(disk.uuid or "")
        if disk.read_only:
            continue
        if image is None or image.format != "qcow2":
            message = "QEMU shows no qcow2 image of it"
            yield Finding(code="no-snapshots", path=f"disks[{index}]", message=message, hint="restart the instance")
        elif tag in image.tags:
            message = f"the image of disk {image.uuid} has a snapshot {tag} already"
            yield Finding(code="snapshot-exists", path="snapshot", message=message, hint="name it otherwise")


def check_loadable(snapshot: SnapshotRecord, images: Sequence[LiveImage]) -> Iterator[Finding]:
    """What stands against loading a snapshot from the images that QEMU has."""
    by_uuid = {image.uuid: image for image in images}
    for index, disk in enumerate(snapshot.instance.disks):
        image = by_uuid.get(disk.uuid or "")
        if disk.read_only or image is None:
            continue
        if snapshot.name not in image.tags:
            yield missing(index, disk.path or "", snapshot.name)
        if image.bitmaps:
            yield has_bitmaps(
                index, image.bitmaps, "delete the checkpoints first; the next backup has to be a full one"
            )


def has_bitmaps(index: int, bitmaps: Sequence[str], hint: str) -> Finding:
    """The image of a disk has bitmaps that say what was written, and QEMU fails half way with these."""
    names = ", ".join(name or "without a name" for name in bitmaps)
    words = f"the dirty bitmap{'s' if len(bitmaps) > 1 else ''} {names}"
    return Finding(code="dirty-bitmap", path=f"disks[{index}]", message=f"it has {words}", hint=hint)


def missing(index: int, path: str, name: str) -> Finding:
    """The image of a disk has no such snapshot any more."""
    message = f"{path} has no snapshot {name} any more"
    return Finding(code="snapshot-missing", path=f"disks[{index}].path", message=message, hint="delete the snapshot")


def differences(snapshot: SnapshotRecord, running: RuntimeRecord, addresses: Mapping[str, str]) -> Iterator[Finding]:
    """Find where the hardware of an instance that is alive is not what it was when a snapshot was taken.

    Args:
        snapshot: the snapshot, with memory.
        running: what the instance runs with.
        addresses: where its devices sit.
    """
    then, record = snapshot.instance, snapshot.record
    now = running.instance
    hint = "stop it; reverting starts it as it was"
    compared: list[tuple[str, object, object]] = [
        ("memory", then.memory, now.memory),
        ("vcpus", then.vcpus, now.vcpus),
    ]
    if record is not None:
        compared += [
            ("params.machine", record.machine, running.machine),
            ("params.accel", record.accelerator, running.accelerator),
            ("params.cpu_model", record.cpu_model, running.cpu_model),
            ("params.hotplug_ports", record.ports, running.ports),
        ]
    for path, was, is_now in compared:
        if was != is_now:
            yield Finding(code="differs", path=path, message=f"was {was} then, and is {is_now}", hint=hint)
    paths = {disk.uuid: disk.path for disk in now.disks}
    for index, disk in enumerate(then.disks):
        if paths.get(disk.uuid, disk.path) != disk.path:
            message = f"its image was {disk.path} then, and is {paths[disk.uuid]}"
            yield Finding(code="differs", path=f"disks[{index}].path", message=message)
    for kind, old, new in (("disks", then.disks, now.disks), ("nics", then.nics, now.nics)):
        had, has = {device.uuid for device in old}, {device.uuid for device in new}
        for uuid in sorted(str(one) for one in had - has):
            yield Finding(code="differs", path=kind, message=f"it had {uuid} then, and has it no more", hint=hint)
        for uuid in sorted(str(one) for one in has - had):
            yield Finding(code="differs", path=kind, message=f"it did not have {uuid} then", hint=hint)
        for uuid in sorted(str(one) for one in had & has):
            if snapshot.addresses.get(uuid) != addresses.get(uuid):
                message = f"{uuid} sat at {snapshot.addresses.get(uuid)} then, and sits at {addresses.get(uuid)}"
                yield Finding(code="differs", path=kind, message=message, hint=hint)
