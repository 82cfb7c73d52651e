"""The file of a saved modelled instance: a record with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import attrs

from hvcore import Instance, InstanceState, OperationFailed, RecordError, as_plain, read_record, write_record
from hvcore_fake.record import SCHEMA, Process


@attrs.frozen(kw_only=True)
class Saved:
    """A frozen guest, and the definition it ran with.

    Attributes:
        id: tells this save from every other.
        instance: the definition.
        process: the guest, frozen.
        state: what it was doing.
        overlays: those of its external snapshots, the newest last.
    """

    id: str
    instance: Instance
    process: Process
    state: InstanceState
    overlays: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class SavedFile:
    """What is in the file.

    Attributes:
        saved: the guest.
        checksum: of that.
        restored: it has been restored.
    """

    saved: Saved
    checksum: str
    restored: bool = False


def write_saved(path: str, saved: Saved) -> None:
    """Write a new file."""
    _write(path, SavedFile(saved=saved, checksum=_checksum(saved)))


def read_saved(path: str) -> SavedFile:
    """What is in a file.

    Raises:
        RecordError: it is damaged, or none of ours.
    """
    with _directory(path) as fd:
        found = read_record(fd, os.path.basename(path), SavedFile, schema=SCHEMA)
    if found is None:
        raise RecordError(f"there is no file {path}", code="saved-unreadable")
    if found.checksum != _checksum(found.saved):
        raise RecordError(f"{path} is damaged: it does not have its checksum", code="saved-damaged")
    return found


def mark(path: str, restored: bool) -> None:
    """Write down that it has been restored, or has not."""
    _write(path, attrs.evolve(read_saved(path), restored=restored))


def discard(path: str) -> None:
    """Remove a file, and what a killed writer had not yet renamed; absent is fine."""
    folder, name = os.path.split(path)
    for found in (path, os.path.join(folder, f".{name}.new")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(found)


def _write(path: str, file: SavedFile) -> None:
    try:
        with _directory(path) as fd:
            write_record(fd, os.path.basename(path), file, schema=SCHEMA)
    except RecordError as error:
        raise OperationFailed(f"cannot write {path}: {error.message}", code="file-not-written") from error


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    try:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RecordError(f"cannot open {path}: {error.strerror}", code="saved-unreadable") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _checksum(saved: Saved) -> str:
    return hashlib.sha256(json.dumps(as_plain(saved), sort_keys=True).encode()).hexdigest()
