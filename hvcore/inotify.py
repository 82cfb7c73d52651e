"""Waiting until a file changes, without asking again and again (``inotify(7)``)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Self

_CLOSE_ON_EXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_MODIFY, _DELETE_SELF, _MOVE_SELF = 0x2, 0x400, 0x800


class FileWatch:
    """Becomes readable whenever somebody has written to a file, or removed it; a context manager.

    Args:
        path: of the file.

    Raises:
        OSError: there is no such file, or the user has too many watches.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._fd = library.inotify_init1(_CLOSE_ON_EXEC | _NONBLOCK)
        if self._fd < 0:
            raise _last_error(path)
        if library.inotify_add_watch(self._fd, os.fsencode(path), _MODIFY | _DELETE_SELF | _MOVE_SELF) < 0:
            error = _last_error(path)
            os.close(self._fd)
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return int(self._fd)

    def clear(self) -> None:
        """Forget what has happened so far: it becomes readable at the next change."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass


def _last_error(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
