"""What is different between the definition an instance runs with and another one, and when that can take effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from hvcore.model.instance import Disk, Instance, Nic
from hvcore.model.plan import PlannedChange
from hvcore.params.declare import Declaration, ParameterSection, ParameterTable, declaration
from hvcore.params.structure import structure_sections

_HIDDEN = "(secret)"
_ELSEWHERE = frozenset(("name", "uuid", "params", "disks", "nics"))


def definition_changes(
    table: ParameterTable,
    before: Instance,
    after: Instance,
    *,
    pluggable: Callable[[Disk | Nic], bool],
) -> tuple[PlannedChange, ...]:
    """Every difference, in the order of the definition.

    Args:
        table: the driver's parameters.
        before: what the instance runs with.
        after: another definition of it, without errors; identities filled in, by which disks and NICs are matched.
        pluggable: whether a disk or NIC can be plugged and unplugged while the guest runs.
    """
    return tuple(_changes(table, before, after, pluggable))


def _changes(
    table: ParameterTable, before: Instance, after: Instance, pluggable: Callable[[Disk | Nic], bool]
) -> Iterator[PlannedChange]:
    yield from _fields(Instance, before, after, "", None)
    yield from _sections(table.at("instance"), before.params, after.params, "params", None)
    for kind, place, fields in (("disks", "disk", Disk), ("nics", "nic", Nic)):
        yield from _devices(
            table, place, fields, getattr(before, kind), getattr(after, kind), kind=kind, pluggable=pluggable
        )


def _devices(
    table: ParameterTable,
    place: str,
    fields: type,
    before: Sequence[Any],
    after: Sequence[Any],
    *,
    kind: str,
    pluggable: Callable[[Disk | Nic], bool],
) -> Iterator[PlannedChange]:
    old = {device.uuid: device for device in before}
    new = {device.uuid for device in after}
    for index, device in enumerate(before):
        if device.uuid not in new:
            effect = _plug(pluggable(device))
            yield PlannedChange(
                path=f"{kind}[{index}]", before=_shown(device), after=None, effect=effect, device=device.uuid
            )
    for index, device in enumerate(after):
        path = f"{kind}[{index}]"
        known = old.get(device.uuid)
        if known is None:
            effect = _plug(pluggable(device))
            yield PlannedChange(path=path, before=None, after=_shown(device), effect=effect, device=device.uuid)
            continue
        replug = _plug(pluggable(device) and pluggable(known))
        found = list(_fields(fields, known, device, path, replug))
        if getattr(known, "mode", None) == getattr(device, "mode", None):
            sections = [section for section in table.at(place) if _belongs(section, device)]
            found += _sections(sections, known.params, device.params, f"{path}.params", replug)
        yield from (attrs.evolve(change, device=device.uuid) for change in found)


def _belongs(section: ParameterSection, device: Any) -> bool:
    return not section.plugin or section.plugin.rpartition(" ")[2] == getattr(device, "mode", None)


def _plug(possible: bool) -> Literal["hotplug", "start"]:
    return "hotplug" if possible else "start"


def _fields(
    fields: type, before: Any, after: Any, path: str, replug: Literal["hotplug", "start"] | None
) -> Iterator[PlannedChange]:
    for field in attrs.fields(fields):
        if field.name not in _ELSEWHERE:
            where = f"{path}.{field.name}" if path else field.name
            old, new = getattr(before, field.name), getattr(after, field.name)
            yield from _compare(declaration(field), old, new, where, replug)


def _sections(
    sections: Sequence[ParameterSection],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    path: str,
    replug: Literal["hotplug", "start"] | None,
) -> Iterator[PlannedChange]:
    old, _ = structure_sections(sections, before, path)
    new, _ = structure_sections(sections, after, path)
    for section in sections:
        below = f"{path}.{section.name}" if section.name else path
        for field in attrs.fields(section.fields):
            was, now = (getattr(records[section.fields], field.name) for records in (old, new))
            yield from _compare(declaration(field), was, now, f"{below}.{field.name}", replug)


def _compare(
    declared: Declaration, before: Any, after: Any, path: str, replug: Literal["hotplug", "start"] | None
) -> Iterator[PlannedChange]:
    if before == after:
        return
    kind = type(before[0]) if isinstance(before, tuple) and before else None
    if kind is not None and attrs.has(kind) and isinstance(after, tuple) and len(before) == len(after):
        # As many as before: each is another one by itself, and may change by itself.
        for index, (was, now) in enumerate(zip(before, after, strict=True)):
            for change in _fields(kind, was, now, f"{path}[{index}]", replug):
                effect = declared.changes if change.effect == "start" else change.effect
                yield attrs.evolve(change, effect=effect)
        return
    # What a disk or NIC cannot change in place takes effect when it is plugged again.
    effect = replug if replug is not None and declared.changes == "start" else declared.changes
    if declared.secret:
        before, after = (None if value is None else _HIDDEN for value in (before, after))
    yield PlannedChange(path=path, before=_shown(before), after=_shown(after), effect=effect)


def _shown(value: Any) -> Any:
    if attrs.has(type(value)):
        shown = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
        return {name: _shown(item) for name, item in shown.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_shown(item) for item in value]
    return value
