"""One directory per instance, 0700: sockets, event journal, records. Everything in it is opened beneath its descriptor.

::

    STATE/instances/NAME/    volatile: control query serial agent (sockets) events stderr companions journal root
                             process.json record.json companions.json stop.json reboot.json migration.json
                             history-before.json
    DATA/instances/NAME/     kept: history.json placement.json firmware-vars.fd uefi-vars.json tpm
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from hvcore import Directories, HostError, format_size, private_directory, read_record, write_record
from hvcore_kvm.ring_log import Precious, hold_to_size, nothing_precious, read_newest, reserve

T = TypeVar("T")

CONTROL = "control"
"""Monitor for commands that change something; used under the instance's lock."""
QUERY = "query"
"""Monitor for questions; anybody may ask."""
EVENTS = "events"
"""File that QEMU appends its events to."""
STDERR = "stderr"
"""File that QEMU's standard output and error go to."""
COMPANIONS_OUTPUT = "companions"
"""File that the output of its companions goes to."""
ROOT = "root"
"""Empty directory that becomes QEMU's root where it is to have one of its own."""
JOURNAL = "journal"
"""Steps of an operation that has not finished."""


class InstanceDirectory:
    """The two directories of one instance. A context manager; opening it makes nothing.

    Args:
        directories: the driver's.
        name: name of the instance, its grammar checked.
    """

    def __init__(self, directories: Directories, name: str) -> None:
        self.name = name
        self.path = os.path.join(directories.state, "instances", name)
        self.data_path = os.path.join(directories.data, "instances", name)
        self._fds: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    @property
    def exists(self) -> bool:
        """There is a volatile directory: the instance holds something on this host."""
        return self._open(self.path) is not None

    @property
    def has_data(self) -> bool:
        """Something is kept about the instance."""
        return self._open(self.data_path) is not None

    def make(self) -> None:
        """Make the volatile directory.

        Raises:
            HostError: it cannot be made.
        """
        private_directory(self.path)

    def join(self, name: str) -> str:
        """Path of something in the volatile directory."""
        return os.path.join(self.path, name)

    def read(self, name: str, kind: type[T], *, schema: int, data: bool = False) -> T | None:
        """Read a record; ``None`` when it or the directory is not there.

        Raises:
            RecordError: it is damaged.
        """
        fd = self._open(self.data_path if data else self.path)
        return None if fd is None else read_record(fd, name, kind, schema=schema)

    def write(self, name: str, record: Any, *, schema: int, data: bool = False) -> None:
        """Write a record, replacing it as a whole; kept ones survive a crash of the host.

        Raises:
            RecordError: it cannot be written.
            HostError: the directory for kept records cannot be made.
        """
        path = self.data_path if data else self.path
        if data:
            private_directory(path)
        fd = self._open(path)
        if fd is None:
            raise HostError(f"the directory {path} has gone", instance=self.name)
        write_record(fd, name, record, schema=schema, durable=data)

    def remove(self, name: str, *, data: bool = False) -> None:
        """Remove a file; not an error when it is not there."""
        fd = self._open(self.data_path if data else self.path)
        if fd is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)

    def append_only(self, name: str) -> int:
        """Open a file for appending, made if needed; the caller closes it."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=self._need())

    def writable(self, name: str) -> int:
        """Open a file that who has the descriptor may open again by it, whoever that is; the caller closes it.

        Nobody else gets past the directory it is in.
        """
        fd = self.append_only(name)
        os.fchmod(fd, 0o666)
        return fd

    def copy_in(self, source: str, name: str) -> bool:
        """Copy a file among those that are kept, unless it is there; true if it was copied.

        Raises:
            HostError: it cannot be copied; nothing of it is left.
        """
        private_directory(self.data_path)
        fd = self._open(self.data_path)
        if fd is None:
            raise HostError(f"the directory {self.data_path} has gone", instance=self.name)
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=fd, follow_symlinks=False)
            return False
        # Under another name first: a file that is there is whole.
        part = f"{name}.part"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(source, "rb") as original, open(os.open(part, flags, 0o600, dir_fd=fd), "wb") as copy:
                shutil.copyfileobj(original, copy)
                copy.flush()
                os.fsync(copy.fileno())
            os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=fd)
            raise HostError(f"cannot copy {source}: {error.strerror}", instance=self.name) from error
        return True

    def listen(self, name: str, backlog: int = 16) -> int:
        """Bind and listen on a UNIX socket, however long the path; the caller closes the descriptor."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{self._need()}/{name}")
            listener.listen(backlog)
            return listener.detach()
        finally:
            listener.close()

    def tail(self, name: str, limit: int) -> str:
        """The last bytes of a file as text; empty when it is not there."""
        return read_tail(self._open(self.path), name, limit)

    def hold_to_size(self, name: str, limit: int, precious: Precious = nothing_precious) -> None:
        """Give back what is older than the newest bytes of a file that others append to; see `ring_log`."""
        fd = self._open(self.path)
        if fd is not None:
            hold_to_size(fd, name, limit, precious)

    def reserve(self, name: str, size: int) -> None:
        """Keep room for what others append to a file next; see `ring_log`.

        Raises:
            HostError: there is no such room.
        """
        try:
            reserve(self._need(), name, size)
        except OSError as error:
            message = f"there is no room for {format_size(size)} in {self.path}: {error.strerror}"
            raise HostError(message, instance=self.name, hint="make room on that file system") from error

    def remove_volatile(self) -> None:
        """Remove the volatile directory and everything in it."""
        self.close()
        _remove_tree(self.path)

    def empty_volatile(self, keep: str) -> None:
        """Remove everything in the volatile directory but one file."""
        fd = self._need()
        for name in os.listdir(fd):
            if name == keep:
                continue
            try:
                os.unlink(name, dir_fd=fd)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=fd)

    def remove_data_if_empty(self) -> None:
        """Remove the directory for kept records when nothing is in it."""
        self.close()
        with contextlib.suppress(OSError):
            os.rmdir(self.data_path)

    def remove_all(self) -> None:
        """Remove both directories and everything in them."""
        self.remove_volatile()
        _remove_tree(self.data_path)

    def _need(self) -> int:
        fd = self._open(self.path)
        if fd is None:
            raise HostError(f"the directory {self.path} has gone", instance=self.name)
        return fd

    def _open(self, path: str) -> int | None:
        if path not in self._fds:
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fds[path] = os.open(path, flags)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise HostError(
                    f"cannot open {path}: {error.strerror}",
                    instance=self.name,
                    hint="run it as the user who started the instance",
                ) from error
        return self._fds[path]


def instance_names(directories: Directories, *, data: bool = False) -> Iterator[str]:
    """Names of all instances that have a volatile directory, sorted; or of those that have one for kept records.

    Raises:
        HostError: they cannot be read.
    """
    path = os.path.join(directories.data if data else directories.state, "instances")
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield entry.name


def read_tail(directory_fd: int | None, name: str, limit: int) -> str:
    """The last ``limit`` bytes of a file as text; empty when it is not there."""
    if directory_fd is None:
        return ""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    except OSError:
        return ""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ""
        if found.st_size <= limit:
            return os.pread(fd, limit, 0).decode(errors="replace")
        return read_newest(fd, limit).decode(errors="replace")
    finally:
        os.close(fd)


def _remove_tree(path: str) -> None:
    # rmtree works through directory descriptors and does not follow symbolic links.
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {path}: {error.strerror}") from error
