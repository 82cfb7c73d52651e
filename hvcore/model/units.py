"""Sizes are bytes and times are seconds; text such as ``512MiB`` or ``30s`` is for files and command lines."""

from __future__ import annotations

import math
import re
from typing import NewType

Size = NewType("Size", int)
"""A number of bytes."""

Seconds = NewType("Seconds", float)
"""A duration in seconds."""

_SIZE_UNITS = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))? ?([A-Za-z]{1,3})")
_LARGEST = 2**63 - 1


def parse_size(text: str) -> Size:
    """Read ``512MiB``, ``2 GiB``, ``1.5GiB``, ``10GB`` or ``4096B``: binary units end in ``iB``.

    A number without a unit is refused: it is never clear which one was meant.

    Raises:
        ValueError: it is not a size; the message says which forms are.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _SIZE_UNITS.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{_shown(text)} is not a size; write a number and one of B KiB MiB GiB TiB KB MB GB TB")
    fraction = match[2] or ""
    scale = 10 ** len(fraction)
    total, rest = divmod(int(match[1] + fraction) * factor, scale)
    if rest:
        raise ValueError(f"{_shown(text)} is not a whole number of bytes")
    if total > _LARGEST:
        raise ValueError(f"{_shown(text)} is larger than any memory or disk can be")
    return Size(total)


def parse_seconds(text: str) -> Seconds:
    """Read ``30s``, ``500ms``, ``2min`` or ``1h``.

    Raises:
        ValueError: it is not a duration.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _TIME_UNITS.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{_shown(text)} is not a duration; write a number and one of ms s min h d")
    return Seconds(float(f"{match[1]}.{match[2] or 0}") * factor)


def format_size(size: int) -> str:
    """The shortest exact text that `parse_size` reads back: ``512MiB``, ``1536KiB``, ``1000B``."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def format_seconds(seconds: float) -> str:
    """A duration for people: ``4.2s``, ``3min 10s``, ``2h 5min``."""
    if not math.isfinite(seconds):
        return "for ever"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}min {rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}min"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
