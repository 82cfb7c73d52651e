"""Checks of single values as Ganeti writes them; pure."""

from __future__ import annotations

import posixpath
import re

from hvcore import checks
from hvcore_kvm.affinity import parse_mask

_URL = ("http://", "https://")
_UNREADABLE_URL = ("ftp://", "ftps://")
_VLAN_ID = re.compile(r"[0-9]{1,4}")
_VLAN = re.compile(r"\.?[0-9]+|\.[0-9]+(?::[0-9]+)+|(?::[0-9]+)+")


def path(value: str) -> str | None:
    """An absolute path in normal form; the root directory itself passes."""
    problem = checks.no_control_characters(value)
    if problem:
        return problem
    if not value.startswith("/"):
        return f"{value[:60]!r} is not an absolute path"
    if value.startswith("//") or posixpath.normpath(value) != value:
        return f"{value[:60]!r} is not in normal form; write {posixpath.normpath('/' + value.lstrip('/'))[:60]!r}"
    return None


def image(value: str) -> str | None:
    """A path, or a URL that QEMU is given as one."""
    if value.startswith(_URL):
        return checks.no_control_characters(value)
    if value.startswith(_UNREADABLE_URL):
        return "passes Ganeti's checks, but is then read as http, which cannot work; use http:// or https://"
    if "://" in value[:12]:
        return f"{value[:40]!r} is neither a path nor an http:// or https:// URL in lower case"
    return path(value)


def mask(value: str) -> str | None:
    """A CPU mask."""
    try:
        parse_mask(value)
    except ValueError as error:
        return str(error)
    return None


def spice_address(value: str) -> str | None:
    """An IP address or the name of an interface; it cannot be told here which interfaces there are."""
    if "/" in value or any(ord(c) <= 32 or ord(c) == 127 for c in value):
        return f"{value[:40]!r} is neither an IP address nor the name of an interface"
    return None


def vlan(text: str) -> str:
    """VLANs in normal form.

    Args:
        text: ``N`` or ``.N`` (untagged), ``:N:M`` (tagged), ``.N:M`` (untagged N, the others tagged).

    Returns:
        The same, with the dot in front of a single number.

    Raises:
        ValueError: it is none of these, or a number is not one of a VLAN or stands there twice.
    """
    if not _VLAN.fullmatch(text) or not text.isascii():
        raise ValueError(f"{text[:40]!r} is not a VLAN such as 12, .12 (untagged), :12:13 (tagged) or .12:13 (both)")
    ids = [part for part in re.split(r"[.:]", text) if part]
    for part in ids:
        if not _VLAN_ID.fullmatch(part) or not 1 <= int(part) <= 4094:
            raise ValueError(f"{part[:20]} is not a VLAN from 1 to 4094")
    if len({int(part) for part in ids}) != len(ids):
        raise ValueError(f"{text[:40]!r} names a VLAN twice")
    return text if text[0] in ".:" else f".{text}"


def label_problem(value: str) -> str | None:
    """Why a device's name cannot be that of a device in an instance, which is one word."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,62}", value):
        return None
    return f"{value[:40]!r} is not one word of at most 63 letters, digits, '.', '_', ':', '+' and '-'"


def is_numeric(name: str) -> bool:
    """A name that would be taken for an index."""
    return re.fullmatch(r"[+-]?[0-9]+", name) is not None
