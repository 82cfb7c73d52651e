"""The file of a saved instance: a header that says everything about it, then QEMU's migration stream.

::

    0    16  magic, of which a text transfer would break the line ends
    16    4  version of this layout, big-endian like all that follow
    20    4  bytes of the header
    24    8  seconds since the epoch at which it was restored, 0 when it has not been
    32   32  SHA-256 of the header
    64       the header: JSON, padded with spaces
    4096*n   the stream, to the end of the file

A file that is not complete has zeros in place of the first 64 bytes. Everything in it is hostile until checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import attrs

from hvcore import Finding, Instance, RecordError, as_plain, checks, param, structure

MAGIC = b"HVCORE-SAVED\r\n\x1a\n"
VERSION = 1
"""Of the layout and of the header."""

HEADER_LIMIT = 4 * 2**20
"""Largest header that is read, in bytes."""

CHUNK = 2**20
"""Bytes of the stream that are worked on at once."""

_LEAD = struct.Struct(">16sIIQ32s")
_RESTORED = struct.Struct(">Q")
_RESTORED_AT = 24
_BLOCK = 4096
_NO_LIMIT = 2**63

Compression = Literal["none", "zlib"]


@attrs.frozen(kw_only=True)
class SavedLayer:
    """What an overlay of a disk was when its guest was saved."""

    path: str = param(summary="Where it was.")
    size: int = param(summary="Bytes of the file.", checks=(checks.at_least(0),))
    modified: int = param(summary="When it was last written, in nanoseconds.")


@attrs.frozen(kw_only=True)
class SavedDisk:
    """What a disk was when its guest was saved. A file's size and time tell whether it has been written since."""

    uuid: str = param(summary="Identity of the disk.")
    size: int = param(summary="Bytes of the file; of a block device its capacity.", checks=(checks.at_least(0),))
    modified: int = param(summary="When the file was last written, in nanoseconds; 0 where nobody can tell.")
    layers: tuple[SavedLayer, ...] = param(default=(), summary="The overlays upon it, the topmost last.")


@attrs.frozen(kw_only=True)
class SavedStream:
    """Where the stream is, and what it must be."""

    offset: int = param(summary="Where it begins.", checks=(checks.between(_LEAD.size, HEADER_LIMIT + 2 * _BLOCK),))
    size: int = param(summary="Bytes in the file.", checks=(checks.between(1, _NO_LIMIT),))
    raw_size: int = param(summary="Bytes when it is not compressed.", checks=(checks.between(1, _NO_LIMIT),))
    sha256: str = param(summary="Of its bytes in the file.")
    compression: str = param(summary="How it is compressed.", choices=("none", "zlib"))


@attrs.frozen(kw_only=True)
class SavedRecord:
    """The decisions that the saved guest ran with."""

    instance: Instance = param(summary="The definition.")
    machine: str = param(summary="Versioned machine type.")
    accelerator: str = param(summary="What ran its code.", choices=("kvm", "tcg"))
    cpu_model: str = param(summary="CPU model.")
    qemu_version: str = param(summary="Version of the QEMU that saved it.")
    ports: int = param(default=0, summary="PCI Express root ports.", checks=(checks.between(0, 4096),))
    addresses: Mapping[str, str] = param(factory=dict, summary="Where each device sits, by uuid.")


@attrs.frozen(kw_only=True)
class SavedHeader:
    """Everything that is known of a saved instance without reading its memory."""

    id: str = param(summary="Tells this save from every other.")
    saved: float = param(summary="When, in seconds since the epoch.")
    state: str = param(summary="What it was doing.", choices=("running", "paused", "prelaunch"))
    host_cpu: str = param(summary="What tells the processors of the host from others.")
    record: SavedRecord = param(summary="The decisions.")
    stream: SavedStream = param(summary="The memory and the devices.")
    disks: tuple[SavedDisk, ...] = param(default=(), summary="The disks.")


@attrs.frozen(kw_only=True)
class SavedFile:
    """A file whose header has been checked.

    Attributes:
        header: what it says.
        restored: when it was restored, in seconds since the epoch; 0 when it has not been.
    """

    header: SavedHeader
    restored: int


def reserve(fd: int, header: SavedHeader) -> int:
    """Make room for the header at the beginning of a new file; returns where the stream begins.

    Args:
        fd: the file, which is empty.
        header: what will be written, with numbers of at least as many digits.

    Raises:
        RecordError: it is too large.
    """
    size = len(_encoded(header))
    if size + _BLOCK > HEADER_LIMIT:
        raise RecordError("the definition is too large to be saved", code="record-not-written")
    offset = -(-(_LEAD.size + size) // _BLOCK) * _BLOCK
    os.ftruncate(fd, offset)
    return offset


def complete(fd: int, header: SavedHeader) -> None:
    """Write the header where there is room for it, after which the file can be restored once it has been synced."""
    padded = _encoded(header).ljust(header.stream.offset - _LEAD.size)
    lead = _LEAD.pack(MAGIC, VERSION, len(padded), 0, hashlib.sha256(padded).digest())
    os.pwrite(fd, padded, _LEAD.size)
    os.pwrite(fd, lead, 0)


def mark_restored(fd: int, when: int) -> None:
    """Write down that it was restored, and when; 0 takes it back. The file is synced."""
    os.pwrite(fd, _RESTORED.pack(when), _RESTORED_AT)
    os.fsync(fd)


def open_saved(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a saved file; the caller closes it.

    Raises:
        RecordError: it cannot be opened, or is no file.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        hint = "name a file that 'hv save' wrote" if isinstance(error, FileNotFoundError) else None
        raise RecordError(f"cannot open {path}: {error.strerror}", code="saved-unreadable", hint=hint) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        _refuse(path, "is no file", "saved-foreign")
    return fd


def read_header(fd: int, path: str) -> SavedFile:
    """Read and check the header of a file.

    Args:
        fd: the file.
        path: its path, for errors.

    Raises:
        RecordError: it was not written by `complete`, or is damaged; the message has everything that is wrong.
    """
    try:
        lead = os.pread(fd, _LEAD.size, 0)
        size = os.fstat(fd).st_size
        if lead[:16] == bytes(16) and len(lead) == _LEAD.size:
            _refuse(path, "was never completed: its writer ended before", "saved-incomplete")
        if len(lead) < _LEAD.size or not lead.startswith(MAGIC):
            _refuse(path, "is not the file of a saved instance", "saved-foreign")
        _, version, length, restored, digest = _LEAD.unpack(lead)
        if version != VERSION:
            hint = "restore it with the version that wrote it"
            _refuse(path, f"has format {version}, this version reads {VERSION}", "record-schema", hint)
        if length > HEADER_LIMIT:
            _refuse(path, f"claims a header of {length} bytes", "saved-damaged")
        data = os.pread(fd, length, _LEAD.size)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", code="saved-unreadable") from error
    if len(data) < length:
        _refuse(path, "ends within its header", "saved-truncated")
    if hashlib.sha256(data).digest() != digest:
        _refuse(path, "has a header that does not have its checksum", "saved-damaged")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        _refuse(path, "has a header that is not JSON", "saved-damaged")
    header, findings = structure(SavedHeader, values)
    if not findings and header.stream.offset != _LEAD.size + length:
        where = "stream.offset"
        findings.append(Finding(code="invalid-value", path=where, message="is not where the header ends"))
    if not findings and header.stream.offset + header.stream.size != size:
        message = f"the stream is {size - header.stream.offset} bytes long, not {header.stream.size}"
        findings.append(Finding(code="saved-truncated", path="stream.size", message=message))
    if findings:
        shown = "\n".join(f"  - {finding}" for finding in findings[:20])
        code = "saved-truncated" if findings[0].code == "saved-truncated" else "saved-damaged"
        _refuse(path, f"is damaged:\n{shown}", code)
    return SavedFile(header=header, restored=restored)


def verify_stream(fd: int, path: str, header: SavedHeader, step: Callable[[int], None]) -> None:
    """Read the whole stream and compare its checksum.

    Args:
        fd: the file.
        path: its path, for errors.
        header: its header.
        step: called with the number of bytes read so far; may raise.

    Raises:
        RecordError: it is damaged.
    """
    digest = hashlib.sha256()
    offset, end = header.stream.offset, header.stream.offset + header.stream.size
    try:
        while offset < end:
            data = os.pread(fd, min(CHUNK, end - offset), offset)
            if not data:
                _refuse(path, "has become shorter while it was read", "saved-truncated")
            digest.update(data)
            offset += len(data)
            step(offset - header.stream.offset)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", code="saved-unreadable") from error
    if digest.hexdigest() != header.stream.sha256:
        _refuse(path, "is damaged: the saved memory does not have its checksum", "saved-damaged")


def read_id(path: str) -> str | None:
    """Which save a file holds; ``None`` when it is not there or not complete."""
    try:
        fd = open_saved(path)
    except RecordError:
        return None
    try:
        return read_header(fd, path).header.id
    except RecordError:
        return None
    finally:
        os.close(fd)


def _encoded(header: SavedHeader) -> bytes:
    plain: dict[str, Any] = dict(as_plain(header))
    return json.dumps(plain, separators=(",", ":")).encode()


def _refuse(path: str, why: str, code: str, hint: str | None = None) -> NoReturn:
    raise RecordError(f"{path} {why}", code=code, hint=hint or "restore from another file, or start the instance anew")


def host_cpu() -> str:
    """What tells the processors of this host from others, as far as a guest with CPU model host sees it."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    found: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if not line.strip():
                break  # the first processor stands for all
            if name.strip() in wanted:
                found[name.strip()] = value.strip()
    name = found.get("model name") or found.get("CPU part") or "unknown"
    return f"{name} {hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]}"
