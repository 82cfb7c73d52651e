"""The images of disks that are copied to this host: made before QEMU starts, gone again if the guest never runs here.

A new one is made under a name of its own and then linked to its path, which fails where anything is. What was written
down before each step tells at any moment which files are ours.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable

from hvcore import (
    HostError,
    make_qcow2,
)
from hvcore_kvm.migration.disk_places import Place
from hvcore_kvm.runtime import DiskFile

_MODE = 0o600


class DiskFiles:
    """Makes the images of one migration. Use it once.

    Args:
        places: where, and how large.
        keep: writes down which files are ours.
        encrypt: makes an encrypted image of a descriptor, of a format, of a size, with the secret of a file.
    """

    def __init__(
        self,
        places: Iterable[Place],
        keep: Callable[[tuple[DiskFile, ...]], None],
        encrypt: Callable[[int, str, int, str], None],
    ) -> None:
        self._places = tuple(places)
        self._keep = keep
        self._encrypt = encrypt
        self._made: tuple[DiskFile, ...] = ()

    def make(self) -> None:
        """Make all of them; QEMU opens none of them by itself, so they belong to whoever runs this.

        Raises:
            HostError: one cannot be made; those before it stay for `remove`.
        """
        for place in self._places:
            try:
                if place.state == "new":
                    self._make(place)
                else:
                    self._prepare(place)
            except OSError as error:
                raise HostError(
                    f"cannot make {place.path}: {error.strerror}", code="disk-unusable", hint="make room, or look there"
                ) from error

    def remove(self) -> None:
        """Take away what was made."""
        remove_files(self._made)

    def _make(self, place: Place) -> None:
        part = os.path.join(os.path.dirname(place.path), f".hvcore-{secrets.token_hex(8)}")
        before = self._made
        self._note((*before, DiskFile(path=place.path, part=part)))
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            self._fill(fd, place)
            found = os.fstat(fd)
        finally:
            os.close(fd)
        self._note((*before, DiskFile(path=place.path, part=part, device=found.st_dev, inode=found.st_ino)))
        os.link(part, place.path, follow_symlinks=False)
        os.unlink(part)

    def _prepare(self, place: Place) -> None:
        alone = os.O_EXCL if place.image.is_block_device else 0
        fd = os.open(place.path, os.O_RDWR | alone | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != (place.device, place.inode):
                raise HostError(f"{place.path} was replaced meanwhile", code="disk-unusable", hint="try again")
            if place.state == "empty":
                file = DiskFile(path=place.path, device=found.st_dev, inode=found.st_ino)
                self._note((*self._made, file))
            self._fill(fd, place)
        finally:
            os.close(fd)

    def _fill(self, fd: int, place: Place) -> None:
        """Make an empty image of what was opened."""
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if regular:
            os.ftruncate(fd, 0)
        if place.secret_file is not None:
            self._encrypt(fd, place.format, place.size, place.secret_file)
        elif place.format == "qcow2":
            make_qcow2(fd, place.size)
        elif regular:
            os.ftruncate(fd, place.size)

    def _note(self, files: tuple[DiskFile, ...]) -> None:
        self._keep(files)
        self._made = files


def remove_files(files: Iterable[DiskFile]) -> None:
    """Take away images that were made for a guest that will never run here; none that anybody else has made."""
    for file in files:
        if file.part:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.part)
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(file.path)
            if not file.inode or (found.st_dev, found.st_ino) != (file.device, file.inode):
                continue
            if file.part:
                os.unlink(file.path)
            else:
                os.truncate(file.path, 0)
