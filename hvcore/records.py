"""State files: JSON, replaced atomically, with a schema version and upgrades, read back strictly."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import cattrs
import cattrs.preconf.json

from hvcore.errors import RecordError

T = TypeVar("T")

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""From the plain data of one schema version to that of the next; pure."""

RECORD_LIMIT = 16 * 2**20
"""Largest state file that is read, in bytes."""

_converter = cattrs.preconf.json.make_converter(forbid_extra_keys=False)


def write_record(
    directory_fd: int, name: str, record: Any, *, schema: int, durable: bool = False, shared: bool = False
) -> None:
    """Write a record to a file beneath a directory, replacing it as a whole.

    Args:
        directory_fd: the directory.
        name: name of the file.
        record: an attrs object.
        schema: version of its format.
        durable: survive a crash of the host, not only of the writer.
        shared: several processes may write it at once; without it the caller holds a lock, and what a killed writer
            left is overwritten by the next one.

    Raises:
        RecordError: it cannot be written.
    """
    # In one line: only then the encoder of json that is written in C does the work.
    data = json.dumps({"schema": schema, **_converter.unstructure(record)}).encode() + b"\n"
    temporary = f".{name}.{os.getpid()}.{threading.get_ident()}" if shared else f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(temporary, flags, 0o600, dir_fd=directory_fd)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        if durable:
            os.fsync(directory_fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory_fd)
        raise RecordError(f"cannot write the record {name}: {error.strerror}", code="record-not-written") from error


def read_record(
    directory_fd: int, name: str, kind: type[T], *, schema: int, upgrades: Sequence[Upgrade] = ()
) -> T | None:
    """Read a record that `write_record` wrote, upgrading older ones.

    Args:
        directory_fd: the directory.
        name: name of the file.
        kind: the attrs class.
        schema: version of the format that ``kind`` has.
        upgrades: functions from version 1 to 2, from 2 to 3, and so on.

    Returns:
        The record, ``None`` when there is no such file.

    Raises:
        RecordError: it cannot be read, is damaged, or comes from a newer version.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"cannot read the record {name}: {error.strerror}", code="record-unreadable") from error
    with open(fd, "rb") as file:
        data = file.read(RECORD_LIMIT + 1)
    try:
        values = json.loads(data)
        found = values.pop("schema")
        if not isinstance(found, int) or found > schema or found < 1:
            raise RecordError(
                f"the record {name} has schema {found}, this version reads up to {schema}",
                hint="use the version that wrote it, or a newer one",
                code="record-schema",
            )
        for upgrade in upgrades[found - 1 : schema - 1]:
            values = upgrade(values)
        return _converter.structure(values, kind)
    except (ValueError, KeyError, TypeError, AttributeError, cattrs.BaseValidationError) as error:
        raise RecordError(
            f"the record {name} is damaged: {type(error).__name__}",
            hint="the instance can still be stopped by name; then start it again",
            code="record-damaged",
        ) from error


def as_plain(record: Any) -> Mapping[str, Any]:
    """The record as plain data, as it would be written."""
    plain: Mapping[str, Any] = _converter.unstructure(record)
    return plain
