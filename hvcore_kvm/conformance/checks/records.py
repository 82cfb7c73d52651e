"""The record of a plugin, and what its parameters may be given."""

from __future__ import annotations

from typing import Any

import attrs

from hvcore import HypervisorError, Instance, InvalidParameters, structure_sections
from hvcore.conformance import ConformanceFailure, Subject, check, expect
from hvcore_kvm.conformance.member import Member, families_of
from hvcore_kvm.families import faults_of
from hvcore_kvm.parameters.table import parameter_table

_LONG = 100_000
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf")),
    *("", "x", "x" * _LONG, "a,b=c", "line\nline", "nul\0nul", "../../etc/passwd", "-option", "%s%n", "\x1b[2J"),
    *("{}", '"', "'; true", "\ud800", "\u202e", "1" * 5000),
    *(
        (),
        ("a,b", "c\n"),
        ("nul\0",),
        (1, None),
        {},
        {"a": "b,c"},
        {"": "\0"},
        {"x": {"y": ("z",)}},
        b"bytes",
        object(),
    ),
)
"""What nobody should write, of every type."""


def fields_of(parameters: type) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of a class of parameters."""
    found: tuple[attrs.Attribute[Any], ...] = attrs.fields(attrs.resolve_types(parameters))
    return found


@check("FA-01", starts=False)
def its_name_is_its_own(subject: Subject) -> None:
    """Users can write the name, and nothing else in params has it."""
    member: Member = subject.profile.member
    record = member.record(subject.driver)
    found = [message for _, message in faults_of(record, type(record))]
    expect(not found, "; ".join(found))
    if record.parameters is None or member.kind == "nic-mode":
        return
    own = parameter_table(families_of(subject.driver)).at("instance")
    taken = {field.name for section in own if not section.name for field in attrs.fields(section.fields)}
    expect(record.name not in taken, f"driver kvm has a parameter params.{record.name}, which hides the plugin's own")


@check("FA-01", starts=False)
def its_summary_is_a_sentence(subject: Subject) -> None:
    """The summary is one sentence: a capital letter, a full stop, one line."""
    summary = subject.profile.member.record(subject.driver).summary
    whole = summary == summary.strip() and summary.endswith(".") and not summary[0].islower()
    expect(whole and len(summary) <= 200, f"the summary is no sentence of 200 characters at most: {summary!r}")


@check("FA-02", starts=False)
def every_parameter_is_declared(subject: Subject) -> None:
    """Each parameter is made by hvcore.param, with a summary."""
    record = subject.profile.member.record(subject.driver)
    try:
        table = parameter_table(families_of(subject.driver))
        sections = [section for section in table.sections if section.fields is record.parameters]
        for section in sections:
            # Reading nothing at all looks at every declaration.
            structure_sections([section], {}, "params")
    except (TypeError, NameError) as error:
        raise ConformanceFailure(f"its parameters are not declared as they should be: {error}") from error
    for field in fields_of(record.parameters) if record.parameters is not None else ():
        declared: Any = next((value for key, value in field.metadata.items() if key == "hvcore.param"), None)
        expect(declared is not None, f"parameter {field.name} is not declared with hvcore.param")
        summary = declared.summary.strip()
        expect(summary.endswith("."), f"parameter {field.name} has no summary that is a sentence: {summary!r}")


@check("FA-02", starts=False)
def every_default_is_valid(subject: Subject) -> None:
    """A definition that gives a parameter its default has no finding about it."""
    member: Member = subject.profile.member
    record = member.record(subject.driver)
    for field in fields_of(record.parameters) if record.parameters is not None else ():
        default = field.default
        if default is attrs.NOTHING or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            continue
        if default is None or attrs.has(type(default)):
            continue  # not given
        wrong = [
            str(finding)
            for finding in subject.driver.check_parameter_syntax(_with(subject, member, field.name, default))
            if finding.path == member.where(field.name)
        ]
        expect(not wrong, f"the default of {field.name} is refused: {'; '.join(wrong)}")


@check("FA-03", starts=False)
def no_value_of_a_parameter_breaks_it(subject: Subject) -> None:
    """Values of every type, huge, empty, with newlines, commas and NUL: findings, or a plan a process can be given."""
    member: Member = subject.profile.member
    record = member.record(subject.driver)
    names = [field.name for field in fields_of(record.parameters)] if record.parameters is not None else []
    names += ["link", "ip"] if member.kind == "nic-mode" else []
    for name in names:
        for value in HOSTILE:
            _try(subject, name, value, _with(subject, member, name, value))


def _with(subject: Subject, member: Member, name: str, value: Any) -> Instance:
    definition = subject.profile.definition("hostile", subject.directory)
    return member.put_into(definition, subject.directory, {name: value})


def _try(subject: Subject, name: str, value: Any, definition: Instance) -> None:
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
    try:
        if not subject.driver.check_parameter_syntax(definition).ok:
            return
        plan = subject.driver.plan_start(definition)
    except InvalidParameters:
        return
    except HypervisorError as error:
        raise ConformanceFailure(f"{name} = {shown} raises {type(error).__name__}: {error.message}") from error
    words = [*plan.argv, *(word for pair in plan.environment for word in pair)]
    expect(not any("\0" in word for word in words), f"{name} = {shown} is planned as a word with a NUL")
    try:
        for word in words:
            word.encode()
    except UnicodeEncodeError as error:
        raise ConformanceFailure(f"{name} = {shown} is planned as a word that cannot be encoded") from error
