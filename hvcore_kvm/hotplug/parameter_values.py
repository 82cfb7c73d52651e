"""The parameters that a running instance is to have, from what is to be changed of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from hvcore import Finding, FindingSet, Instance, InvalidParameters, LiveParameters


def with_values(instance: Instance, wanted: LiveParameters) -> tuple[Instance, tuple[str, ...]]:
    """A definition with other parameters, and the names of those that were given.

    Args:
        instance: the definition now.
        wanted: values, and entries of lists that come or go.

    Raises:
        InvalidParameters: that is no table of values or entries, or an entry that is to go is not there.
    """
    findings = list(_shape(wanted))
    if findings:
        raise InvalidParameters("the parameters cannot be changed", FindingSet(findings))
    values: dict[str, Any] = dict(wanted.values)
    for name in dict.fromkeys((*wanted.remove, *wanted.add)):
        entries = list(instance.params.get(name) or ())
        for pattern in wanted.remove.get(name, ()):
            found = next((entry for entry in entries if _has(entry, pattern)), None)
            if found is None:
                there = "; ".join(_words(entry) for entry in entries) or "none"
                message = f"there is none with {_words(pattern)}"
                hint = f"there is: {there}"
                findings.append(Finding(code="no-such-device", path=f"params.{name}", message=message, hint=hint))
            else:
                entries.remove(found)
        values[name] = [*entries, *wanted.add.get(name, ())] or None
    if findings:
        raise InvalidParameters("the parameters cannot be changed", FindingSet(findings))
    params = {key: value for key, value in {**instance.params, **values}.items() if value is not None}
    return attrs.evolve(instance, params=params), tuple(values)


def _shape(wanted: LiveParameters) -> Iterator[Finding]:
    given: tuple[Any, ...] = (wanted.values, wanted.add, wanted.remove)
    if not all(isinstance(table, Mapping) and all(isinstance(name, str) for name in table) for table in given):
        yield Finding(code="wrong-type", path="params", message="expected a table of values by name")
        return
    for name in {**wanted.add, **wanted.remove}:
        entries: list[Any] = [wanted.add.get(name, ()), wanted.remove.get(name, ())]
        if not all(isinstance(row, list | tuple) and all(isinstance(one, Mapping) for one in row) for row in entries):
            yield Finding(code="wrong-type", path=f"params.{name}", message="expected a list of tables")
        if name in wanted.values:
            message = "is given as a whole, and by entries as well"
            yield Finding(code="contradiction", path=f"params.{name}", message=message)


def _has(entry: Any, pattern: Mapping[str, Any]) -> bool:
    return isinstance(entry, Mapping) and all(entry.get(key) == value for key, value in pattern.items())


def _words(entry: Any) -> str:
    return ", ".join(f"{key} = {value}" for key, value in entry.items())[:80] if isinstance(entry, Mapping) else ""
