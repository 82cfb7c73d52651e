"""The grammar of every name a user may choose: instances, devices, tags, uuids, hardware addresses.

Each check takes a value of the right type and returns what is wrong with it, or ``None``.
"""

from __future__ import annotations

import re

INSTANCE_NAME_LIMIT = 63
"""Longest instance name, in characters: it becomes a file name and part of a socket path."""

_INSTANCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:+-]{0,62})")
_SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
_HOST_NAME = re.compile(r"[A-Za-z0-9:](?:[A-Za-z0-9:.-]*[A-Za-z0-9:])?")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.IGNORECASE)


def check_instance_name(name: str) -> str | None:
    """Letters, digits, dots, hyphens, underscores; begins and ends with a letter or digit; no two dots in a row."""
    if not name:
        return "is empty"
    if len(name) > INSTANCE_NAME_LIMIT:
        return f"has {len(name)} characters; {INSTANCE_NAME_LIMIT} are allowed"
    if not _INSTANCE_NAME.fullmatch(name) or ".." in name:
        return (
            f"{name!r} is not an instance name: letters, digits, '.', '-' and '_', beginning and ending with a "
            "letter or digit, without two dots in a row"
        )
    return None


def check_label(label: str) -> str | None:
    """A short ASCII word: letters, digits and ``. _ : + -``, 63 characters at most."""
    if not _LABEL.fullmatch(label):
        return f"{_shown(label)} is not a name: a letter or digit, then letters, digits, '.', '_', ':', '+' or '-'"
    return None


def check_snapshot_name(name: str) -> str | None:
    """A letter, then letters, digits, dots, hyphens and underscores; 63 characters at most.

    It begins with a letter because hypervisors give numbers of their own.
    """
    if not _SNAPSHOT_NAME.fullmatch(name):
        return f"{_shown(name)} is not the name of a snapshot: a letter, then letters, digits, '.', '_' or '-'"
    return None


def check_tag(tag: str) -> str | None:
    """One word of printable ASCII without blanks, 128 characters at most."""
    if not 0 < len(tag) <= 128 or not tag.isascii() or not tag.isprintable() or " " in tag:
        return f"{_shown(tag)} is not a tag: one printable ASCII word of at most 128 characters"
    return None


def check_uuid(uuid: str) -> str | None:
    """The hyphenated form of RFC 9562, not the nil UUID."""
    if not _UUID.fullmatch(uuid):
        return f"{_shown(uuid)} is not a UUID such as 0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
    return "is the nil UUID" if set(uuid) <= {"0", "-"} else None


def check_mac(mac: str) -> str | None:
    """Six colon-separated octets; neither a group address nor all zero."""
    if not _MAC.fullmatch(mac):
        return f"{_shown(mac)} is not a hardware address such as 52:54:00:12:34:56"
    if int(mac[:2], 16) & 1:
        return f"{mac} is a group (multicast) address; the first octet must be even"
    return "is all zero" if set(mac) <= {"0", ":"} else None


def check_host_name(name: str) -> str | None:
    """A host name (RFC 1123, section 2.1) or an IP address, 253 characters at most."""
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        return f"{_shown(name)} is neither a host name nor an IP address"
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
