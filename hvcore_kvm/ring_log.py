"""Files that QEMU and its companions append to, held to a size by whoever looks at the instance.

What is old is given back to the file system in place, by a hole at the front of the file (``fallocate(2)``,
``FALLOC_FL_PUNCH_HOLE``). Nothing moves: who appends at the same moment, and who reads at a place it remembers, is not
disturbed. The file's size goes on counting all that was ever written; its data begins where `data_segments` says.

Held to its size is a file after each look at it, not between two looks. On a file system without holes it grows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Segment = tuple[int, int]
"""A piece of a file: where it begins, and where it ends."""

PAGE = 4096
"""Holes begin and end at its multiples; between them a file system only writes zeroes."""

SLACK = 64 * 2**10
"""Bytes a file may have above its limit before it is worth a hole."""

WORK = 64 * 2**20
"""Bytes that one look searches at most for what is precious, so that a look at many gigabytes stays short."""

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02

Precious = Callable[[int, Sequence[Segment]], Sequence[Segment]]
"""Finds what of some pieces of an open file is not to be given back."""


def nothing_precious(fd: int, pieces: Sequence[Segment]) -> Sequence[Segment]:
    """All of it may go."""
    return ()


def hold_to_size(directory_fd: int, name: str, limit: int, precious: Precious = nothing_precious) -> None:
    """Give back what is older than the newest ``limit`` bytes of a file; not an error when it is not there.

    Any number of processes may do it at once, also while somebody appends.

    Args:
        directory_fd: the directory of the file.
        name: its name.
        limit: bytes to keep; a multiple of a page is kept in any case.
        precious: what to keep of the rest.
    """
    try:
        if os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_size <= limit + SLACK:
            return
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    except OSError:
        return
    # Looking at an instance must not fail because its log cannot be shortened: a file system without holes.
    with contextlib.closing(open(fd, "rb", buffering=0)), contextlib.suppress(OSError):
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            _shorten(fd, found.st_size - limit, precious)


def _shorten(fd: int, keep_from: int, precious: Precious) -> None:
    pieces: list[Segment] = []
    old = 0
    for begin, segment_end in data_segments(fd):
        end = min(segment_end, keep_from) // PAGE * PAGE
        if precious is not nothing_precious:
            end = min(end, begin + WORK - old)
        if end <= begin:
            break
        pieces.append((begin, end))
        old += end - begin
    if old < SLACK:
        return
    kept = precious(fd, pieces)
    for piece in pieces:
        for begin, end in _without(piece, kept):
            _punch(fd, begin, end - begin)


def _without(piece: Segment, kept: Sequence[Segment]) -> Iterator[Segment]:
    """What is left of a piece without some parts, each with the whole pages it touches."""
    begin, end = piece
    for part_begin, part_end in sorted(kept):
        first, after = part_begin // PAGE * PAGE, -(-part_end // PAGE) * PAGE
        if begin < min(first, end):
            yield begin, min(first, end)
        begin = max(begin, after)
    if begin < end:
        yield begin, end


def data_segments(fd: int) -> Iterator[Segment]:
    """The pieces of an open file that are no holes, from the front."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # no data any more
            raise
        yield begin, end


def read_newest(fd: int, limit: int) -> bytes:
    """The last bytes of an open file, and none of its holes."""
    parts: list[bytes] = []
    for begin, end in reversed(list(data_segments(fd))):
        begin = max(begin, end - limit)
        parts.insert(0, os.pread(fd, end - begin, begin))
        limit -= end - begin
        if limit <= 0:
            break
    return b"".join(parts)


def reserve(directory_fd: int, name: str, size: int) -> None:
    """Keep room on the file system for what is appended to a file next; its size stays what it is.

    Args:
        directory_fd: the directory of the file.
        name: its name.
        size: bytes to be kept. Where the file system cannot keep any, nothing is kept.

    Raises:
        OSError: there is no such room, or no such file.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
    try:
        _allocate(fd, _KEEP_SIZE, os.fstat(fd).st_size, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    finally:
        os.close(fd)


@functools.cache
def _fallocate() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or library.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _punch(fd: int, begin: int, size: int) -> None:
    _allocate(fd, _KEEP_SIZE | _PUNCH_HOLE, begin, size)


def _allocate(fd: int, mode: int, begin: int, size: int) -> None:
    if _fallocate()(fd, mode, begin, size):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
