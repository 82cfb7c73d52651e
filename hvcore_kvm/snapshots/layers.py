"""The overlays that external snapshots have put above the images of a definition.

Which there are is known from the account of the snapshots alone, never from the header of an image: an overlay names no
image below it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence

import attrs

from hvcore import Finding, HostError, RecordError, WrongState, make_qcow2
from hvcore_kvm.definition import Definition, DiskDefinition
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.images import ImageFile
from hvcore_kvm.snapshots.record import Shelf, SnapshotRecord

_SECTOR = 512
_FORMATS = ("raw", "qcow2")
_SIZE = slice(24, 32)
"""Where the header of a qcow2 image has the size of its disk (QEMU, docs/interop/qcow2.txt)."""


def overlays_of(snapshots: Sequence[SnapshotRecord]) -> dict[str, tuple[str, ...]]:
    """The overlays of each disk, the topmost last, by uuid."""
    found: dict[str, tuple[str, ...]] = {}
    for one in snapshots:
        for uuid, path in one.overlays.items():
            found[uuid] = (*found.get(uuid, ()), path)
    return found


def top_overlays(directory: InstanceDirectory) -> dict[str, str]:
    """Path of the topmost overlay of each disk of an instance that has some, by uuid."""
    return {uuid: paths[-1] for uuid, paths in overlays_of(Shelf(directory).snapshots).items()}


def lower_overlays(snapshots: Sequence[SnapshotRecord], overlays: Mapping[str, str]) -> dict[str, str | None]:
    """Path of the overlay that each of some overlays lies upon; ``None`` for the image that the definition names.

    Args:
        snapshots: all snapshots, those of the overlays among them.
        overlays: paths by uuid of the disk.
    """
    chains = overlays_of(snapshots)
    return {uuid: dict(zip(chains[uuid], (None, *chains[uuid]), strict=False))[path] for uuid, path in overlays.items()}


def covered(snapshots: Sequence[SnapshotRecord], overlays: Mapping[str, str]) -> set[str]:
    """The disks of which another overlay lies upon one of these.

    Args:
        snapshots: all snapshots, those of the overlays among them.
        overlays: paths by uuid of the disk.
    """
    chains = overlays_of(snapshots)
    return {uuid for uuid, path in overlays.items() if path in chains.get(uuid, ())[:-1]}


def with_overlays(definition: Definition, directory: InstanceDirectory) -> tuple[Definition, list[Finding]]:
    """A definition with the overlays of its disks, and what stands against their lying where they do.

    Args:
        definition: the definition, without errors.
        directory: the instance's directory.
    """
    snapshots = [one for one in Shelf(directory).snapshots if one.external]
    overlays = overlays_of(snapshots)
    if not overlays:
        return definition, []
    findings: list[Finding] = []
    disks = []
    for disk in definition.disks:
        uuid = disk.disk.uuid or ""
        if uuid in overlays:
            findings += _against(disk, next(one for one in snapshots if uuid in one.overlays))
            disk = attrs.evolve(disk, overlays=overlays[uuid])
        disks.append(disk)
    return attrs.evolve(definition, disks=tuple(disks)), findings


def _against(disk: DiskDefinition, first: SnapshotRecord) -> Iterator[Finding]:
    base = next(one for one in first.instance.disks if one.uuid == disk.disk.uuid)
    if (disk.disk.path, disk.disk.format) != (base.path, base.format):
        message = f"it has external snapshots upon {base.path}, which is {base.format}"
        hint = f"name that image, or delete the snapshots from {first.name} on first"
        yield Finding(code="snapshot-base", path=f"{disk.origin}.path", message=message, hint=hint)
    yield from _unfit(disk)


def check_bases(definition: Definition) -> Iterator[Finding]:
    """Find every disk upon which no overlay can be laid."""
    usable = 0
    for disk in definition.disks:
        if disk.disk.read_only:
            continue
        found = [*_unfit(disk), *_place(disk)]
        usable += not found
        yield from found
    if definition.storage.floppy is not None:
        message = "a floppy image cannot be kept"
        yield Finding(code="no-snapshots", path="params.floppy", message=message, hint="take it out")
    if not usable:
        message = "it has no disk upon which an overlay can be laid"
        yield Finding(code="no-snapshots", path="disks", message=message, hint="give it a disk in a file")


def _unfit(disk: DiskDefinition) -> Iterator[Finding]:
    given = disk.parameters
    reasons = (
        (disk.disk.uri is not None, "uri", "a disk on a server has no place for an overlay", "take it there"),
        (
            disk.disk.format not in _FORMATS,
            "format",
            f"nothing can be laid upon a {disk.disk.format} image",
            "convert it: qemu-img convert -O qcow2 OLD NEW",
        ),
        (
            bool(given.encryption),
            "params.encryption",
            "what is written to an overlay would not be encrypted",
            "take a snapshot within its image",
        ),
        (given.shared, "params.shared", "a disk that others write to cannot be kept at one moment", None),
        (
            given.bus in ("scsi-block", "scsi-generic"),
            "params.bus",
            "a SCSI device that is passed through takes what is written itself",
            None,
        ),
    )
    for is_so, where, message, hint in reasons:
        if is_so:
            yield Finding(code="no-snapshots", path=f"{disk.origin}.{where}", message=message, hint=hint)


def _place(disk: DiskDefinition) -> Iterator[Finding]:
    path = disk.disk.path
    if path is None:
        return
    where = f"{disk.origin}.path"
    with contextlib.suppress(OSError):
        # One that is not there, or cannot be looked at, is found when its image is checked.
        if not stat.S_ISREG(os.stat(path).st_mode):
            message = f"{path} is no file: an overlay has no place beside it"
            hint = "take a snapshot where the device is made"
            yield Finding(code="no-snapshots", path=where, message=message, hint=hint)
            return
    place = os.path.dirname(path)
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        message = f"no overlay can be made in {place}"
        yield Finding(code="disk-unusable", path=where, message=message, hint="let the driver write there")


def refuse_overlays(directory: InstanceDirectory, what: str, uuid: str | None = None) -> None:
    """Refuse what cannot be done with a disk that consists of several images.

    Args:
        directory: the instance's directory.
        what: what cannot be done with the instance, or with the disk.
        uuid: a disk; ``None`` for all of them.

    Raises:
        WrongState: it has external snapshots.
    """
    having = [one.name for one in Shelf(directory).snapshots if one.external and (uuid is None or uuid in one.overlays)]
    if having:
        names, which = ", ".join(having), "it" if uuid is None else f"disk {uuid}"
        raise WrongState(f"{which} cannot be {what} while it has external snapshots: {names}", hint="delete them first")


def has_overlays(directory: InstanceDirectory) -> bool:
    """Whether there are overlays that only our account knows of. One that cannot be read is none."""
    with contextlib.suppress(RecordError):
        return any(one.external for one in Shelf(directory).snapshots)
    return False


def new_paths(definition: Definition, snapshot: str) -> dict[str, str]:
    """Paths for the overlays of a new snapshot, by uuid of the disk: beside the images, named after them and it."""
    return {
        disk.disk.uuid or "": f"{disk.disk.path}.{snapshot}-{secrets.token_hex(4)}.qcow2"
        for disk in definition.disks
        if not disk.disk.read_only
    }


def top_files(definition: Definition) -> dict[str, ImageFile]:
    """The image that takes what is written, of each writable disk, by uuid."""
    return {disk.disk.uuid or "": (disk.file, *disk.layers)[-1] for disk in definition.disks if not disk.disk.read_only}


def make_overlays(below: Mapping[str, ImageFile], paths: Mapping[str, str]) -> None:
    """Make empty overlays, which outlast a crash of the host.

    Args:
        below: the image that each is to lie upon, by uuid of the disk.
        paths: where each is to be.

    Raises:
        HostError: one of them cannot be made. Others may be there.
    """
    for uuid, path in paths.items():
        try:
            _make(below[uuid], path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"cannot make the overlay {path}: {why}", code="overlay-failed") from error


def _make(below: ImageFile, path: str) -> None:
    found = os.stat(below.path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        make_qcow2(fd, _virtual_size(below))
        if os.geteuid() == 0:
            os.fchown(fd, found.st_uid, found.st_gid)
        os.fchmod(fd, stat.S_IMODE(found.st_mode) & 0o666)
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync_directory(path)


def remove_overlays(paths: Mapping[str, str]) -> None:
    """Remove overlays; one that is not there is no error.

    Raises:
        HostError: one of them cannot be removed.
    """
    for path in paths.values():
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"cannot remove the overlay {path}: {error.strerror}", code="overlay-failed") from error


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _virtual_size(file: ImageFile) -> int:
    """Bytes of the disk that an image holds; QEMU sees whole sectors."""
    if file.format == "raw":
        size = os.stat(file.path).st_size
        return -(-size // _SECTOR) * _SECTOR
    with open(file.path, "rb", buffering=0) as opened:
        return int.from_bytes(opened.read(_SIZE.stop)[_SIZE], "big")
