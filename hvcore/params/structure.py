"""From what a user wrote to typed records, strictly, with every problem found on the way.

cattrs does the conversion; this module makes it strict (no ``True`` for 1, no ``"12"`` for 12), keeps the way down to
each value, names the nearest parameter for an unknown one, and never stops at the first problem.
"""

from __future__ import annotations

import difflib
import enum
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import IterableValidationError

from hvcore.findings import Finding
from hvcore.model.units import Seconds, Size, parse_seconds, parse_size
from hvcore.params.declare import METADATA, Declaration, ParameterSection

T = TypeVar("T")

_SHOWN = 60
_TEXT_LIMIT = 65536
_ITEM_LIMIT = 4096
_KEY_LIMIT = 256


class _WrongValue(ValueError):
    """A value of the wrong type or form; the text goes into the finding."""

    def __init__(self, message: str, code: str = "wrong-type") -> None:
        super().__init__(message)
        self.code = code


class _WrongRecord(ValueError):
    """A nested record that has findings of its own."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("wrong record")
        self.findings = findings


def structure(fields: type[T], values: Any, path: str = "", *, others: Iterable[str] = ()) -> tuple[T, list[Finding]]:
    """Make a record of an attrs class whose fields are declared with `param()`.

    Args:
        fields: the class.
        values: what the user gave; anything.
        path: where it stands, for the findings.
        others: keys that belong to other sections at the same place and are no concern of this one.

    Returns:
        The record and all findings. A field that was wrong or missing holds its default, or an empty value of its
        type, so that the rest can still be checked; with findings the record must not be used for anything else.
    """
    if not isinstance(values, Mapping):
        return _blank(fields), [
            Finding(code="wrong-type", path=path, message=f"expected a table, got {_shown(values)}")
        ]
    declared = attrs.fields_dict(_resolved(fields))
    findings = _unknown_keys(values, {*declared, *others}, path)
    chosen: dict[str, Any] = {}
    for name, field in declared.items():
        where = f"{path}.{name}" if path else name
        if name not in values:
            if field.default is attrs.NOTHING:
                findings.append(_missing(field, where))
                chosen[name] = _empty(field.type)
            continue
        item_kind = _record_items(field.type)
        if item_kind is not None and isinstance(values[name], list | tuple) and len(values[name]) <= _ITEM_LIMIT:
            # Item by item, so that one wrong item does not hide what is wrong with the others.
            chosen[name], problems = _structure_items(item_kind, values[name], where)
            findings.extend(problems)
            continue
        value, problems = _structure_field(field, values[name], where)
        findings.extend(problems)
        if problems:
            if field.default is attrs.NOTHING:
                chosen[name] = _empty(field.type)
        else:
            chosen[name] = value
    return fields(**chosen), findings


def structure_sections(
    sections: Sequence[ParameterSection], values: Any, path: str
) -> tuple[dict[type, Any], list[Finding]]:
    """Make the records of all sections that stand at one place, and apply their rules.

    Args:
        sections: a driver's own sections (their fields share one table) and those of its family plugins (one
            table each, under the plugin's name).
        values: the ``params`` of an instance, disk or NIC.
        path: where they stand.

    Returns:
        The records by class, and all findings.
    """
    if not isinstance(values, Mapping):
        values, findings = (
            {},
            [Finding(code="wrong-type", path=path, message=f"expected a table, got {_shown(values)}")],
        )
    else:
        findings = []
    own = [section for section in sections if not section.name]
    named = [section for section in sections if section.name]
    known = {f.name for s in own for f in attrs.fields(s.fields)} | {s.name for s in named}
    findings += _unknown_keys(values, known, path)
    records: dict[type, Any] = {}
    for section in sections:
        below = f"{path}.{section.name}" if section.name else path
        if section.name:
            given = values.get(section.name, {})
        else:
            names = {f.name for f in attrs.fields(section.fields)}
            given = {key: value for key, value in values.items() if key in names}
        record: Any
        record, problems = structure(section.fields, given, below)
        if not problems:
            problems = [f.below(below) for rule in section.rules for f in rule(record)]
        records[section.fields] = record
        findings += problems
    return records, findings


def _record_items(kind: Any) -> Any:
    """The class of the items, for a tuple of records."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and isinstance(arguments[0], type) and attrs.has(arguments[0]):
        return arguments[0]
    return None


def _structure_items(kind: Any, items: Sequence[Any], path: str) -> tuple[tuple[Any, ...], list[Finding]]:
    records = []
    findings: list[Finding] = []
    for index, item in enumerate(items):
        record, problems = structure(kind, item, f"{path}[{index}]")
        records.append(record)
        findings += problems
    return tuple(records), findings


def _structure_field(field: attrs.Attribute[Any], value: Any, path: str) -> tuple[Any, list[Finding]]:
    try:
        structured = converter().structure(value, _type_of(field))
    except Exception as error:
        return None, list(_findings(error, value, path))
    found = field.metadata.get(METADATA)
    return structured, list(_check(found, structured, path)) if isinstance(found, Declaration) else []


def _check(declared: Declaration, value: Any, path: str) -> Iterable[Finding]:
    if value is None:
        return
    if declared.choices and value not in declared.choices:
        yield Finding(
            code="not-a-choice",
            path=path,
            message=f"{_shown(value, declared.secret)} is none of {', '.join(declared.choices)}",
            hint=_nearest(value, declared.choices),
        )
        return
    for check in declared.checks:
        problem = check(value)
        if problem:
            yield Finding(code="invalid-value", path=path, message="is not valid" if declared.secret else problem)
    if declared.item_checks and isinstance(value, tuple):
        for index, item in enumerate(value):
            for check in declared.item_checks:
                problem = check(item)
                if problem:
                    yield Finding(code="invalid-value", path=f"{path}[{index}]", message=problem)


def _unknown_keys(values: Mapping[Any, Any], known: set[str], path: str) -> list[Finding]:
    findings = []
    for key in values:
        if isinstance(key, str) and key in known:
            continue
        shown = key if isinstance(key, str) and key.isidentifier() and len(key) <= _SHOWN else _shown(key)
        findings.append(
            Finding(
                code="unknown-parameter",
                path=f"{path}.{shown}" if path else str(shown),
                message="there is no such parameter",
                hint=_nearest(key, known),
            )
        )
    return findings


def _nearest(wrong: Any, known: Iterable[str]) -> str | None:
    if not isinstance(wrong, str) or len(wrong) > _SHOWN:
        return None
    close = difflib.get_close_matches(wrong.lower().replace("-", "_"), sorted(known), n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else None


def _missing(field: attrs.Attribute[Any], path: str) -> Finding:
    declared = field.metadata.get(METADATA)
    hint = None
    if isinstance(declared, Declaration):
        hint = f"one of {', '.join(declared.choices)}" if declared.choices else declared.summary
    return Finding(code="missing-parameter", path=path, message="is required", hint=hint)


def _findings(error: BaseException, value: Any, path: str) -> Iterable[Finding]:
    """Flatten what cattrs raised into findings; the notes it leaves say which key or index each belongs to."""
    if isinstance(error, IterableValidationError):
        grouped, ungrouped = error.group_exceptions()
        for sub, note in grouped:
            yield from _findings(sub, _item(value, note.index), f"{path}[{note.index}]")
        for sub in ungrouped:
            yield from _findings(sub, value, path)
    elif isinstance(error, _WrongRecord):
        yield from (finding.below(path) for finding in error.findings)
    elif isinstance(error, _WrongValue):
        yield Finding(code=error.code, path=path, message=str(error))
    else:
        yield Finding(code="wrong-type", path=path, message=f"cannot be read: {_shown(value)}")


def _item(value: Any, key: Any) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        return value


@functools.cache
def converter() -> cattrs.Converter:
    """The strict cattrs converter of hvcore's inputs. Records on disk have their own, see `hvcore.records`."""
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    made.register_structure_hook(bool, _exactly(bool, "true or false"))
    made.register_structure_hook(int, _exactly(int, "a whole number"))
    made.register_structure_hook(float, _number)
    made.register_structure_hook(str, _text)
    made.register_structure_hook(Size, _size)
    made.register_structure_hook(Seconds, _seconds)
    made.register_structure_hook_func(
        lambda kind: _origin(kind) is tuple, lambda value, kind: _tuple(made, value, kind)
    )
    made.register_structure_hook_func(
        lambda kind: _origin(kind) in (dict, Mapping, _origin(Mapping[str, Any])),
        lambda value, kind: _table(made, value, kind),
    )
    made.register_structure_hook_func(lambda kind: isinstance(kind, type) and attrs.has(kind), _record)
    made.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, enum.Enum),
        lambda value, kind: _member(value, kind),
    )
    return made


def _exactly(kind: type, words: str) -> Any:
    def hook(value: Any, wanted: Any) -> Any:
        if wanted is not kind:
            return _member(value, wanted)
        if type(value) is not kind:
            raise _WrongValue(f"expected {words}, got {_shown(value)}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _WrongValue("is outside 64 bits", "invalid-value")
        return value

    return hook


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _WrongValue(f"expected a number, got {_shown(value)}")
    return float(value)


def _text(value: Any, wanted: Any) -> Any:
    # cattrs finds this hook for an enumeration of texts too, by its base class.
    if wanted is not str:
        return _member(value, wanted)
    if type(value) is not str:
        raise _WrongValue(f"expected text, got {_shown(value)}")
    if len(value) > _TEXT_LIMIT:
        raise _WrongValue(f"has {len(value)} characters; {_TEXT_LIMIT} are allowed", "invalid-value")
    return value


def _size(value: Any, _: Any) -> Size:
    if type(value) is int:
        if not 0 <= value < 2**63:
            raise _WrongValue("is not a number of bytes from 0 to 2^63 - 1", "invalid-value")
        return Size(value)
    if type(value) is str:
        try:
            return parse_size(value)
        except ValueError as error:
            raise _WrongValue(str(error), "invalid-value") from None
    raise _WrongValue(f"expected a size such as '512MiB' or a number of bytes, got {_shown(value)}")


def _seconds(value: Any, _: Any) -> Seconds:
    if type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return Seconds(float(value))
    if type(value) is str:
        try:
            return parse_seconds(value)
        except ValueError as error:
            raise _WrongValue(str(error), "invalid-value") from None
    raise _WrongValue(f"expected a duration such as '30s' or a number of seconds, got {_shown(value)}")


def _tuple(made: cattrs.Converter, value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _WrongValue(f"expected a list, got {_shown(value)}")
    if len(value) > _ITEM_LIMIT:
        raise _WrongValue(f"has {len(value)} items; {_ITEM_LIMIT} are allowed", "invalid-value")
    item_kind: Any = typing.get_args(kind)[0]
    # cattrs' list hook numbers the items in the errors it raises.
    items: Any = types.GenericAlias(list, (item_kind,))
    return tuple(made.structure(list(value), items))


def _table(made: cattrs.Converter, value: Any, kind: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _WrongValue(f"expected a table, got {_shown(value)}")
    if any(type(key) is not str for key in value):
        raise _WrongValue("has a key that is not text")
    if len(value) > _ITEM_LIMIT:
        raise _WrongValue(f"has {len(value)} entries; {_ITEM_LIMIT} are allowed", "invalid-value")
    long = next((key for key in value if len(key) > _KEY_LIMIT), None)
    if long is not None:
        raise _WrongValue(f"has a key of {len(long)} characters; {_KEY_LIMIT} are allowed", "invalid-value")
    item_kind: Any = typing.get_args(kind)[1]
    if item_kind is Any:
        return types.MappingProxyType(dict(value))
    errors = []
    items = {}
    for key, item in value.items():
        try:
            items[key] = made.structure(item, item_kind)
        except _WrongValue as error:
            errors.append(f"{key}: {error}")
    if errors:
        raise _WrongValue("; ".join(errors))
    return types.MappingProxyType(items)


def _record(value: Any, kind: Any) -> Any:
    record, findings = structure(kind, value)
    if findings:
        raise _WrongRecord(findings)
    return record


def _member(value: Any, kind: type[enum.Enum]) -> enum.Enum:
    for member in kind:
        if type(value) is type(member.value) and member.value == value:
            return member
    raise _WrongValue(f"{_shown(value)} is none of {', '.join(str(m.value) for m in kind)}", "not-a-choice")


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind)


def _resolved(fields: Any) -> Any:
    """The class with its annotations evaluated; typed loosely, mypy knows no type variable for attrs classes."""
    return attrs.resolve_types(fields)


def _type_of(field: attrs.Attribute[Any]) -> Any:
    return field.type


def _empty(kind: Any) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin in (Size, int):
        return 0
    return {str: "", bool: False, float: 0.0, Seconds: 0.0, tuple: ()}.get(origin)


def _blank(fields: type[T]) -> T:
    declared = attrs.fields(_resolved(fields))
    return fields(**{f.name: _empty(f.type) for f in declared if f.default is attrs.NOTHING})


def _shown(value: Any, secret: bool = False) -> str:
    if secret:
        return "the value"
    if value is None:
        return "nothing (null)"
    kind = {
        str: "text",
        bool: "",
        int: "number",
        float: "number",
        list: "list",
        tuple: "list",
        dict: "table",
    }.get(type(value), type(value).__name__)
    if isinstance(value, str):
        text = repr(value[:_SHOWN]) + ("…" if len(value) > _SHOWN else "")
    elif isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else repr(value)[:_SHOWN]
    else:
        return f"a {kind}"
    return f"{kind} {text}".strip()
