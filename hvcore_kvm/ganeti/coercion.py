"""Values as Ganeti stores them, read into the types its parameters are declared with.

Stricter than Ganeti where it guesses: a fraction is not cut to a whole number, ``True`` is not 1, null is not false.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal

Kind = Literal["bool", "int", "size", "text", "maybe-text"]
"""Type of a parameter: sizes are MiB, and only a ``maybe-text`` can be null."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([a-z]*)", re.ASCII | re.IGNORECASE)
_UNITS = {"m": 1, "mb": 1, "mib": 1, "g": 1024, "gb": 1024, "gib": 1024, "t": 1024**2, "tb": 1024**2, "tib": 1024**2}
_SIZE_STEP = 4
_LARGEST = 2**43


def coerce(kind: Kind, value: Any) -> Any:
    """Read one value.

    Args:
        kind: the type the parameter is declared with.
        value: text, a number, a truth value or null.

    Returns:
        The value in its own type; sizes in MiB, rounded up to a multiple of 4.

    Raises:
        ValueError: it is no such value; says what was expected.
    """
    return _READERS[kind](value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.lower()
        if word in ("true", "false", ""):
            return word == "true"
    elif type(value) is int and value in (0, 1):
        return value == 1
    raise ValueError(f"expected true or false, got {shown(value)}")


def _int(value: Any) -> int:
    if type(value) is int and abs(value) < 2**63:
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip(" \t\n\r")):
        return int(value)
    raise ValueError(f"expected a whole number, got {shown(value)}")


def _size(value: Any) -> int:
    if type(value) in (int, float):
        value = f"{value:f}" if isinstance(value, float) else str(value)
    found = _SIZE.fullmatch(value.strip(" \t\n\r")) if isinstance(value, str) else None
    factor = _UNITS.get(found[2].lower() or "m") if found else None
    if found is None or factor is None:
        raise ValueError(f"expected a size such as 512 (MiB), 512M, 2g or 1TiB, got {shown(value)}")
    exact = Decimal(found[1]) * factor
    if exact > _LARGEST:
        raise ValueError(f"{shown(value)} is larger than any memory or disk can be")
    return int((exact / _SIZE_STEP).to_integral_value(ROUND_CEILING)) * _SIZE_STEP


def _text(value: Any) -> str:
    if value is False:
        return ""
    if isinstance(value, str):
        return value
    raise ValueError(f"expected text, got {shown(value)}")


def _maybe_text(value: Any) -> str | None:
    return None if value is None else _text(value)


_READERS: dict[Kind, Any] = {
    "bool": _bool,
    "int": _int,
    "size": _size,
    "text": _text,
    "maybe-text": _maybe_text,
}


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= 60 else text[:59] + "…"
    return f"a {type(value).__name__}"
