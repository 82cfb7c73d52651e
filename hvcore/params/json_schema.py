"""The JSON Schema (2020-12) of an instance file for one driver, made from the declarations."""

from __future__ import annotations

import types
import typing
from typing import Any

import attrs

from hvcore.model.instance import Disk, Instance, Nic
from hvcore.model.units import Seconds, Size
from hvcore.params.declare import METADATA, Declaration, ParameterTable

_SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9]{1,19}(\.[0-9]{1,9})? ?([KkMmGgTt][Ii]?)?[Bb]$"},
    ]
}
_SECONDS = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^[0-9]{1,19}(\.[0-9]{1,9})? ?(ms|s|m|min|h|d)$"},
    ]
}


def json_schema(table: ParameterTable, driver: str) -> dict[str, Any]:
    """The schema of an instance file.

    Args:
        table: the driver's parameters.
        driver: its name, for the title.

    Returns:
        The schema as plain data.
    """
    schema = _object(Instance)
    schema["properties"]["params"] = _place(table, "instance")
    for key, fields, place in (("disks", Disk, "disk"), ("nics", Nic, "nic")):
        item = _object(fields)
        item["properties"]["params"] = _place(table, place)
        schema["properties"][key]["items"] = item
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Instance file for the hvcore driver {driver}",
        **schema,
    }


def _place(table: ParameterTable, place: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for section in table.at(place):
        part = _object(section.fields)
        if section.name:
            schema["properties"][section.name] = part
            continue
        for name, item in part["properties"].items():
            # Two NIC modes may use one name for different things; which one counts depends on the NIC's mode.
            known = schema["properties"].get(name)
            schema["properties"][name] = item if known in (None, item) else {"anyOf": [known, item]}
        if part.get("required") and not section.plugin:
            schema["required"] = [*schema.get("required", []), *part["required"]]
    return schema


def _object(fields: type) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in attrs.fields(attrs.resolve_types(fields)):
        found = field.metadata.get(METADATA)
        part = dict(_type(field.type))
        if isinstance(found, Declaration):
            part["description"] = found.summary
            if found.choices:
                part = {"description": found.summary, "enum": [*found.choices, *_null(field.type)]}
            if found.secret:
                part["writeOnly"] = True
        properties[field.name] = part
        if field.default is attrs.NOTHING:
            required.append(field.name)
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": required} if required else schema


def _null(kind: Any) -> list[None]:
    return [None] if type(None) in typing.get_args(kind) else []


def _type(kind: Any) -> dict[str, Any]:
    simple: dict[Any, dict[str, Any]] = {
        str: {"type": "string"},
        int: {"type": "integer"},
        bool: {"type": "boolean"},
        float: {"type": "number"},
        type(None): {"type": "null"},
        Size: _SIZE,
        Seconds: _SECONDS,
        Any: {},
    }
    if kind in simple:
        return simple[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(argument) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is not None and len(arguments) == 2:
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    if isinstance(kind, type) and attrs.has(kind):
        return _object(kind)
    raise TypeError(f"no schema for parameters of type {kind!r}")
