"""Ready-made checks for parameters: each takes a value of the right type and returns what is wrong, or ``None``.

They are pure: no file, process or socket is touched.
"""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], "str | None"]
"""What is wrong with a value, as a sentence part that follows its path, or ``None``."""

PATH_LIMIT = 4095
"""Longest path the kernel takes, in bytes (``PATH_MAX`` less the final NUL)."""


def at_least(limit: int, why: str = "") -> Check:
    """Not below ``limit``."""

    def check(value: int) -> str | None:
        return f"{value} is below {limit}" + (f"; {why}" if why else "") if value < limit else None

    return check


def between(low: float, high: float) -> Check:
    """From ``low`` to ``high``, both included."""

    def check(value: int) -> str | None:
        return None if low <= value <= high else f"{value} is not between {low} and {high}"

    return check


def no_control_characters(value: str) -> str | None:
    """Printable text: no control characters, no lone surrogates; at most 4095 bytes."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "holds bytes that are not UTF-8"
    if size > PATH_LIMIT:
        return f"has {size} bytes; {PATH_LIMIT} are allowed"
    bad = next((c for c in value if ord(c) < 32 or ord(c) == 127), None)
    return f"holds the control character {bad!r}" if bad else None


def absolute_path(value: str) -> str | None:
    """An absolute path in normal form: no ``.``, ``..``, ``//`` or final slash, no control characters."""
    problem = no_control_characters(value)
    if problem:
        return problem
    if not value.startswith("/"):
        return f"{value!r} is not an absolute path"
    # normpath keeps two leading slashes, which POSIX lets mean something else.
    if posixpath.normpath(value) != value or value.startswith("//"):
        return f"{value!r} is not in normal form; write {posixpath.normpath('/' + value.lstrip('/'))!r}"
    return "names the root directory" if value == "/" else None


def ip_address(value: str) -> str | None:
    """An IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return f"{value[:60]!r} is not an IP address"
    return None


def port_number(value: int) -> str | None:
    """A TCP or UDP port from 1 to 65535."""
    return between(1, 65535)(value)
