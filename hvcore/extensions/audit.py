"""`AuditLog`: who did what to which instance, and how it ended, as lines of JSON."""

from __future__ import annotations

import datetime
import json
import logging
import os
import stat
import time
from collections.abc import Generator
from typing import Any

from hvcore.errors import HostError, HypervisorError, InvalidParameters
from hvcore.extensions.masking import Masker
from hvcore.hookspecs.markers import hookimpl
from hvcore.hookspecs.table import OPERATION
from hvcore.operation import OperationCall

LINE_LIMIT = 16384
"""Bytes of the longest line, its end included."""

_ERROR_LIMIT = 2000
_FINDINGS_LIMIT = 20
# It changes the host, not an instance, so it takes no instance's lock and is not called mutating.
_CHANGES_HOST = frozenset({"powercycle_node"})
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_log = logging.getLogger(__name__)


class AuditLog:
    """Writes every operation to a file, one JSON object a line.

    An operation that changes something has two lines, ``intent`` before it and ``outcome`` after it, with the same
    ``id``: one without the other is an operation in which the host application ended. A query has one, ``outcome``.
    Values that may be secret are masked.

    The file is opened for each line: many threads and processes may write to it, it may be renamed or truncated at
    any time, and nothing is held between operations. It has to be on a local file system.

    Args:
        path: the file; made with mode 0600 when it is not there. A symbolic link is refused.
        queries: log operations that change nothing as well.
        required: an operation whose line cannot be written is refused with `HostError`; else the loss is logged
            (logger ``hvcore.extensions.audit``) and the operation goes on.

    Attributes:
        lost: number of lines that could not be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, queries: bool = True, required: bool = True) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.lost = 0
        self._queries = queries
        self._required = required
        self._torn = False

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Generator[None, object, object]:
        """Log one operation."""
        changes = OPERATION[call.name].mutating or call.name in _CHANGES_HOST
        if not changes and not self._queries:
            return (yield)
        masker = Masker(call.view)
        line: dict[str, Any] = {
            "time": _now(),
            "id": os.urandom(8).hex(),
            "line": "intent" if changes else "outcome",
            "pid": os.getpid(),
            "uid": os.getuid(),
            "driver": call.driver,
            "operation": call.name,
            "instance": call.instance,
            "arguments": masker.arguments(call),
        }
        if changes:
            self._write(line, required=self._required)
            del line["arguments"]
            line["line"] = "outcome"
        begun = time.monotonic()
        try:
            result = yield
        except BaseException as error:
            # The error of the operation says more than one of the log.
            self._end(line, begun, _failure(error, masker), required=False)
            raise
        # A change has happened, whatever becomes of its line; the answer to a query can still be withheld.
        self._end(line, begun, {"outcome": "done"}, required=self._required and not changes)
        return result

    def _end(self, line: dict[str, Any], begun: float, outcome: dict[str, Any], *, required: bool) -> None:
        duration = round(time.monotonic() - begun, 6)
        self._write({**line, "time": _now(), **outcome, "duration": duration}, required=required)

    def _write(self, line: dict[str, Any], *, required: bool) -> None:
        try:
            self._append(_encoded(line))
        except OSError as error:
            self.lost += 1
            if required:
                raise HostError(
                    f"the audit log {self.path} cannot be written: {error.strerror or error}",
                    code="audit-log",
                    hint="make it writable; the operation was refused because it could not be logged",
                ) from error
            _log.error("the audit log %s cannot be written (%s); lost: %s", self.path, error, line)

    def _append(self, data: bytes) -> None:
        fd = os.open(self.path, _FLAGS, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(0, "it is not a regular file")
            # A line that a full disk cut short is ended first, so that it spoils no other.
            whole = b"\n" + data if self._torn else data
            written = os.write(fd, whole)
            self._torn = written < len(whole)
            if self._torn:
                raise OSError(0, f"only {written} of {len(whole)} bytes were written")
        finally:
            os.close(fd)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _failure(error: BaseException, masker: Masker) -> dict[str, Any]:
    if not isinstance(error, HypervisorError):
        ended = isinstance(error, Exception)
        return {
            "outcome": "failed" if ended else "interrupted",
            "code": None,
            "error": masker.text(f"{type(error).__name__}: {error}")[:_ERROR_LIMIT],
        }
    words = masker.text(error.message)[:_ERROR_LIMIT]
    found: dict[str, Any] = {"outcome": error.outcome, "code": error.code, "error": words}
    if isinstance(error, InvalidParameters):
        found["findings"] = [f"{f.code} {f.path}"[:200] for f in list(error.findings)[:_FINDINGS_LIMIT]]
    return found


def _encoded(line: dict[str, Any]) -> bytes:
    data = json.dumps(line, separators=(",", ":")).encode()
    if len(data) >= LINE_LIMIT and "arguments" in line:
        shorter = {**line, "arguments": f"<{len(json.dumps(line['arguments']))} bytes>"}
        data = json.dumps(shorter, separators=(",", ":")).encode()
    if len(data) >= LINE_LIMIT:
        kept = ("time", "id", "line", "pid", "uid", "operation", "outcome", "code", "duration")
        data = json.dumps({name: line[name] for name in kept if name in line}).encode()
    return data + b"\n"
