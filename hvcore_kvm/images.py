"""Disk images: opened once, looked at through that descriptor, never probed for their format.

A guest can write any header into a raw image, so a format is declared; what is found is only compared with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable

import attrs

from hvcore import Finding, HostError
from hvcore_kvm.definition import DiskDefinition

_HEADER = 512
_MAGIC = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\0": "qed",
    b"LUKS\xba\xbe": "luks",
}
_QCOW2_INCOMPATIBLE = struct.Struct(">Q")
_DATA_FILE_BIT = 1 << 2
# QEMU's image locks (block/file-posix.c): one byte per permission held, one per permission not shared.
_PERM_WRITE_BYTE = 101
_NOT_SHARED_WRITE_BYTE = 201
_FLOCK = struct.Struct("hhqqi4x")


@attrs.frozen(kw_only=True)
class Image:
    """What an opened image is.

    Attributes:
        is_block_device: it is a host block device.
        device: device number of the file system, or of the block device itself.
        inode: inode number; 0 for block devices.
    """

    is_block_device: bool
    device: int
    inode: int


def open_image(disk: DiskDefinition) -> int:
    """Open a disk's image as QEMU is to use it; the caller closes it.

    Raises:
        HostError: it cannot be opened any more; `check_image` has looked before.
    """
    try:
        return os.open(disk.disk.path, _flags(disk))
    except OSError as error:
        raise HostError(f"cannot open {disk.disk.path}: {error.strerror}", code="disk-unusable") from error


def check_image(disk: DiskDefinition) -> tuple[Image | None, list[Finding]]:
    """Find everything that stands against using an image: reads, and changes nothing."""
    path = disk.disk.path
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None, [
            _finding(disk, "disk-missing", f"there is no file {path}", "create it, for example with qemu-img")
        ]
    except OSError as error:
        return None, [_finding(disk, "disk-unusable", f"cannot look at {path}: {error.strerror}")]
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "neither a file nor a block device"
        return None, [_finding(disk, "disk-not-a-file", f"{path} is {kind}", "name an image file or a block device")]
    try:
        # Only read: a plan opens nothing for writing, and udev looks at a block device again once that is closed.
        fd = os.open(path, _flags(disk) & ~os.O_ACCMODE | os.O_NONBLOCK)
    except OSError as error:
        return None, [_finding(disk, "disk-unusable", f"cannot open {path}: {error.strerror}", _open_hint(disk))]
    try:
        if not disk.disk.read_only and not os.access(path, os.W_OK, effective_ids=True):
            why = os.strerror(errno.EACCES)
            return None, [_finding(disk, "disk-unusable", f"cannot open {path}: {why}", _open_hint(disk))]
        opened = os.fstat(fd)
        is_block = stat.S_ISBLK(opened.st_mode)
        image = Image(
            is_block_device=is_block,
            device=opened.st_rdev if is_block else opened.st_dev,
            inode=0 if is_block else opened.st_ino,
        )
        return image, [*_header_findings(disk), *_lock_findings(disk, fd)]
    finally:
        os.close(fd)


def _flags(disk: DiskDefinition) -> int:
    flags = os.O_RDONLY if disk.disk.read_only else os.O_RDWR
    if disk.parameters.cache in ("none", "directsync"):
        # QEMU 9.0 and later want the flag on the descriptor they are given.
        flags |= os.O_DIRECT
    return flags | os.O_CLOEXEC


def _open_hint(disk: DiskDefinition) -> str | None:
    if disk.parameters.cache in ("none", "directsync"):
        return "its file system may not know direct I/O; then use cache writeback"
    return None


def _header_findings(disk: DiskDefinition) -> Iterable[Finding]:
    # A descriptor of its own: one for direct I/O would ask for aligned buffers.
    with open(disk.disk.path, "rb", buffering=0) as file:
        header = file.read(_HEADER)
    seen = next((name for magic, name in _MAGIC.items() if header.startswith(magic)), None)
    declared = disk.disk.format
    if declared == "qcow2":
        if seen != "qcow2":
            what = f"a {seen} image" if seen else "no qcow2 image"
            yield _finding(
                disk, "disk-format", f"{disk.disk.path} is declared qcow2 and is {what}", "correct the format"
            )
        else:
            yield from _qcow2_findings(disk, header)
    elif seen is not None and not disk.parameters.any_header:
        yield _finding(
            disk,
            "disk-format",
            f"{disk.disk.path} is declared raw and begins like a {seen} image",
            f'set format = "{seen}", or params.any_header = true if its guest wrote that',
        )


def _qcow2_findings(disk: DiskDefinition, header: bytes) -> Iterable[Finding]:
    if len(header) < 104:
        yield _finding(disk, "disk-format", f"{disk.disk.path} ends within its qcow2 header", "it is damaged")
        return
    version = int.from_bytes(header[4:8], "big")
    backing = int.from_bytes(header[8:16], "big")
    if version not in (2, 3):
        yield _finding(disk, "disk-format", f"{disk.disk.path} has qcow2 version {version}; 2 and 3 are known")
    if backing:
        yield _finding(
            disk,
            "disk-backing",
            f"the header of {disk.disk.path} names a backing file, which would be opened unchecked",
            "flatten it: qemu-img convert -O qcow2 OLD NEW",
        )
    if version >= 3 and _QCOW2_INCOMPATIBLE.unpack_from(header, 72)[0] & _DATA_FILE_BIT:
        yield _finding(
            disk,
            "disk-backing",
            f"the header of {disk.disk.path} names a data file, which would be opened unchecked",
            "convert it to one file: qemu-img convert -O qcow2 OLD NEW",
        )


def _lock_findings(disk: DiskDefinition, fd: int) -> Iterable[Finding]:
    """Ask whether a QEMU has locked the image, in the way QEMU itself asks."""
    bytes_ = [_PERM_WRITE_BYTE] if disk.disk.read_only else [_PERM_WRITE_BYTE, _NOT_SHARED_WRITE_BYTE]
    for byte in bytes_:
        # QEMU holds shared locks on these bytes; asking about an exclusive one finds them, on any descriptor.
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        except OSError:
            return  # a file system without locks; QEMU copes with it as well
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            yield _finding(
                disk,
                "disk-in-use",
                f"{disk.disk.path} is in use by another QEMU",
                "stop it first; two writers destroy an image",
            )
            return


def _finding(disk: DiskDefinition, code: str, message: str, hint: str | None = None) -> Finding:
    where = "format" if code == "disk-format" else "path"
    return Finding(code=code, path=f"{disk.origin}.{where}", message=message, hint=hint)
