"""The files of the modelled world: where each is, the lock over all of them, and images to put them back.

It knows nothing of what the files mean. A *key* names one file or directory; keys of directories end in a slash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from hvcore import Deadline, Directories, InstanceBusy, private_directory, read_record, write_record
from hvcore_fake.record import SCHEMA

T = TypeVar("T")

Image = str | int | bool | None
"""What a key held: text of a file, size of a file of events, ``True`` for a directory, ``None`` for nothing."""

_LOCK_TIMEOUT = 30.0
_LOCK_POLL = 0.001


class Store:
    """The files below the directories of one driver. Safe to use from many threads and processes."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._turn = threading.RLock()
        self._depth = 0
        self._fd = -1

    @contextlib.contextmanager
    def locked(self, deadline: Deadline | None = None) -> Iterator[None]:
        """Change the world alone: over threads and processes, released by the kernel when its holder dies.

        Args:
            deadline: how long to wait for the turn.

        Raises:
            InstanceBusy: somebody else changes the world for longer than that.
        """
        limit = deadline or Deadline.after(_LOCK_TIMEOUT)
        if not self._turn.acquire(timeout=limit.timeout()):
            raise _busy()
        try:
            if self._depth == 0:
                self._fd = self._flock(limit)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    os.close(self._fd)
        finally:
            self._turn.release()

    def path(self, key: str) -> str:
        """The path of a key."""
        root, _, rest = key.partition("/")
        return os.path.join(getattr(self._directories, root), rest)

    def read(self, key: str, kind: type[T]) -> T | None:
        """The record of a key, ``None`` when there is none.

        Raises:
            RecordError: it cannot be read or understood.
        """
        folder, name = os.path.split(self.path(key))
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return read_record(fd, name, kind, schema=SCHEMA)
        finally:
            os.close(fd)

    def write(self, key: str, record: Any) -> None:
        """Replace the record of a key as a whole."""
        folder, name = os.path.split(self.path(key))
        fd = os.open(private_directory(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_record(fd, name, record, schema=SCHEMA)
        finally:
            os.close(fd)

    def make(self, key: str) -> None:
        """Make a directory, if it is not there."""
        private_directory(self.path(key))

    def remove(self, *keys: str) -> None:
        """Remove files, and directories if they are empty; absent is fine."""
        for key in keys:
            if key.endswith("/"):
                self.sweep(key)
                with contextlib.suppress(OSError):
                    os.rmdir(self.path(key))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(key))

    def sweep(self, *keys: str) -> None:
        """Remove from directories what a writer that was killed had not yet renamed; the world is locked."""
        for key in keys:
            path = self.path(key)
            with contextlib.suppress(OSError):
                for name in os.listdir(path):
                    if name.startswith("."):
                        os.unlink(os.path.join(path, name))

    def names(self, key: str, suffix: str) -> tuple[str, ...]:
        """The names of a directory's entries that end in ``suffix``, without it, sorted."""
        try:
            found = os.listdir(self.path(key))
        except FileNotFoundError:
            return ()
        return tuple(sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix) and name[0] != "."))

    def exists(self, key: str) -> bool:
        """Something is there."""
        return os.path.lexists(self.path(key))

    def images(self, keys: Iterable[str]) -> dict[str, Image]:
        """What some keys hold now."""
        return {key: self._image(key) for key in keys}

    def restore(self, images: Mapping[str, Image]) -> None:
        """Put back what some keys held."""
        for key, image in images.items():
            if image is True:
                self.make(key)
            elif isinstance(image, str):
                self._replace(key, image)
            elif isinstance(image, int):
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(self.path(key), image)
        # Directories after what is in them.
        gone = (key for key, image in images.items() if image is None)
        self.remove(*sorted(gone, key=lambda key: key.endswith("/")))

    def _image(self, key: str) -> Image:
        path = self.path(key)
        try:
            if key.endswith("/"):
                return os.path.isdir(path) or None
            if key.endswith(".jsonl"):
                return os.stat(path).st_size
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _replace(self, key: str, text: str) -> None:
        path = self.path(key)
        private_directory(os.path.dirname(path))
        temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.rename(temporary, path)

    def _flock(self, deadline: Deadline) -> int:
        fd = os.open(private_directory(self.path("state/")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if deadline.expired:
                        raise _busy() from None
                    time.sleep(_LOCK_POLL)
                else:
                    return fd
        except BaseException:
            os.close(fd)
            raise


def _busy() -> InstanceBusy:
    return InstanceBusy("the modelled world is being changed by somebody else", hint="try again")
