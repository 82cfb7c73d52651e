"""What there is to set, as plain rows: for ``hv params``, completions and the reference page."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

import attrs

from hvcore.model.instance import Disk, Instance, Nic
from hvcore.model.units import Seconds, Size, format_size
from hvcore.params.declare import Declaration, ParameterSection, ParameterTable, declaration

MODEL_SECTIONS = (
    ("Instance", "", Instance),
    ("Disk", "disks[]", Disk),
    ("NIC", "nics[]", Nic),
)
"""The records of the model: title, path, class."""

_PLACES = {"instance": "params", "disk": "disks[].params", "nic": "nics[].params"}


@attrs.frozen(kw_only=True)
class ParameterRow:
    """One parameter for people.

    Attributes:
        path: where it stands in an instance file, for example ``params.machine``; ``[]`` stands for each item of a
            list, ``NAME`` for each name in a table.
        section: title of its section.
        type: its type in words.
        default: its default in words; empty when it is required.
        required: it has no default.
        declaration: everything else that was declared.
    """

    path: str
    section: str
    type: str
    default: str
    required: bool
    declaration: Declaration


def parameter_rows(table: ParameterTable) -> tuple[ParameterRow, ...]:
    """Every parameter, those of the model first."""
    rows: list[ParameterRow] = []
    for title, path, fields in MODEL_SECTIONS:
        # Disks and NICs stand in the list of an instance, and have sections of their own.
        rows += _rows(title, path, fields, nested=False)
    for section in table.sections:
        rows += _rows(section.title, place_path(section), section.fields)
    return tuple(rows)


def place_path(section: ParameterSection) -> str:
    """Where the values of a section stand in an instance file."""
    base = _PLACES[section.place]
    return f"{base}.{section.name}" if section.name else base


def _rows(title: str, path: str, fields: type, *, nested: bool = True) -> Iterable[ParameterRow]:
    for field in attrs.fields(attrs.resolve_types(fields)):
        declared = declaration(field)
        required = field.default is attrs.NOTHING
        where = f"{path}.{field.name}" if path else field.name
        yield ParameterRow(
            path=where,
            section=title,
            type=type_words(field.type),
            default="" if required else _default_words(field, declared),
            required=required,
            declaration=declared,
        )
        if nested:
            for below in _nested(title, where, field.type):
                # What a table can change while the guest runs, its fields can.
                own = below.declaration
                changes = declared.changes if own.changes == "start" else own.changes
                yield attrs.evolve(below, declaration=attrs.evolve(own, changes=changes))


def _nested(title: str, path: str, kind: Any) -> Iterable[ParameterRow]:
    """The fields of the tables inside a parameter: of one, of each in a list, of each by name."""
    if isinstance(kind, type) and attrs.has(kind):
        yield from _rows(title, path, kind)
        return
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _nested(title, path, argument)
    elif origin is tuple:
        yield from _nested(title, f"{path}[]", arguments[0])
    elif origin is not None and len(arguments) == 2:
        yield from _nested(title, f"{path}.NAME", arguments[1])


def _default_words(field: attrs.Attribute[Any], declared: Declaration) -> str:
    default = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory()  # type: ignore[union-attr]
    if default is None:
        return "none"
    if declared.unit == "bytes":
        return format_size(default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    if isinstance(default, dict):
        return "{}"
    return str(default) if default != "" else '""'


def type_words(kind: Any) -> str:
    """A type in the words of an instance file: ``text``, ``size``, ``list of text``."""
    simple = {
        str: "text",
        int: "whole number",
        bool: "true or false",
        float: "number",
        Size: "size",
        Seconds: "duration",
        Any: "value",
    }
    if kind in simple:
        return simple[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"list of {type_words(arguments[0])}"
    if origin is not None and len(arguments) == 2:
        return f"table of {type_words(arguments[1])}"
    if isinstance(kind, type) and attrs.has(kind):
        return f"table ({kind.__name__})"
    return str(getattr(kind, "__name__", kind))
