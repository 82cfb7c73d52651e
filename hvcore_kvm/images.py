"""Image files: opened once, looked at through that descriptor, never probed for their format.

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
class ImageFile:
    """A file or block device that QEMU is to read or write.

    Attributes:
        path: where it is.
        format: its declared format: ``raw``, ``qcow2`` or ``luks``.
        read_only: it is only read.
        direct: it is opened without the host's page cache.
        any_header: a raw one may begin with the header of another format.
        shared: others may write it too.
        where: path of the parameter that names it, for findings.
        format_where: path of the parameter that declares its format.
    """

    path: str
    format: str
    where: str
    format_where: str = ""
    read_only: bool = False
    direct: bool = False
    any_header: bool = False
    shared: bool = False


def whole_disk(device: int) -> str:
    """The numbers of a block device, ``MAJOR:MINOR``; those of the whole disk for a partition."""
    numbers = f"{os.major(device)}:{os.minor(device)}"
    entry = f"/sys/dev/block/{numbers}"
    if not os.path.exists(f"{entry}/partition"):
        return numbers
    with open(f"{os.path.dirname(os.path.realpath(entry))}/dev", encoding="ascii") as file:
        return file.read().strip()


@attrs.frozen(kw_only=True)
class Image:
    """What an opened image is.

    Attributes:
        is_block_device: it is a host block device.
        device: device number of the file system, or of the block device itself.
        inode: inode number; 0 for block devices.
        is_character_device: it is a character device, as of SCSI pass-through.
    """

    is_block_device: bool
    device: int
    inode: int
    is_character_device: bool = False


def open_image(file: ImageFile) -> int:
    """Open an image as QEMU is to use it; the caller closes it.

    Raises:
        HostError: it cannot be opened any more; `check_image` has looked before.
    """
    try:
        return os.open(file.path, _flags(file))
    except OSError as error:
        raise HostError(f"cannot open {file.path}: {error.strerror}", code="disk-unusable") from error


def check_image(file: ImageFile, *, character_device: bool = False) -> tuple[Image | None, list[Finding]]:
    """Find everything that stands against using an image: reads, and changes nothing.

    Args:
        file: the image.
        character_device: it may be a character device.
    """
    path = file.path
    try:
        found = os.stat(path)
    except FileNotFoundError:
        hint = "create it, for example with qemu-img"
        return None, [_finding(file, "disk-missing", f"there is no file {path}", hint)]
    except OSError as error:
        return None, [_finding(file, "disk-unusable", f"cannot look at {path}: {error.strerror}")]
    is_character = character_device and stat.S_ISCHR(found.st_mode)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode) or is_character):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "neither a file nor a block device"
        return None, [_finding(file, "disk-not-a-file", f"{path} is {kind}", "name an image file or a block device")]
    if is_character:
        return Image(is_block_device=False, is_character_device=True, device=found.st_rdev, inode=0), []
    try:
        # Only read: a plan opens nothing for writing, and udev looks at a block device again once that is closed.
        fd = os.open(path, _flags(file) & ~os.O_ACCMODE | os.O_NONBLOCK)
    except OSError as error:
        return None, [_finding(file, "disk-unusable", f"cannot open {path}: {error.strerror}", _open_hint(file))]
    try:
        if not file.read_only and not os.access(path, os.W_OK, effective_ids=True):
            why = os.strerror(errno.EACCES)
            return None, [_finding(file, "disk-unusable", f"cannot open {path}: {why}", _open_hint(file))]
        opened = os.fstat(fd)
        is_block = stat.S_ISBLK(opened.st_mode)
        image = Image(
            is_block_device=is_block,
            device=opened.st_rdev if is_block else opened.st_dev,
            inode=0 if is_block else opened.st_ino,
        )
        return image, [*_header_findings(file), *_lock_findings(file, fd)]
    finally:
        os.close(fd)


def _flags(file: ImageFile) -> int:
    flags = os.O_RDONLY if file.read_only else os.O_RDWR
    if file.direct:
        # QEMU 9.0 and later want the flag on the descriptor they are given.
        flags |= os.O_DIRECT
    return flags | os.O_CLOEXEC


def _open_hint(file: ImageFile) -> str | None:
    return "its file system may not know direct I/O; then use cache writeback" if file.direct else None


def _header_findings(file: ImageFile) -> Iterable[Finding]:
    # A descriptor of its own: one for direct I/O would ask for aligned buffers.
    with open(file.path, "rb", buffering=0) as opened:
        header = opened.read(_HEADER)
    seen = next((name for magic, name in _MAGIC.items() if header.startswith(magic)), None)
    if file.format != "raw":
        if seen != file.format:
            what = f"a {seen} image" if seen else f"no {file.format} image"
            message = f"{file.path} is declared {file.format} and is {what}"
            yield _finding(file, "disk-format", message, "correct the format")
        elif seen == "qcow2":
            yield from _qcow2_findings(file, header)
    elif seen is not None and not file.any_header:
        yield _finding(
            file,
            "disk-format",
            f"{file.path} is declared raw and begins like a {seen} image",
            f'set format = "{seen}", or params.any_header = true if its guest wrote that',
        )


def _qcow2_findings(file: ImageFile, header: bytes) -> Iterable[Finding]:
    if len(header) < 104:
        yield _finding(file, "disk-format", f"{file.path} ends within its qcow2 header", "it is damaged")
        return
    version = int.from_bytes(header[4:8], "big")
    # A name without a letter is none: QEMU leaves that behind when it has been told to name nothing.
    backing = int.from_bytes(header[8:16], "big") and int.from_bytes(header[16:20], "big")
    if version not in (2, 3):
        yield _finding(file, "disk-format", f"{file.path} has qcow2 version {version}; 2 and 3 are known")
    if backing:
        yield _finding(
            file,
            "disk-backing",
            f"the header of {file.path} names a backing file, which would be opened unchecked",
            "flatten it: qemu-img convert -O qcow2 OLD NEW",
        )
    if version >= 3 and _QCOW2_INCOMPATIBLE.unpack_from(header, 72)[0] & _DATA_FILE_BIT:
        yield _finding(
            file,
            "disk-backing",
            f"the header of {file.path} names a data file, which would be opened unchecked",
            "convert it to one file: qemu-img convert -O qcow2 OLD NEW",
        )


def _lock_findings(file: ImageFile, fd: int) -> Iterable[Finding]:
    """Ask whether a QEMU has locked the image, in the way QEMU itself asks."""
    if file.shared:
        return
    bytes_ = [_PERM_WRITE_BYTE] if file.read_only else [_PERM_WRITE_BYTE, _NOT_SHARED_WRITE_BYTE]
    for byte in bytes_:
        # QEMU holds shared locks on these bytes; asking about an exclusive one finds them, on any descriptor.
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        except OSError:
            return  # a file system without locks; QEMU copes with it as well
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            yield _finding(
                file,
                "disk-in-use",
                f"{file.path} is in use by another QEMU",
                "stop it first; two writers destroy an image",
            )
            return


def _finding(file: ImageFile, code: str, message: str, hint: str | None = None) -> Finding:
    where = file.format_where or file.where if code == "disk-format" else file.where
    return Finding(code=code, path=where, message=message, hint=hint)
