"""The files of a backup: written under names of their own, and given their final ones all together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from hvcore import OperationFailed
from hvcore_fake.images import write_image


def write_part(part: str, path: str, size: int, blocks: dict[int, bytes], base: str | None, *, compress: bool) -> None:
    """Write the file of one disk under the name of a part.

    Args:
        part: the name.
        path: the name it gets later, for messages.
        size: bytes of the disk.
        blocks: what is written, by number.
        base: name of the file it is on, which has the rest; ``None`` for none.
        compress: compress what becomes smaller by it.

    Raises:
        OperationFailed: it cannot be written.
    """
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write_image(fd, size, blocks, base, compress=compress)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise OperationFailed(f"cannot write {path}: {words}", code="file-not-written") from error


def publish(files: Mapping[str, str]) -> None:
    """Give all parts their names.

    Args:
        files: the name of each part.

    Raises:
        OperationFailed: something has come to be where one is to be.
    """
    for part, path in files.items():
        try:
            os.link(part, path)
        except OSError as error:
            raise OperationFailed(f"cannot make {path}: {error.strerror}", code="file-not-written") from error
    # From here on whoever finds them takes them for complete.
    for part in files:
        os.unlink(part)


def are_published(files: Mapping[str, str]) -> bool:
    """All parts have got their names."""
    return all(_is_ours(part, path) for part, path in files.items())


def discard(files: Mapping[str, str], *, published: bool) -> None:
    """Remove what a backup has made.

    Args:
        files: the name of each part.
        published: they were about to get their names, or have got them.
    """
    ours = [path for part, path in files.items() if published and _is_ours(part, path)]
    for path in (*ours, *files):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _is_ours(part: str, path: str) -> bool:
    """A part has got its name: it is the same file, or the part has gone, which it does not before."""
    if not os.path.lexists(part):
        return os.path.lexists(path)
    return os.path.lexists(path) and os.path.samestat(os.lstat(part), os.lstat(path))
