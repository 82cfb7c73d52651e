"""QEMU's command line as typed options, rendered last. No value a user supplies can add an option.

QEMU 7.2 and 10.0 take JSON for ``-device``, ``-blockdev``, ``-netdev``, ``-object``; the others take ``key=value``
with every comma of a value doubled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import attrs


@attrs.frozen(kw_only=True)
class PlaceRequest:
    """A device wants a place on a bus: the one it had before, else a free one.

    Attributes:
        uuid: identity of the device, under which the place is kept.
        space: the places it can take, for example ``pci`` or ``sata``.
        function: which function of a PCI device with several; all of them have the same identity and slot.
    """

    uuid: str
    space: str = "pci"
    function: int | None = None


@attrs.frozen(kw_only=True)
class Option:
    """One option, typed.

    Attributes:
        name: the option, without its hyphen.
        form: how its value is written: not at all, as one word, as JSON, as ``key=value`` pairs, or as several words.
        value: the word, the values, or the words.
        first: what stands before the pairs, as the type in ``-machine q35,acpi=off``.
        origin: what in the definition it comes from.
        place: the place a device wants, until it has one.
    """

    name: str
    form: Literal["flag", "word", "json", "keyed", "raw"]
    value: Any = None
    first: str | None = None
    origin: str = "driver"
    place: PlaceRequest | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The option and its value as argument words."""
        option = f"-{self.name}"
        if self.form == "flag":
            return (option,)
        if self.form == "raw":
            return (option, *self.value)
        if self.form == "word":
            return (option, self.value)
        if self.form == "json":
            return (option, json.dumps(self.value, separators=(",", ":")))
        parts = [] if self.first is None else [escape(self.first)]
        for key, value in self.value.items():
            parts += [f"{key}={escape(_text(item))}" for item in (value if isinstance(value, list) else [value])]
        return (option, ",".join(parts))

    @property
    def data(self) -> Any:
        """The value as plain data: nothing, text, a list of words, or a table."""
        if self.form == "keyed":
            return dict(self.value) if self.first is None else {"": self.first, **self.value}
        return list(self.value) if self.form == "raw" else self.value


def flag(name: str, *, origin: str = "driver") -> Option:
    """An option without a value."""
    return Option(name=name, form="flag", origin=origin)


def word(name: str, value: str, *, origin: str = "driver") -> Option:
    """An option whose value is one word that QEMU takes verbatim."""
    return Option(name=name, form="word", value=value, origin=origin)


def json_option(name: str, values: Mapping[str, Any], *, origin: str = "driver") -> Option:
    """An option whose value is JSON."""
    return Option(name=name, form="json", value=dict(values), origin=origin)


def keyed(
    name: str, first: str | None, values: Mapping[str, object] | None = None, *, origin: str = "driver"
) -> Option:
    """An option of the form ``first,key=value,...``.

    Booleans are written out, ``None`` values left out, a list repeats its key.
    """
    given = {key: value for key, value in (values or {}).items() if value is not None}
    return Option(name=name, form="keyed", first=first, value=given, origin=origin)


def device(
    driver: str,
    ident: str,
    properties: Mapping[str, Any] | None = None,
    *,
    place: PlaceRequest | None = None,
    origin: str = "driver",
) -> Option:
    """A ``-device`` option.

    Args:
        driver: QEMU's name of the device type.
        ident: its id.
        properties: its properties.
        place: asks for a place on a bus; without it the properties must say where it sits, if it sits anywhere.
        origin: what in the definition it comes from.
    """
    values = {"driver": driver, "id": ident, **(properties or {})}
    return Option(name="device", form="json", value=values, origin=origin, place=place)


def escape(value: str) -> str:
    """A value for the ``key=value`` form: QEMU reads a doubled comma as one."""
    return value.replace(",", ",,")


def _text(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
