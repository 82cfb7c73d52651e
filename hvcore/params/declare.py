"""Declaring a parameter: one `param()` field carries everything that is known about it.

From that one declaration come structuring, checks, the JSON Schema, ``hv params``, completions and the reference page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import attrs

from hvcore.findings import Finding
from hvcore.params.checks import Check

Changes = Literal["start", "hotplug", "live"]
"""When a change takes effect: at the next start, by hotplug, or at once."""

METADATA = "hvcore.param"

_MISSING: Any = object()


@attrs.frozen(kw_only=True)
class Declaration:
    """What `param()` records about one parameter.

    Attributes:
        summary: one sentence or two for people.
        unit: ``bytes``, ``seconds`` or another unit; ``None`` for plain values.
        choices: the allowed values, if they are few and fixed.
        checks: pure checks of the value.
        item_checks: pure checks of each item of a sequence.
        since: version that introduced it.
        secret: the value must never be shown, logged or recorded.
        changes: when a change takes effect.
        aliases: names under which other systems know it.
    """

    summary: str
    unit: str | None = None
    choices: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    item_checks: tuple[Check, ...] = ()
    since: str = "0.1"
    secret: bool = False
    changes: Changes = "start"
    aliases: tuple[str, ...] = ()


def param(
    *,
    summary: str,
    default: Any = _MISSING,
    factory: Callable[[], Any] | None = None,
    unit: str | None = None,
    choices: Iterable[str] = (),
    checks: Iterable[Check] = (),
    item_checks: Iterable[Check] = (),
    since: str = "0.1",
    secret: bool = False,
    changes: Changes = "start",
    aliases: Iterable[str] = (),
    converter: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare one parameter as a field of an attrs class.

    Args:
        summary: what it does, one sentence or two.
        default: value when not given; without it and without ``factory`` the parameter is required.
        factory: makes the default, for mutable ones.
        unit: unit of the value; annotate sizes as `hvcore.Size` and times as `hvcore.Seconds`.
        choices: the allowed values.
        checks: pure checks of a value of the annotated type; see `hvcore.params.checks`.
        item_checks: pure checks of each item of a tuple.
        since: version that introduced it.
        secret: never shown, logged or recorded.
        changes: when a change takes effect: ``start``, ``hotplug`` or ``live``.
        aliases: names under which other systems know it.
        converter: attrs converter, for records that host applications construct themselves.

    Returns:
        An attrs field; typed as ``Any`` so that the annotation decides.
    """
    declaration = Declaration(
        summary=summary,
        unit=unit,
        choices=tuple(choices),
        checks=tuple(checks),
        item_checks=tuple(item_checks),
        since=since,
        secret=secret,
        changes=changes,
        aliases=tuple(aliases),
    )
    given: dict[str, Any] = {}
    if factory is not None:
        given["factory"] = factory
    elif default is not _MISSING:
        given["default"] = default
    return attrs.field(metadata={METADATA: declaration}, repr=not secret, converter=converter, **given)


def declaration(field: attrs.Attribute[Any]) -> Declaration:
    """The declaration of a field made by `param()`.

    Raises:
        TypeError: the field was not made by `param()`.
    """
    found = field.metadata.get(METADATA)
    if not isinstance(found, Declaration):
        raise TypeError(f"field {field.name!r} is not declared with param()")
    return found


Rule = Callable[[Any], Iterable[Finding]]
"""A pure check of a whole section: takes the section's object and yields findings, paths below the section."""


@attrs.frozen(kw_only=True)
class ParameterSection:
    """One class of parameters and where its values stand in an instance.

    Attributes:
        title: what the section is about, for headings.
        place: ``instance`` (below ``params``), ``disk`` or ``nic`` (below that device's ``params``).
        fields: attrs class whose fields are made by `param()`.
        name: key under which the values stand, for the section of a family plugin; empty for a driver's own.
        plugin: the family plugin the section belongs to, for example ``console type serial``.
        rules: checks of several parameters together.
    """

    title: str
    place: Literal["instance", "disk", "nic"]
    fields: type
    name: str = ""
    plugin: str = ""
    rules: Sequence[Rule] = ()


@attrs.frozen(kw_only=True)
class ParameterTable:
    """Every parameter of a driver, its family plugins included, in the order in which they are documented."""

    sections: tuple[ParameterSection, ...]

    def at(self, place: str) -> tuple[ParameterSection, ...]:
        """The sections whose values stand at one place."""
        return tuple(section for section in self.sections if section.place == place)
