"""Which disks are copied, and where to: everything that stands against it is found before anything is made."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from hvcore import ALL_DISKS, Disk, Finding, Instance, MigrationPolicy, boot_id, checks, format_size, param
from hvcore_kvm.block_nodes import attached_nodes
from hvcore_kvm.definition import Definition, DiskDefinition
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.images import Image, check_image
from hvcore_kvm.migration.encrypted_image import HEADER
from hvcore_kvm.monitor import Monitor

_LARGEST = 2**63 - 512
_DISKS = "record.instance"
_SIZES = "record.images"
_NO_CHOICE = 'name the others in copy_disks instead of "all", or start it without that'


@attrs.frozen(kw_only=True)
class SentImage:
    """What the source says of the image of a disk."""

    uuid: str = param(summary="Identity of the disk.")
    size: int = param(checks=(checks.between(0, _LARGEST),), summary="Bytes that the guest sees.")
    allocated: int | None = param(
        default=None, checks=(checks.between(0, _LARGEST),), summary="Bytes that its file takes, where it is a file."
    )
    identities: tuple[str, ...] = param(
        default=(), item_checks=(checks.no_control_characters,), summary="What tells it from other images."
    )

    @property
    def bytes_to_copy(self) -> int:
        """Bytes that a copy takes, as far as can be told without reading it."""
        return self.size if self.allocated is None else min(self.size, self.allocated)


@attrs.frozen(kw_only=True)
class Place:
    """Where a disk is copied to.

    Attributes:
        uuid: the disk.
        path: path of its image.
        format: format of its image; ``luks`` for an encrypted raw one.
        secret_file: file with the secret that opens it; ``None`` for one that is not encrypted.
        size: bytes that the guest sees.
        state: nothing is there, an empty file is, or something that is overwritten.
        device: device number of what is there.
        inode: inode number of what is there; below zero for what is not.
        image: what it will be, for a plan.
    """

    uuid: str
    path: str
    format: str
    size: int
    state: Literal["new", "empty", "overwritten"]
    device: int
    inode: int
    image: Image
    secret_file: str | None = None


def disks_to_copy(policy: MigrationPolicy, instance: Instance) -> tuple[Disk, ...]:
    """The disks of an instance that a policy has copied; those that are only read are not, with ``"all"``."""
    wanted = {uuid.lower() for uuid in policy.copy_disks}
    if ALL_DISKS in wanted:
        return tuple(disk for disk in instance.disks if disk.path is not None and not disk.read_only)
    return tuple(disk for disk in instance.disks if (disk.uuid or "").lower() in wanted)


def check_choice(policy: MigrationPolicy, instance: Instance) -> Iterator[Finding]:
    """Find disks in a policy that an instance does not have."""
    known = {(disk.uuid or "").lower() for disk in instance.disks}
    for index, uuid in enumerate(policy.copy_disks):
        if uuid != ALL_DISKS and uuid.lower() not in known:
            message = f"{uuid} is no disk of the instance"
            hint = f"its disks are: {', '.join(sorted(known)) or 'none'}"
            yield Finding(code="no-disk", path=f"policy.copy_disks[{index}]", message=message, hint=hint)


def sent_images(monitor: Monitor, instance: Instance) -> tuple[SentImage, ...]:
    """What there is to say of the images of all disks, on the source."""
    nodes = attached_nodes(monitor)
    found = []
    for disk in instance.disks:
        node = nodes.get(device_id("disk", disk.uuid or ""), {})
        size = node.get("image", {}).get("virtual-size")
        if disk.path is None or type(size) is not int:
            continue
        allocated = None
        with contextlib.suppress(OSError):
            there = os.stat(disk.path)
            allocated = there.st_blocks * 512 if stat.S_ISREG(there.st_mode) else None
        found.append(
            SentImage(uuid=disk.uuid or "", size=size, allocated=allocated, identities=image_identities(disk.path))
        )
    return tuple(found)


def image_identities(path: str) -> tuple[str, ...]:
    """What an image has in common with itself as another host sees it, on storage that both reach.

    A file has the same number there. That another file has it too is possible, and not likely.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ()
    if not stat.S_ISBLK(found.st_mode):
        return (f"file {found.st_ino}",)
    entry = f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    identities = [f"device {boot_id()} {found.st_rdev}"]
    for name in ("dm/uuid", "wwid", "device/wwid"):
        with contextlib.suppress(OSError), open(f"{entry}/{name}", encoding="ascii", errors="replace") as file:
            word = file.read(256).strip()
            if word and word.isprintable():
                identities.append(f"{name.rpartition('/')[2]} {word}")
    return tuple(identities)


def check_places(
    policy: MigrationPolicy, definition: Definition, sent: Iterable[SentImage]
) -> tuple[tuple[Place, ...], list[Finding]]:
    """Find where the disks are copied to, and what stands against it. Changes nothing.

    Args:
        policy: which disks.
        definition: the instance, as it will run here.
        sent: what the source says of its images.

    Returns:
        A place for each disk that has one, and all findings.
    """
    findings = list(check_choice(policy, definition.instance))
    wanted = {(disk.uuid or "").lower() for disk in disks_to_copy(policy, definition.instance)}
    known = {image.uuid.lower(): image for image in sent}
    places: list[Place] = []
    needed: dict[int, list[tuple[str, int]]] = {}
    for disk in definition.disks:
        uuid = (disk.disk.uuid or "").lower()
        if uuid not in wanted:
            continue
        problems = list(_unfit(disk, policy))
        image = known.get(uuid)
        if image is None and not problems:
            message = f"the source does not say how large disk {uuid} is"
            problems.append(Finding(code="missing-parameter", path=_SIZES, message=message))
        if problems or image is None:
            findings += problems
            continue
        place, problems = _place(disk, image, overwrite=policy.overwrite_disks)
        findings += problems
        if place is not None:
            places.append(place)
            if not place.image.is_block_device:
                needed.setdefault(place.device, []).append((place.path, _room_for(place, image)))
    findings += _room(needed)
    return tuple(places), findings


def _unfit(disk: DiskDefinition, policy: MigrationPolicy) -> Iterator[Finding]:
    """What of a disk forbids that it is copied."""
    given, where = disk.parameters, f"{_DISKS}.{disk.origin}"
    if disk.disk.path is None:
        message = "its image is on a server, which both hosts reach; it is not copied"
        yield Finding(code="not-possible", path=f"{where}.uri", message=message, hint="take it out of copy_disks")
    if disk.disk.read_only:
        message = "the guest only reads it, and nobody can write it on the destination either"
        hint = "copy it there before, by other means, and take it out of copy_disks"
        yield Finding(code="not-possible", path=f"{where}.read_only", message=message, hint=hint)
    if given.secret_file is not None and policy.tls is None:
        message = "it is encrypted where it is stored, and would be readable on its way"
        hint = "move it with TLS, or use storage that both hosts reach"
        yield Finding(code="not-possible", path=f"{where}.params.encryption", message=message, hint=hint)
    if given.shared:
        message = "others write it too; a copy would not have what they write"
        yield Finding(code="not-possible", path=f"{where}.params.shared", message=message, hint=_NO_CHOICE)
    if given.bus in ("scsi-block", "scsi-generic"):
        message = f"a device passed through on bus {given.bus} is not copied"
        yield Finding(code="not-possible", path=f"{where}.params.bus", message=message, hint=_NO_CHOICE)


def _place(disk: DiskDefinition, image: SentImage, *, overwrite: bool) -> tuple[Place | None, list[Finding]]:
    file, where = disk.file, f"{_DISKS}.{disk.origin}.path"
    common: Mapping[str, Any] = {
        "uuid": image.uuid.lower(),
        "path": file.path,
        "format": file.format,
        "size": image.size,
        "secret_file": disk.parameters.secret_file,
    }
    if not os.path.lexists(file.path):
        return _new_place(common, where)
    found, problems = check_image(attrs.evolve(file, format="raw", any_header=True, direct=False))
    findings = [attrs.evolve(problem, path=where) for problem in problems]
    if found is None:
        return None, findings
    there = os.stat(file.path)
    same = set(image.identities) & set(image_identities(file.path))
    if same:
        message = f"{file.path} is the very image that the source has ({sorted(same)[0]}); the copy would destroy it"
        hint = "both hosts reach it: take it out of copy_disks. If it is another one, remove it first"
        findings.append(Finding(code="same-image", path=where, message=message, hint=hint))
    # Who makes an encrypted one may outlive us for a moment, and must not write to what is empty again by then.
    empty = not found.is_block_device and there.st_size == 0 and disk.parameters.secret_file is None
    if not empty and not overwrite:
        message = f"{file.path} is there already on the destination"
        hint = "remove it, or set overwrite_disks, which destroys what is in it; if both hosts reach it, do not copy it"
        findings.append(Finding(code="disk-exists", path=where, message=message, hint=hint))
    if found.is_block_device:
        findings += _device(file.path, file.format, image, where)
    if findings:
        return None, findings
    state: Literal["empty", "overwritten"] = "empty" if empty else "overwritten"
    return Place(**common, state=state, device=there.st_dev, inode=there.st_ino, image=found), []


def _new_place(common: Mapping[str, Any], where: str) -> tuple[Place | None, list[Finding]]:
    path = common["path"]
    directory = os.path.dirname(path)
    try:
        device = os.stat(f"{directory}/.").st_dev
    except OSError as error:
        message = f"cannot look at {directory} on the destination: {error.strerror}"
        return None, [Finding(code="disk-missing", path=where, message=message, hint="make the directory there")]
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        message = f"this user cannot make files in {directory} on the destination"
        return None, [Finding(code="disk-unusable", path=where, message=message)]
    # No file has it, and two disks with one path have the same.
    inode = -1 - zlib.crc32(os.path.realpath(path).encode(errors="surrogateescape"))
    image = Image(is_block_device=False, device=device, inode=inode)
    return Place(**common, state="new", device=device, inode=inode, image=image), []


def _device(path: str, kind: str, image: SentImage, where: str) -> Iterator[Finding]:
    """A raw disk is the whole of a device; a qcow2 image grows on it. What is mounted is not written over."""
    if kind == "luks":
        message = "an encrypted raw disk is not copied to a block device, where its header may take other room"
        yield Finding(code="not-possible", path=where, message=message, hint="have it in a file there, or as qcow2")
        return
    try:
        # The kernel gives a block device to one who asks for it alone (open(2), O_EXCL): file systems, LVM, RAID, swap.
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        busy = error.errno == errno.EBUSY
        message = f"{path} is in use on the destination" if busy else f"cannot open {path}: {error.strerror}"
        hint = "a mounted file system, LVM, RAID or swap has it; take it away from that" if busy else None
        yield Finding(code="disk-in-use" if busy else "disk-unusable", path=where, message=message, hint=hint)
        return
    try:
        has = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    if (kind == "raw" and has != image.size) or has < (image.allocated or 0):
        message = f"{path} has {format_size(has)} on the destination, and the disk {format_size(image.size)}"
        yield Finding(code="device-size", path=where, message=message, hint="make it as large as that of the source")


def _room_for(place: Place, image: SentImage) -> int:
    if place.secret_file is None:
        return image.bytes_to_copy
    # What is all over an encrypted raw disk is noise, also where the source's has holes.
    return HEADER + (image.size if place.format == "luks" else image.bytes_to_copy)


def _room(needed: Mapping[int, list[tuple[str, int]]]) -> Iterator[Finding]:
    for files in needed.values():
        path, need = files[0][0], sum(size for _, size in files)
        system = os.statvfs(os.path.dirname(path))
        free = system.f_bavail * system.f_frsize
        if need > free:
            paths = ", ".join(path for path, _ in files)
            message = f"{paths} take {format_size(need)} on the source; the destination has {format_size(free)} free"
            yield Finding(code="no-space", path=_DISKS, message=message, hint="make room there")
