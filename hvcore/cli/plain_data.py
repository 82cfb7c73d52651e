"""From records to plain data for JSON; pure."""

from __future__ import annotations

import base64
import enum
import math
from collections.abc import Mapping
from typing import Any

PlainData = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What JSON can hold."""


def plain_data(value: object) -> PlainData:
    """A record as JSON can hold it.

    Fields become keys, enumerations their values, sequences and sets lists, bytes base64; an infinite number becomes
    ``None``, because JSON has none.
    """
    if isinstance(value, enum.Enum):
        return plain_data(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    fields = getattr(type(value), "__attrs_attrs__", None)
    if fields is not None:
        return {field.name: plain_data(getattr(value, field.name)) for field in fields}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_data(item) for item in value), key=str)
    return str(value)
