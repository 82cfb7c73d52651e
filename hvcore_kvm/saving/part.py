"""The file while it is being written: under a name of its own, and under its final one only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
from types import TracebackType
from typing import Self

from hvcore import Finding, FindingSet, HostError, InvalidParameters, OperationFailed


def part_of(path: str, ident: str) -> str:
    """The name under which a file is written."""
    return os.path.join(os.path.dirname(path), f".{ident}.hvcore-part")


def check_target(path: str) -> None:
    """Find out whether a file can be made.

    Raises:
        InvalidParameters: something is there, or it cannot be made there.
    """
    parent = os.path.dirname(path)
    problem = None
    if os.path.lexists(path):
        problem = ("file-exists", f"there is something at {path}", "name a file that does not exist")
    elif not os.path.isdir(parent):
        problem = ("directory-missing", f"there is no directory {parent}", "make it first")
    elif not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        problem = ("directory-not-writable", f"no file can be made in {parent}", "name another directory")
    elif len(os.fsencode(os.path.basename(path))) > os.pathconf(parent, "PC_NAME_MAX"):
        problem = ("name-too-long", f"the file system of {parent} has no names that long", "name it shorter")
    if problem is not None:
        code, message, hint = problem
        found = FindingSet([Finding(code=code, path="path", message=message, hint=hint)])
        raise InvalidParameters("it cannot be saved there", found)


class PartFile:
    """A new file in some directory, readable by its owner only. A context manager, which closes it.

    Args:
        part: its path while it is written.
        path: its path afterwards.
    """

    def __init__(self, part: str, path: str) -> None:
        self._part, self._path = part, path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(part, flags, 0o600)
        except OSError as error:
            raise HostError(f"cannot make a file in {os.path.dirname(part)}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def write(self, data: bytes) -> None:
        """Append something.

        Raises:
            OperationFailed: it cannot be written.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise _not_written(self._path, error) from error

    def publish(self) -> None:
        """Give it its final name, unless something has that by now; afterwards it survives a crash of the host.

        Raises:
            OperationFailed: it cannot be done.
        """
        try:
            os.fsync(self.fd)
            try:
                os.link(self._part, self._path, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                # A file system without hard links. Here somebody could come in between.
                if os.path.lexists(self._path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
                os.rename(self._part, self._path)
            discard(self._part)
            sync_directory(self._path)
        except OSError as error:
            raise _not_written(self._path, error) from error


def discard(path: str) -> None:
    """Remove a file; not an error when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(path: str) -> None:
    """Make what was done to the name of a file survive a crash of the host."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _not_written(path: str, error: OSError) -> OperationFailed:
    hint = "make room, or name another file system" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return OperationFailed(f"cannot write {path}: {error.strerror}", code="file-not-written", hint=hint)
