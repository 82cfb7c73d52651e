"""QEMU's command line as typed options, rendered last. No value a user supplies can add an option.

QEMU 7.2 and 10.0 take JSON for ``-device``, ``-blockdev``, ``-netdev``, ``-object``; the others take ``key=value``
with every comma of a value doubled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Option:
    """One option as argument words.

    Attributes:
        words: the option and its value.
        origin: what in the definition it comes from.
    """

    words: tuple[str, ...]
    origin: str


def flag(name: str, *, origin: str = "driver") -> Option:
    """An option without a value."""
    return Option(words=(f"-{name}",), origin=origin)


def word(name: str, value: str, *, origin: str = "driver") -> Option:
    """An option whose value is one word that QEMU takes verbatim."""
    return Option(words=(f"-{name}", value), origin=origin)


def json_option(name: str, values: Mapping[str, Any], *, origin: str = "driver") -> Option:
    """An option whose value is JSON."""
    return Option(words=(f"-{name}", json.dumps(values, separators=(",", ":"))), origin=origin)


def keyed(
    name: str, first: str | None, values: Mapping[str, object] | None = None, *, origin: str = "driver"
) -> Option:
    """An option of the form ``first,key=value,...``; booleans are written out, ``None`` values left out."""
    parts = [] if first is None else [escape(first)]
    for key, value in (values or {}).items():
        if value is None:
            continue
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        parts.append(f"{key}={escape(text)}")
    return Option(words=(f"-{name}", ",".join(parts)), origin=origin)


def escape(value: str) -> str:
    """A value for the ``key=value`` form: QEMU reads a doubled comma as one."""
    return value.replace(",", ",,")
