"""Parameters of disks and of removable media."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, Size, checks, param
from hvcore_kvm.parameters.syntax import disk_serial, object_name, power_of_two, world_wide_name

SCSI_BUSES = ("scsi", "scsi-block", "scsi-generic")
"""Buses whose devices sit on a SCSI controller."""


@attrs.frozen(kw_only=True)
class Throttle:
    """Limits of input and output, for one disk or one group of disks together; 0 for no limit."""

    iops_total: int = param(
        default=0, checks=(checks.at_least(0),), unit="operations a second", summary="All operations."
    )
    iops_read: int = param(default=0, checks=(checks.at_least(0),), unit="operations a second", summary="Reads.")
    iops_write: int = param(default=0, checks=(checks.at_least(0),), unit="operations a second", summary="Writes.")
    bps_total: Size = param(default=Size(0), checks=(checks.at_least(0),), unit="bytes a second", summary="All bytes.")
    bps_read: Size = param(default=Size(0), checks=(checks.at_least(0),), unit="bytes a second", summary="Bytes read.")
    bps_write: Size = param(
        default=Size(0), checks=(checks.at_least(0),), unit="bytes a second", summary="Bytes written."
    )
    iops_burst: int = param(
        default=0, checks=(checks.at_least(0),), unit="operations a second", summary="All operations, in a burst."
    )
    bps_burst: Size = param(
        default=Size(0), checks=(checks.at_least(0),), unit="bytes a second", summary="All bytes, in a burst."
    )
    burst_seconds: int = param(
        default=1, checks=(checks.between(1, 3600),), unit="seconds", summary="How long a burst may last."
    )


@attrs.frozen(kw_only=True)
class DiskParameters:
    """One disk, as the guest sees it and as QEMU reads it."""

    bus: str = param(
        default="virtio-blk",
        choices=("virtio-blk", "scsi", "scsi-block", "scsi-generic", "nvme", "sata", "ide", "usb"),
        aliases=("disk_type",),
        summary="Device the guest sees. scsi sits on a SCSI controller; scsi-block and scsi-generic pass a SCSI device "
        "of the host through.",
    )
    controller: int = param(
        default=0, checks=(checks.between(0, 15),), summary="Which SCSI controller it sits on, counted from 0."
    )
    cache: str = param(
        default="writeback",
        choices=("none", "writeback", "writethrough", "directsync", "unsafe"),
        aliases=("disk_cache",),
        summary="Cache mode: whether the host's page cache is used, and whether writes wait for the disk.",
    )
    write_cache: bool | None = param(
        default=None, summary="Whether the guest sees a write cache that it must flush; as cache says when not given."
    )
    aio: str = param(
        default="threads",
        choices=("threads", "native", "io_uring"),
        aliases=("disk_aio",),
        summary="How QEMU does input and output; native needs a cache mode without the host's page cache.",
    )
    discard: str = param(
        default="unmap",
        choices=("unmap", "ignore"),
        aliases=("disk_discard",),
        summary="Whether space the guest frees is given back.",
    )
    detect_zeroes: str = param(
        default="off",
        choices=("off", "on", "unmap"),
        summary="Whether writes of zeroes are noticed and made cheap; unmap gives their space back.",
    )
    serial: str | None = param(
        default=None,
        checks=(disk_serial,),
        summary="Serial number the guest sees; the beginning of the uuid when not given.",
    )
    wwn: str | None = param(
        default=None, checks=(world_wide_name,), summary="World wide name the guest sees (scsi, sata, ide)."
    )
    logical_block_size: int | None = param(
        default=None, unit="bytes", checks=(power_of_two(512, 32768),), summary="Sector size the guest sees."
    )
    physical_block_size: int | None = param(
        default=None, unit="bytes", checks=(power_of_two(512, 32768),), summary="Physical block size the guest sees."
    )
    rotation_rate: int | None = param(
        default=None,
        unit="rotations a minute",
        checks=(checks.between(0, 65535),),
        summary="What the guest is told of the disk's speed; 1 for a solid-state disk (scsi, sata, ide).",
    )
    queues: int | None = param(
        default=None,
        checks=(checks.between(1, 64),),
        summary="Request queues; one for each virtual CPU when not given (virtio-blk, nvme).",
    )
    queue_size: int | None = param(
        default=None, checks=(power_of_two(2, 1024),), summary="Requests a queue holds (virtio-blk)."
    )
    packed: bool = param(default=False, summary="Use the packed virtqueue layout (virtio-blk).")
    iothread: int | None = param(
        default=None,
        checks=(checks.between(0, 63),),
        summary="Number of the I/O thread that serves it, below params.iothreads (virtio-blk).",
    )
    iothread_mapping: tuple[int, ...] = param(
        default=(),
        item_checks=(checks.between(0, 63),),
        summary="Numbers of the I/O threads its queues are spread over in turn (virtio-blk; QEMU 9.0 and newer).",
    )
    throttle: Throttle | None = param(
        default=None, changes="live", summary="Limits of this disk alone; see throttle_group for several together."
    )
    throttle_group: str | None = param(
        default=None,
        checks=(object_name,),
        changes="live",
        summary="Name of one of params.throttle_groups, whose limits hold for all its disks together.",
    )
    on_read_error: str = param(
        default="report",
        choices=("report", "ignore", "stop"),
        summary="What a failed read does: the guest is told, it is ignored, or the guest is stopped.",
    )
    on_write_error: str = param(
        default="enospc",
        choices=("report", "ignore", "stop", "enospc"),
        summary="What a failed write does; enospc stops the guest when there is no space left, and reports the rest.",
    )
    encryption: bool = param(
        default=False, summary="The image is encrypted with LUKS: inside qcow2, or as a whole with format raw."
    )
    secret_file: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="File that holds the passphrase of an encrypted image, in one line.",
    )
    reservations: bool = param(
        default=False,
        summary="The guest may reserve the device for itself and others (SCSI persistent reservations); qemu-pr-helper "
        "does it, as root (scsi-block, scsi-generic).",
    )
    shared: bool = param(
        default=False, summary="Other instances may write it at the same time; their guests must agree how."
    )
    any_header: bool = param(
        default=False,
        summary="Accept a raw disk that begins with the header of another image format: its guest wrote it.",
    )


@attrs.frozen(kw_only=True)
class Cdrom:
    """One CD-ROM drive."""

    path: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        changes="live",
        aliases=("cdrom_image_path", "cdrom2_image_path"),
        summary="Image file in the drive; an empty drive without path and url.",
    )
    url: str | None = param(
        default=None,
        checks=(checks.no_control_characters,),
        changes="live",
        summary="Image in the drive, read over the network: http, https, ftp or ftps.",
    )
    bus: str | None = param(
        default=None,
        choices=("ide", "sata", "scsi", "virtio-blk"),
        aliases=("cdrom_disk_type",),
        summary="Device the guest sees; ide on pc, sata on q35, scsi on virt when not given.",
    )


@attrs.frozen(kw_only=True)
class StorageParameters:
    """Controllers, groups and removable media that belong to no single disk."""

    scsi_controller: str = param(
        default="virtio-scsi",
        choices=("virtio-scsi", "lsi", "megasas", "am53c974", "pvscsi"),
        aliases=("scsi_controller_type",),
        summary="Kind of the SCSI controllers; there are as many as the disks name.",
    )
    scsi_iothread: int | None = param(
        default=None,
        checks=(checks.between(0, 63),),
        summary="Number of the I/O thread that serves the SCSI controllers (virtio-scsi).",
    )
    iothreads: int = param(
        default=0, checks=(checks.between(0, 64),), summary="I/O threads, which disks name by number."
    )
    throttle_groups: Mapping[str, Throttle] = param(
        factory=dict, changes="live", summary="Limits that several disks share, by name."
    )
    cdroms: tuple[Cdrom, ...] = param(default=(), summary="CD-ROM drives, in order; each may be empty.")
    floppy: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        changes="live",
        aliases=("floppy_image_path",),
        summary="Image file in the floppy drive (pc, q35).",
    )


def disk_rules(disk: DiskParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    if disk.aio == "native" and disk.cache not in ("none", "directsync"):
        yield Finding(
            code="contradiction",
            path="aio",
            message=f"native needs cache none or directsync, and cache is {disk.cache}",
            hint='set cache = "none", or aio = "threads"',
        )
    for name, buses in _ONLY_FOR.items():
        value = getattr(disk, name)
        if value not in (None, False, ()) and disk.bus not in buses:
            message = f"goes with bus {', '.join(buses)}, and it is {disk.bus}"
            yield Finding(code="contradiction", path=name, message=message)
    if disk.controller and disk.bus not in SCSI_BUSES:
        message = f"goes with bus {', '.join(SCSI_BUSES)}, and it is {disk.bus}"
        yield Finding(code="contradiction", path="controller", message=message)
    if disk.bus in ("scsi-block", "scsi-generic"):
        for name in ("logical_block_size", "physical_block_size", "rotation_rate", "wwn", "write_cache", "serial"):
            if getattr(disk, name) is not None:
                message = f"is the real device's own with bus {disk.bus}"
                yield Finding(code="contradiction", path=name, message=message)
    logical, physical = disk.logical_block_size, disk.physical_block_size
    if logical is not None and physical is not None and physical < logical:
        message = f"{physical} is smaller than logical_block_size, which is {logical}"
        yield Finding(code="contradiction", path="physical_block_size", message=message)
    if disk.encryption != (disk.secret_file is not None):
        where = "secret_file" if disk.encryption else "encryption"
        message = "is needed: encryption and secret_file go together"
        yield Finding(code="incomplete", path=where, message=message)
    if disk.iothread is not None and disk.iothread_mapping:
        message = "a disk has one of iothread and iothread_mapping"
        yield Finding(code="contradiction", path="iothread_mapping", message=message)
    if disk.throttle is not None and disk.throttle_group is not None:
        yield Finding(
            code="contradiction", path="throttle_group", message="a disk has one of throttle and throttle_group"
        )
    if disk.detect_zeroes == "unmap" and disk.discard == "ignore":
        message = "unmap needs discard unmap, and it is ignore"
        yield Finding(code="contradiction", path="detect_zeroes", message=message)
    if disk.throttle is not None:
        yield from (finding.below("throttle") for finding in throttle_rules(disk.throttle))


def throttle_rules(limits: Throttle) -> Iterator[Finding]:
    """What is wrong with several limits together; QEMU's own rules (util/throttle)."""
    for kind in ("iops", "bps"):
        total, read, write = (getattr(limits, f"{kind}_{which}") for which in ("total", "read", "write"))
        if total and (read or write):
            message = f"a total goes without {kind}_read and {kind}_write"
            yield Finding(code="contradiction", path=f"{kind}_total", message=message)
        burst = getattr(limits, f"{kind}_burst")
        if burst and (not total or burst <= total):
            message = f"must be above {kind}_total, which is {total}"
            yield Finding(code="contradiction", path=f"{kind}_burst", message=message)


def storage_rules(storage: StorageParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    for name, limits in storage.throttle_groups.items():
        problem = object_name(name)
        if problem:
            yield Finding(code="invalid-value", path="throttle_groups", message=problem)
        yield from (finding.below(f"throttle_groups.{name}") for finding in throttle_rules(limits))
    if storage.scsi_iothread is not None and storage.scsi_controller != "virtio-scsi":
        message = f"goes with virtio-scsi, and scsi_controller is {storage.scsi_controller}"
        yield Finding(code="contradiction", path="scsi_iothread", message=message)
    if storage.scsi_iothread is not None and storage.scsi_iothread >= storage.iothreads:
        message = f"there are {storage.iothreads} I/O threads, counted from 0"
        yield Finding(code="no-such-iothread", path="scsi_iothread", message=message, hint="set params.iothreads")
    for index, drive in enumerate(storage.cdroms):
        if drive.path is not None and drive.url is not None:
            message = "a drive holds one image: path or url"
            yield Finding(code="contradiction", path=f"cdroms[{index}].url", message=message)
        if drive.url is not None and not drive.url.startswith(("http://", "https://", "ftp://", "ftps://")):
            message = "does not begin with http://, https://, ftp:// or ftps://"
            yield Finding(code="invalid-value", path=f"cdroms[{index}].url", message=message)


_ONLY_FOR = {
    "wwn": ("scsi", "sata", "ide"),
    "rotation_rate": ("scsi", "sata", "ide"),
    "queues": ("virtio-blk", "nvme"),
    "queue_size": ("virtio-blk",),
    "packed": ("virtio-blk",),
    "iothread": ("virtio-blk",),
    "iothread_mapping": ("virtio-blk",),
    "reservations": ("scsi-block", "scsi-generic"),
}
