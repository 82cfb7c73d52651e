"""What two ``hv`` say to each other during a migration: JSON lines, each checked before any of it is used."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from hvcore import errors
from hvcore.cli.plain_data import plain_data
from hvcore.deadline import Deadline
from hvcore.errors import HypervisorError, HypervisorRefused, InvalidParameters, LoadError
from hvcore.findings import Finding, FindingSet, Severity
from hvcore.params.structure import structure

T = TypeVar("T")

VERSION = 1
"""Version of what is said; both sides have to speak the same."""

LINE_LIMIT = 16 * 2**20
"""Longest line that is read, in bytes."""

_CHUNK = 65536
_FINDINGS = 200


class WireError(Exception):
    """The other side ended, was silent for too long, or said something that cannot be understood."""


@attrs.frozen(kw_only=True)
class Greeting:
    """The first line, from the destination's side.

    Attributes:
        hv_migration_peer: version of what is said.
        hvcore: version of hvcore there.
        address: IP address at which this host reached that one, empty if nobody knows.
    """

    hv_migration_peer: int
    hvcore: str
    address: str = ""


@attrs.frozen(kw_only=True)
class Request:
    """One request.

    Attributes:
        number: number of the request, which its answer has too.
        operation: name of the operation.
        arguments: what it takes.
    """

    number: int
    operation: str
    arguments: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Answer:
    """One answer: a result or an error.

    Attributes:
        number: number of the request.
        result: what it returned.
        error: what it raised.
    """

    number: int
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


@attrs.frozen(kw_only=True)
class _Said:
    code: str
    message: str
    type: str = "HypervisorError"
    hint: str | None = None
    findings: tuple[_Finding, ...] = ()


@attrs.frozen(kw_only=True)
class _Finding:
    code: str
    message: str
    path: str = ""
    hint: str | None = None
    severity: Severity = Severity.ERROR


class LineReader:
    """Reads lines from a descriptor, none longer than `LINE_LIMIT`.

    Args:
        fd: the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._searched = 0

    def read(self, deadline: Deadline) -> bytes | None:
        """The next line, ``None`` when there are no more.

        Raises:
            WireError: it is too long, or did not come in time.
        """
        while (end := self._rest.find(b"\n", self._searched)) < 0:
            self._searched = len(self._rest)
            if self._searched > LINE_LIMIT:
                raise WireError(f"a line is longer than {LINE_LIMIT} bytes")
            if not select.select([self._fd], [], [], deadline.timeout())[0]:
                if deadline.expired:
                    raise WireError("it did not answer in time")
                continue
            data = os.read(self._fd, _CHUNK)
            if not data:
                return None
            self._rest += data
        line, self._rest, self._searched = self._rest[:end], self._rest[end + 1 :], 0
        return line


def write_line(fd: int, record: Any) -> None:
    """Write a record as one line.

    Raises:
        WireError: the other side has ended.
    """
    view = memoryview(json.dumps(plain_data(record), separators=(",", ":")).encode() + b"\n")
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise WireError(f"it can no longer be written to: {error.strerror}") from error


def understand(line: bytes, kind: type[T]) -> T:
    """A line as a record, strictly.

    Raises:
        WireError: it is not one.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line[:60].decode("ascii", "backslashreplace")
        raise WireError(f"it said something that is not JSON: {shown}") from error
    return typed(kind, values)


def typed(kind: type[T], values: Any) -> T:
    """Plain data as a record, strictly.

    Raises:
        WireError: it is not one.
    """
    record, findings = structure(kind, values)
    if findings:
        raise WireError(f"it said something that is no {kind.__name__.strip('_').lower()}: {findings[0]}")
    return record


def error_data(error: HypervisorError) -> dict[str, Any]:
    """An error as plain data, with what it found."""
    data = error.as_dict()
    found: Any = data.get("findings", ())
    return {
        "code": data["code"],
        "message": data["message"],
        "type": data["type"],
        "hint": data["hint"],
        "findings": list(found)[:_FINDINGS],
    }


def error_from(values: Mapping[str, Any]) -> HypervisorError:
    """The error that was said.

    Raises:
        WireError: it is none.
    """
    said = typed(_Said, values)
    kind = getattr(errors, said.type, None)
    if not isinstance(kind, type) or not issubclass(kind, HypervisorError):
        kind = HypervisorError
    if issubclass(kind, InvalidParameters | LoadError):
        findings = FindingSet(Finding(**attrs.asdict(finding)) for finding in said.findings)
        return InvalidParameters(said.message, findings, hint=said.hint)
    if issubclass(kind, HypervisorRefused):
        refused = HypervisorRefused("a request", "", said.message, hint=said.hint)
        refused.message = said.message
        return refused
    try:
        found = kind(said.message, hint=said.hint)
    except TypeError:
        found = HypervisorError(said.message, hint=said.hint)
    found.code = said.code
    return found
