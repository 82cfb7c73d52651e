"""The arguments of an operation as plain data, with everything that may be secret masked.

What is shown of ``params`` is what the driver has declared and not declared secret. A parameter nobody has declared may
be a misspelt password, so it is masked as well.
"""

from __future__ import annotations

import enum
import math
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import attrs

from hvcore.errors import HypervisorError
from hvcore.model.devices import LiveParameters
from hvcore.model.instance import Disk, Instance, Nic
from hvcore.operation import DriverView, OperationCall
from hvcore.params.declare import METADATA, Declaration, ParameterTable

MASK = "***"
"""What stands in place of a value that may be secret."""

SECRET_ARGUMENTS = frozenset({"password"})
"""Arguments of operations that are secret by the specification of their hook."""

_LEFT_OUT = frozenset({"deadline", "name"})
_TEXT_LIMIT = 1000
_ITEM_LIMIT = 100
_DEPTH_LIMIT = 12
_NUMBER_BITS = 256
_SHORTEST_SECRET = 4

_Show = Callable[[Any], Any]


class Masker:
    """Turns the arguments of one operation into plain data.

    Args:
        view: whom to ask which parameters there are; asked once per driver.

    Attributes:
        secrets: the texts that were masked.
    """

    def __init__(self, view: DriverView) -> None:
        self._view = view
        self.secrets: set[str] = set()

    def arguments(self, call: OperationCall) -> dict[str, Any]:
        """The arguments of a call, but for the deadline and the name, which stand in the call itself."""
        return {
            name: self._mask(value) if name in SECRET_ARGUMENTS else self._plain(value)
            for name, value in call.arguments.items()
            if name not in _LEFT_OUT
        }

    def text(self, text: str) -> str:
        """A text with every secret in it masked that this masker has met."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, MASK)
        return text

    def _mask(self, value: Any) -> Any:
        if value is None:
            return None
        self._learn(value, 0)
        return MASK

    def _learn(self, value: Any, depth: int) -> None:
        if isinstance(value, str):
            self.secrets.add(value)
        elif depth < _DEPTH_LIMIT and isinstance(value, Mapping):
            for item in value.values():
                self._learn(item, depth + 1)
        elif depth < _DEPTH_LIMIT and isinstance(value, list | tuple | AbstractSet):
            for item in value:
                self._learn(item, depth + 1)

    def _plain(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, enum.Enum):
            value = value.value
        if value is None or isinstance(value, bool | int | float | str):
            return _scalar(value)
        if depth >= _DEPTH_LIMIT:
            return "…"
        if isinstance(value, Mapping):
            return {str(key)[:_TEXT_LIMIT]: self._plain(item, depth + 1) for key, item in _few(value.items())}
        if isinstance(value, list | tuple | AbstractSet):
            return [self._plain(item, depth + 1) for item in _few(value)]
        if attrs.has(type(value)):
            return self._record(value, depth)
        if isinstance(value, bytes | bytearray):
            return f"<{len(value)} bytes>"
        return f"<{type(value).__name__}>"

    def _record(self, record: Any, depth: int) -> dict[str, Any]:
        place = {Instance: "instance", Disk: "disk", Nic: "nic"}.get(type(record))
        shown: dict[str, Any] = {}
        for field in attrs.fields(type(record)):
            value = getattr(record, field.name)
            declared = field.metadata.get(METADATA)
            if place and field.name == "params":
                shown["params"] = self._params(value, place, depth)
            elif isinstance(record, LiveParameters):
                shown[field.name] = self._params(value, "instance", depth)
            elif not field.repr or (isinstance(declared, Declaration) and declared.secret):
                shown[field.name] = self._mask(value)
            elif _holds_mapping(value):
                shown[field.name] = self._mask(value)  # decisions of a driver, or something misplaced: not known
            else:
                shown[field.name] = self._plain(value, depth + 1)
        return shown

    def _params(self, values: Any, place: str, depth: int) -> Any:
        return self._declared(values, _declarations(self._view).get(place, {}), depth) if values else {}

    def _declared(self, values: Any, known: Mapping[str, Any], depth: int) -> Any:
        """Values of which only those are shown that are known: ``True``, or what is known of their own values."""
        if isinstance(values, list | tuple) and depth < _DEPTH_LIMIT:
            return [self._declared(item, known, depth + 1) for item in _few(values)]
        if not isinstance(values, Mapping) or depth >= _DEPTH_LIMIT:
            return self._mask(values)
        shown = {}
        for key, value in _few(values.items()):
            what = known.get(key, False) if isinstance(key, str) else False
            if isinstance(what, Mapping):
                item = self._declared(value, what, depth + 1)
            else:
                item = self._plain(value, depth + 1) if what else self._mask(value)
            shown[str(key)[:_TEXT_LIMIT]] = item
        return shown


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple | AbstractSet) and any(_holds_mapping(item) for item in _few(value))
    )


def _scalar(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _TEXT_LIMIT:
        return f"{value[:_TEXT_LIMIT]}… ({len(value)} characters)"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > _NUMBER_BITS:
        return f"<number of {value.bit_length()} bits>"
    return value


def _few(items: Iterable[Any]) -> Iterable[Any]:
    return (item for _, item in zip(range(_ITEM_LIMIT), items, strict=False))


_KNOWN: weakref.WeakKeyDictionary[DriverView, dict[str, dict[str, Any]]] = weakref.WeakKeyDictionary()


def _declarations(view: DriverView) -> Mapping[str, Mapping[str, Any]]:
    """By place: which parameters may be shown."""
    known = _KNOWN.get(view)
    if known is None:
        try:
            known = _known(view.parameters())
        except HypervisorError:
            return {}  # nobody can tell what is secret: nothing is shown
        _KNOWN[view] = known
    return known


def _known(table: ParameterTable) -> dict[str, dict[str, Any]]:
    places: dict[str, dict[str, Any]] = {}
    for section in table.sections:
        place = places.setdefault(section.place, {})
        found = _shown_fields(section.fields)
        # Two plugins may use one name for different things: secret in one is secret.
        _merge(place, {section.name: found} if section.name else found)
    return places


def _merge(into: dict[str, Any], found: Mapping[str, Any]) -> None:
    for name, what in found.items():
        if isinstance(what, dict) and isinstance(into.get(name), dict):
            _merge(into[name], what)
        else:
            into[name] = what if into.get(name, True) else False


def _shown_fields(fields: type, around: tuple[type, ...] = ()) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for field in attrs.fields(attrs.resolve_types(fields)):
        declared = field.metadata.get(METADATA)
        secret = not isinstance(declared, Declaration) or declared.secret
        nested: dict[str, Any] = {}
        records = tuple(_records(field.type))
        for record in records:
            # A record within itself is masked at its second level.
            _merge(nested, {} if record in around else _shown_fields(record, (*around, fields)))
        shown[field.name] = False if secret else nested if records else True
    return shown


def _records(kind: Any) -> Iterable[type]:
    if isinstance(kind, type) and attrs.has(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from _records(argument)
