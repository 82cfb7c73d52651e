"""Looking at the disks of a definition on this host, as a real driver would before a start. Only reads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator

from hvcore import Disk, Finding, Instance
from hvcore_fake.account import listed_names, look
from hvcore_fake.parameters import secret_of
from hvcore_fake.sealed import is_sealed, key_of
from hvcore_fake.world import World

_QCOW2 = b"QFI\xfb"
_HEAD = 8


def check_disks(instance: Instance) -> list[Finding]:
    """Everything that stands against using the disks' files."""
    return [f for index, disk in enumerate(instance.disks) for f in _check(disk, f"disks[{index}]")]


def check_use(world: World, instance: Instance) -> list[Finding]:
    """The disks that another instance has open, unless both only read."""
    users = [(name, disk) for name in listed_names(world) for disk in _open_disks(world, name, instance.name)]
    return [
        Finding(
            code="disk-in-use",
            path=f"disks[{index}].path",
            message=f"{mine.path} is in use by instance {name}",
            hint="stop it first, or let both only read it",
        )
        for index, mine in enumerate(instance.disks)
        for name, theirs in users
        if not (mine.read_only and theirs.read_only)
        and mine.path is not None
        and theirs.path is not None
        and _same_file(mine.path, theirs.path)
    ]


def check_secret(path: str, where: str) -> Iterator[Finding]:
    """Everything that stands against using a file as the secret of a disk."""
    try:
        key_of(path)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        yield Finding(code="secret-unusable", path=where, message=message)
    except ValueError as error:
        hint = "write the secret into it, and nothing else"
        yield Finding(code="secret-unusable", path=where, message=str(error), hint=hint)


def _open_disks(world: World, name: str, own: str) -> Iterable[Disk]:
    account = None if name == own else look(world, name)
    if account is None or account.process is None or account.record is None:
        return ()
    return account.record.instance.disks


def _check(disk: Disk, where: str) -> Iterator[Finding]:
    path = disk.path
    if path is None:
        return  # on a storage server, which is not modelled
    try:
        found = os.stat(path)
    except FileNotFoundError:
        yield Finding(code="disk-missing", path=f"{where}.path", message=f"there is no file {path}")
        return
    except OSError as error:
        message = f"cannot look at {path}: {error.strerror}"
        yield Finding(code="disk-unusable", path=f"{where}.path", message=message)
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "neither a file nor a block device"
        yield Finding(code="disk-not-a-file", path=f"{where}.path", message=f"{path} is {kind}")
        return
    try:
        # Only read: a plan opens nothing for writing.
        with open(path, "rb", buffering=0) as file:
            header = file.read(_HEAD)
        if not disk.read_only and not os.access(path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        yield Finding(code="disk-unusable", path=f"{where}.path", message=f"cannot open {path}: {error.strerror}")
        return
    secret_file = secret_of(disk)
    if secret_file is not None:
        yield from check_secret(secret_file, f"{where}.params.secret_file")
    if is_sealed(header) is not (secret_file is not None):
        words = "is not encrypted" if secret_file is not None else "is encrypted"
        message = f"{path} {words}"
        yield Finding(code="disk-format", path=f"{where}.params.encryption", message=message, hint="correct that")
        return
    if (disk.format == "qcow2") is not (header[: len(_QCOW2)] == _QCOW2):
        words = "a qcow2 image" if header == _QCOW2 else "no qcow2 image"
        message = f"{path} is declared {disk.format} and is {words}"
        yield Finding(code="disk-format", path=f"{where}.format", message=message, hint="correct the format")


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other
