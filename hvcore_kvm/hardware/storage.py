"""Disks and removable media: block nodes, controllers, I/O threads, limits, and the order of booting."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from hvcore_kvm.command_line import json_option, keyed
from hvcore_kvm.families import FdRequest
from hvcore_kvm.hardware.builder import Builder, device_id, digest_of
from hvcore_kvm.hardware.reservations import reservation_manager
from hvcore_kvm.images import ImageFile, open_image
from hvcore_kvm.parameters.disk import SCSI_BUSES, Throttle
from hvcore_kvm.placement import sata_controllers
from hvcore_kvm.storage_uri import parse_uri

if TYPE_CHECKING:
    from hvcore_kvm.definition import Definition, DiskDefinition
    from hvcore_kvm.parameters.disk import Cdrom

CACHE = {
    # mode: the guest sees a write cache, direct I/O, flushes are ignored
    "none": (True, True, False),
    "writeback": (True, False, False),
    "writethrough": (False, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}
_SCSI_DEVICES = {"scsi": "scsi-hd", "scsi-block": "scsi-block", "scsi-generic": "scsi-generic"}
_SCSI_CONTROLLERS = {
    "virtio-scsi": "virtio-scsi",
    "lsi": "lsi53c895a",
    "megasas": "megasas",
    "am53c974": "am53c974",
    "pvscsi": "pvscsi",
}


def cdrom_bus(drive: Cdrom, family: str) -> str:
    """The bus of a CD-ROM drive, the default of the machine when none was asked for."""
    return drive.bus or {"pc": "ide", "q35": "sata"}.get(family, "scsi")


def boot_indexes(definition: Definition) -> Mapping[str, int]:
    """Boot index by place in the definition (``disks[0]``); empty where a kernel is booted directly."""
    if definition.boot.kernel is not None:
        return {}
    all_of = {
        "disks": [disk.origin for disk in definition.disks],
        "cdroms": [f"cdroms[{index}]" for index in range(len(definition.storage.cdroms))],
        "nics": [nic.origin for nic in definition.nics],
        "floppy": ["floppy"] if definition.storage.floppy is not None else [],
    }
    places = {place for group in all_of.values() for place in group}
    named = {disk.disk.name: disk.origin for disk in definition.disks if disk.disk.name}
    named |= {nic.nic.name: nic.origin for nic in definition.nics if nic.nic.name}
    order: dict[str, None] = {}
    for entry in definition.boot.boot:
        found = all_of.get(entry) if entry in all_of else [entry] if entry in places else [named.get(entry, "")]
        order |= dict.fromkeys(place for place in found or () if place)
    return {place: index for index, place in enumerate(order, 1)}


def add_storage(builder: Builder) -> None:
    """Add I/O threads, limits, controllers, disks and drives."""
    definition = builder.definition
    storage = definition.storage
    for index in range(storage.iothreads):
        values = {"qom-type": "iothread", "id": f"iothread{index}"}
        builder.add(json_option("object", values, origin="params.iothreads"))
    for name, limits in sorted(storage.throttle_groups.items()):
        _add_throttle(builder, f"group-{name}", limits, f"params.throttle_groups.{name}")
    for index in range(_sata_controllers(builder)):
        builder.device("ich9-ahci", f"sata{index}", origin="disks")
    order = boot_indexes(definition)
    for disk in definition.disks:
        add_disk(builder, disk, order.get(disk.origin))
    for index, drive in enumerate(storage.cdroms):
        _add_cdrom(builder, index, drive, order.get(f"cdroms[{index}]"))
    if storage.floppy is not None:
        _add_floppy(builder, storage.floppy, order.get("floppy"))


def _sata_controllers(builder: Builder) -> int:
    definition = builder.definition
    disks = sum(disk.parameters.bus == "sata" for disk in definition.disks)
    drives = sum(cdrom_bus(drive, builder.family) == "sata" for drive in definition.storage.cdroms)
    return sata_controllers(builder.family, disks + drives)


def add_disk(builder: Builder, disk: DiskDefinition, bootindex: int | None) -> None:
    """Add one disk, with its place in the order of booting."""
    uuid = disk.disk.uuid or ""
    ident = device_id("disk", uuid)
    given, origin = disk.parameters, disk.origin
    add_nodes = _add_generic_node if given.bus == "scsi-generic" else _add_nodes
    top = add_nodes(builder, disk, ident)
    guest_cache = CACHE[given.cache][0] if given.write_cache is None else given.write_cache
    passthrough = given.bus in ("scsi-block", "scsi-generic")
    values: dict[str, Any] = {"drive": top}
    if not passthrough:
        values |= {
            "serial": given.serial or uuid.replace("-", "")[:20],
            "write-cache": "on" if guest_cache else "off",
            "logical_block_size": given.logical_block_size,
            # QEMU's own 512 would be refused where the logical size is larger.
            "physical_block_size": given.physical_block_size or given.logical_block_size,
        }
    values["bootindex"] = bootindex
    if given.shared:
        values["share-rw"] = True
    if given.bus not in ("nvme", "scsi-generic"):
        values["rerror"] = None if given.on_read_error == "report" else given.on_read_error
        values["werror"] = None if given.on_write_error == "enospc" else given.on_write_error
    if given.wwn is not None:
        values["wwn"] = int(given.wwn, 16)
    values["rotation_rate"] = given.rotation_rate
    if given.bus == "virtio-blk":
        values |= {
            "num-queues": given.queues,
            "queue-size": given.queue_size,
            "packed": given.packed or None,
            "iothread": None if given.iothread is None else f"iothread{given.iothread}",
            "iothread-vq-mapping": [{"iothread": f"iothread{n}"} for n in given.iothread_mapping] or None,
        }
        builder.virtio("blk", ident, values, uuid=uuid, origin=origin)
    elif given.bus == "nvme":
        values["max_ioqpairs"] = given.queues
        builder.device("nvme", ident, values, uuid=uuid, origin=origin)
    elif given.bus in SCSI_BUSES:
        driver = _SCSI_DEVICES[given.bus]
        space = _scsi_controller(builder, given.controller)
        builder.device(driver, ident, values, uuid=uuid, space=space, origin=origin)
    elif given.bus == "usb":
        bus = builder.usb_bus(origin)
        values = {"bus": bus, **values}
        builder.add(json_option("device", {"driver": "usb-storage", "id": ident, **_given(values)}, origin=origin))
    else:
        builder.device("ide-hd", ident, values, uuid=uuid, space=given.bus, origin=origin)


def _add_nodes(builder: Builder, disk: DiskDefinition, ident: str) -> str:
    """Add the block nodes of a disk, and return the name of the one on top."""
    given, origin = disk.parameters, disk.origin
    common = _common(disk)
    throttled = given.throttle is not None or given.throttle_group is not None
    node: dict[str, Any] = {
        "driver": disk.disk.format,
        "node-name": device_id("image", disk.disk.uuid or "") if throttled else ident,
        **common,
        "detect-zeroes": given.detect_zeroes,
        "file": {**_source(builder, disk, ident), **common},
    }
    if given.secret_file is not None:
        secret = device_id("secret", disk.disk.uuid or "")
        builder.secret(secret, given.secret_file, f"{origin}.params.secret_file")
        if disk.disk.format == "raw":
            node |= {"driver": "luks", "key-secret": secret}
        else:
            node["encrypt"] = {"format": "luks", "key-secret": secret}
    for file in disk.layers:
        path = builder.fdset(_request(file, layer_id(disk.disk.uuid or "", file.path)), origin)
        node = overlay_node(disk, file.path, path, {**node, "read-only": True})
    group = None
    if given.throttle is not None:
        group = device_id("throttle", disk.disk.uuid or "")
        _add_throttle(builder, group, given.throttle, f"{origin}.params.throttle")
    elif given.throttle_group is not None:
        group = f"group-{given.throttle_group}"
    if group is not None:
        node = {"driver": "throttle", "node-name": ident, "throttle-group": group, **common, "file": node}
    builder.add(json_option("blockdev", node, origin=origin))
    return str(node["node-name"])


def layer_id(uuid: str, overlay: str) -> str:
    """The name of the block node of an overlay: the same wherever in the chain it comes to be.

    Args:
        uuid: the disk.
        overlay: path of the overlay.
    """
    return f"{layer_prefix(uuid)}{digest_of(overlay)}"


def layer_prefix(uuid: str) -> str:
    """What the names of the block nodes of all overlays of a disk begin with."""
    return f"layer-{digest_of(uuid.lower())}-"


def top_nodes(names: Container[str], uuid: str, overlay: str | None) -> tuple[str, str]:
    """The node that the device of a disk uses, and the node of the image that takes what is written.

    They are the same, unless there are limits between them.

    Args:
        names: the nodes that QEMU has.
        uuid: the disk.
        overlay: path of its topmost overlay, if it has some.
    """
    top, below = device_id("disk", uuid), device_id("image", uuid)
    # A limit has the name that else the image has.
    limited = below in names
    image = layer_id(uuid, overlay) if overlay is not None else below if limited else top
    return top if limited else image, image


def overlay_node(disk: DiskDefinition, overlay: str, filename: str, below: Mapping[str, Any] | None) -> dict[str, Any]:
    """The block node of an overlay, with the same ways of reading and writing as the image below.

    What is below is only read, but by its format: its descriptor stays one for writing, or nothing could ever be
    committed into it (QEMU opens no node anew with a lock it does not have).

    Args:
        disk: the disk.
        overlay: path of the overlay.
        filename: the path of its descriptor set.
        below: the node it lies upon; ``None`` when that is told later.
    """
    common = _common(disk)
    return {
        "driver": "qcow2",
        "node-name": layer_id(disk.disk.uuid or "", overlay),
        **common,
        "detect-zeroes": disk.parameters.detect_zeroes,
        "file": {"driver": "file", "filename": filename, "aio": disk.parameters.aio, **common},
        "backing": below,
    }


def _common(disk: DiskDefinition) -> dict[str, Any]:
    """What holds for all nodes of a disk."""
    _, direct, no_flush = CACHE[disk.parameters.cache]
    return {
        "cache": {"direct": direct, "no-flush": no_flush},
        "read-only": disk.disk.read_only,
        "auto-read-only": False,
        "discard": disk.parameters.discard,
    }


def _request(file: ImageFile, ident: str) -> FdRequest:
    access = "read-only" if file.read_only else "read-write"
    return FdRequest(name=ident, purpose=f"{file.path}, {access}", open=lambda: open_image(file))


def _source(builder: Builder, disk: DiskDefinition, ident: str) -> dict[str, Any]:
    """The protocol node of a disk: a descriptor we open, or a server that QEMU connects to."""
    if disk.disk.uri is not None:
        source = parse_uri(disk.disk.uri)
        server = source.get("server")
        if isinstance(server, dict) and server.get("type") == "unix":
            builder.reads(server["path"])
        return source
    image = builder.decisions.images[disk.disk.uuid or ""]
    values = {
        "driver": "host_device" if image.is_block_device else "file",
        "filename": builder.fdset(_request(disk.file, ident), disk.origin),
        "aio": disk.parameters.aio,
    }
    return values | _reservations(builder, disk)


def _reservations(builder: Builder, disk: DiskDefinition) -> dict[str, Any]:
    if not disk.parameters.reservations:
        return {}
    return {"pr-manager": reservation_manager(builder, f"{disk.origin}.params.reservations")}


def _add_generic_node(builder: Builder, disk: DiskDefinition, ident: str) -> str:
    """Add the node of a SCSI generic device, which is a character device and knows no cache."""
    file = disk.file
    request = FdRequest(name=ident, purpose=f"{file.path}, SCSI generic", open=lambda: open_image(file))
    values: dict[str, Any] = {"driver": "host_device", "node-name": ident}
    values["filename"] = builder.fdset(request, disk.origin)
    values |= {"read-only": disk.disk.read_only, **_reservations(builder, disk)}
    builder.add(json_option("blockdev", values, origin=disk.origin))
    return ident


def _scsi_controller(builder: Builder, index: int) -> str:
    """Add SCSI controller N once, and return the space of its targets."""
    name = f"scsi{index}"
    if builder.first_time(name):
        storage = builder.definition.storage
        driver = _SCSI_CONTROLLERS[storage.scsi_controller]
        origin = "params.scsi_controller"
        if driver == "virtio-scsi":
            thread = None if storage.scsi_iothread is None else f"iothread{storage.scsi_iothread}"
            builder.virtio("scsi", name, {"iothread": thread}, origin=origin)
        else:
            builder.device(driver, name, origin=origin)
    return name


def _add_cdrom(builder: Builder, index: int, drive: Cdrom, bootindex: int | None) -> None:
    ident, origin = f"cdrom{index}", f"params.cdroms[{index}]"
    values: dict[str, Any] = {"bootindex": bootindex}
    if drive.path is not None or drive.url is not None:
        node = {"driver": "raw", "node-name": ident, "read-only": True, "file": _medium(builder, drive, ident, origin)}
        builder.add(json_option("blockdev", node, origin=origin))
        values = {"drive": ident, **values}
    bus = cdrom_bus(drive, builder.family)
    if bus == "virtio-blk":
        builder.virtio("blk", ident, values, origin=origin)
    elif bus == "scsi":
        builder.device("scsi-cd", ident, values, space=_scsi_controller(builder, 0), origin=origin)
    else:
        builder.device("ide-cd", ident, values, space=bus, origin=origin)


def _medium(builder: Builder, drive: Cdrom, ident: str, origin: str) -> dict[str, Any]:
    if drive.url is not None:
        return {**parse_uri(drive.url), "read-only": True}
    file = ImageFile(path=drive.path or "", format="raw", read_only=True, any_header=True, where=f"{origin}.path")
    return _read_only(builder, file, ident, origin)


def _read_only(builder: Builder, file: ImageFile, ident: str, origin: str) -> dict[str, Any]:
    image = builder.decisions.images.get(file.where)
    driver = "host_device" if image is not None and image.is_block_device else "file"
    path = builder.fdset(_request(file, ident), origin)
    return {"driver": driver, "filename": path, "read-only": file.read_only, "auto-read-only": False}


def floppy_file(path: str) -> ImageFile:
    """The image in the floppy drive."""
    return ImageFile(path=path, format="raw", any_header=True, where="params.floppy")


def _add_floppy(builder: Builder, path: str, bootindex: int | None) -> None:
    origin = "params.floppy"
    node = {"driver": "raw", "node-name": "floppy0", "file": _read_only(builder, floppy_file(path), "floppy0", origin)}
    builder.add(json_option("blockdev", node, origin=origin))
    values: dict[str, Any] = {"driver": "floppy", "id": "floppy0", "drive": "floppy0", "unit": 0}
    if builder.family == "q35":
        # Its chipset has no floppy controller.
        controller = {"driver": "isa-fdc", "id": "fdc0", "bootindexA": bootindex}
        builder.add(json_option("device", _given(controller), origin=origin))
        values["bus"] = "fdc0.0"
    elif bootindex is not None:
        setting = {"driver": "isa-fdc", "property": "bootindexA", "value": str(bootindex)}
        builder.add(keyed("global", None, setting, origin="params.boot"))
    builder.add(json_option("device", values, origin=origin))


def _add_throttle(builder: Builder, ident: str, limits: Throttle, origin: str) -> None:
    values = {"qom-type": "throttle-group", "id": ident, "limits": throttle_limits(limits)}
    builder.add(json_option("object", values, origin=origin))


def throttle_limits(limits: Throttle) -> dict[str, int]:
    """Limits in QEMU's words; those that are not given are left out."""
    values: dict[str, int] = {}
    for kind in ("iops", "bps"):
        for which in ("total", "read", "write"):
            value = getattr(limits, f"{kind}_{which}")
            if value:
                values[f"{kind}-{which}"] = value
        burst = getattr(limits, f"{kind}_burst")
        if burst:
            values |= {f"{kind}-total-max": burst, f"{kind}-total-max-length": limits.burst_seconds}
    return values


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
