"""Checking definitions: everything that is wrong, at once, with a place, and nothing converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.disclosure import Disclosure
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import HypervisorError, InvalidParameters
from hvcore.findings import FindingSet, Severity
from hvcore.params.declare import ParameterSection
from hvcore.params.explain import ParameterRow, parameter_rows

_WRONG: dict[str, tuple[Any, ...]] = {
    "text": (5, True),
    "whole number": ("12", True, 1.5),
    "true or false": (1, "true", 0),
    "number": ("1.5", True),
    "size": (True, "12"),
    "duration": (True, "12"),
}
"""For each type in words: values of another type, some of which a careless program would convert."""


def _with(subject: Subject, path: str, value: Any) -> dict[str, Any]:
    """A definition as a mapping, with one parameter below ``params`` set."""
    definition = subject.definition("web")
    params: dict[str, Any] = dict(definition.params)
    place = params
    *folders, last = path.split(".")[1:]
    for folder in folders:
        place[folder] = dict(place.get(folder, {}))
        place = place[folder]
    place[last] = value
    return {"name": "web", "memory": definition.memory, "vcpus": definition.vcpus, "params": params}


def _own_rows(subject: Subject) -> tuple[ParameterRow, ...]:
    """The driver's own parameters of the whole instance."""
    rows = parameter_rows(subject.driver.parameters())
    return tuple(row for row in rows if row.path.startswith("params.") and row.path.count(".") == 1)


def _own_sections(subject: Subject) -> tuple[ParameterSection, ...]:
    return tuple(section for section in subject.driver.parameters().at("instance") if not section.name)


def _at(findings: FindingSet, path: str) -> list[str]:
    return [str(f) for f in findings.errors if f.path == path or f.path.startswith((f"{path}.", f"{path}["))]


_MISTAKES = {"name": "web", "vcpus": True, "memory": "lots", "params": {"no_such_parameter": 1}}
_PLACES = ("vcpus", "memory", "params.no_such_parameter")


@check("PA-01")
def all_findings_come_at_once(subject: Subject) -> None:
    """Every mistake of a definition is found by one call, and none is raised."""
    findings = subject.driver.check_parameter_syntax(_MISTAKES)
    for path in _PLACES:
        expect(_at(findings, path), f"nothing is found at {path}")
    validated = subject.driver.validate_parameters(_MISTAKES)
    for path in _PLACES:
        expect(_at(validated, path), f"validate_parameters finds nothing at {path}")


@check("PA-01")
def all_findings_of_the_host_come_at_once(subject: Subject) -> None:
    """Each disk that is not there is found by one call."""
    disks = [subject.missing_disk("a.raw"), subject.missing_disk("b.raw")]
    findings = subject.driver.validate_parameters(subject.definition(disks=disks))
    for index in range(2):
        expect(_at(findings, f"disks[{index}]"), f"nothing is found at disks[{index}]")


@check("PA-02")
def every_finding_has_a_code_and_a_place(subject: Subject) -> None:
    """Findings of the syntax can be acted on by a program: code and path are there."""
    definitions = [_MISTAKES, *(_with(subject, row.path, object()) for row in _own_rows(subject))]
    for definition in definitions:
        for finding in subject.driver.check_parameter_syntax(definition):
            expect(finding.code, f"a finding has no code: {finding}")
            expect(finding.path, f"a finding has no path: {finding}")


@check("PA-03")
def unknown_parameters_are_found_with_their_neighbours(subject: Subject) -> None:
    """A parameter that is spelled wrong is a finding that names the right one."""
    for row in _own_rows(subject):
        typo = f"{row.path}x"
        findings = [f for f in subject.driver.check_parameter_syntax(_with(subject, typo, 1)) if f.path == typo]
        expect(findings, f"{typo} is not found")
        shown = " ".join(f"{finding.message} {finding.hint}" for finding in findings)
        expect(row.path.rpartition(".")[2] in shown, f"the finding for {typo} does not name {row.path}: {shown}")


@check("PA-04")
def values_of_another_type_are_not_converted(subject: Subject) -> None:
    """True is not 1, "12" is not 12, and 1 is not true."""
    for row in _own_rows(subject):
        for value in _WRONG.get(row.type, ()):
            findings = subject.driver.check_parameter_syntax(_with(subject, row.path, value))
            expect(_at(findings, row.path), f"{row.path} ({row.type}) accepts {value!r}")


_STRANGE: tuple[Any, ...] = (
    {},
    {"name": None},
    {"name": "web", "params": None},
    {"name": "web", "params": {1: 2}},
    {"name": "web", "params": [1]},
    {"name": "web", "disks": "/dev/sda"},
    {"name": "web", "disks": [None, 1, {}, []]},
    {"name": "web", "nics": {"mode": "user"}},
    {"name": "web\0", "memory": float("nan"), "vcpus": -(10**30)},
    {"name": "../web", "memory": 2**80},
    {"name": "web", "consoles": [["serial"], {}, None]},
    {"name": "\udcff", "tags": ["\0"]},
    {"name": "web", "security_model": 5, "uuid": "no uuid"},
)


@check("PA-05")
def any_input_is_accepted(subject: Subject) -> None:
    """Whatever a definition is, looking at it raises nothing but errors of hvcore, and finds what is wrong."""
    values: tuple[Any, ...] = (None, object(), {}, [], "\0", -1, float("inf"), 10**400, b"x", {"a": object()})
    own = [_with(subject, row.path, value) for row in _own_rows(subject) for value in values]
    for definition in (*_STRANGE, *own):
        try:
            subject.driver.check_parameter_syntax(definition)
        except HypervisorError as error:
            expect(type(error).__name__ != "DriverFault", f"{definition!r:.200} makes the driver fail: {error}")
    for definition in _STRANGE:
        expect(not subject.driver.check_parameter_syntax(definition).ok, f"nothing is wrong with {definition!r:.200}")


@check("PA-06")
def syntax_comes_before_the_host(subject: Subject) -> None:
    """A definition with errors of syntax yields those, whatever the host would say."""
    definition = {**_MISTAKES, "disks": [{"path": subject.missing_disk().path, "format": "raw"}]}
    syntax = subject.driver.check_parameter_syntax(definition)
    expect_equal(subject.driver.validate_parameters(definition), syntax, "what validate_parameters finds")


@check("PA-07")
def a_start_refuses_what_validation_finds(subject: Subject) -> None:
    """What keeps a start from being tried is what was found beforehand."""
    definition = subject.definition(disks=[subject.missing_disk("a.raw"), subject.missing_disk("b.raw")])
    found = subject.driver.validate_parameters(definition).errors
    expect(found, "nothing is found wrong with a disk that is not there")
    error = expect_error(InvalidParameters, lambda: subject.driver.start_instance(definition), "the start")
    expect_equal(error.findings.errors, found, "what the start found")


@check("PA-08", capabilities=[Capability.PLAN])
def errors_of_syntax_refuse_start_plan_and_advice(subject: Subject) -> None:
    """Start, plan and advice refuse a definition with errors of syntax, and carry every one."""
    wanted = subject.driver.check_parameter_syntax(_MISTAKES).errors
    calls = (subject.driver.start_instance, subject.driver.plan_start, subject.driver.assess_parameters)
    for call in calls:
        error = expect_error(InvalidParameters, lambda call=call: call(_MISTAKES), call.__name__)  # type: ignore[misc]
        expect_equal(error.findings.errors, wanted, f"what {call.__name__} found")


@check("PA-09")
def advice_is_no_error(subject: Subject) -> None:
    """Nothing that assess_parameters says is an error."""
    for definition in (subject.definition(), subject.definition(vcpus=4096), subject.definition(memory=2**50)):
        if subject.driver.check_parameter_syntax(definition).ok:
            for finding in subject.driver.assess_parameters(definition):
                expect(finding.severity is not Severity.ERROR, f"advice is an error: {finding}")


@check("PA-10")
def listed_parameters_are_accepted_and_no_others(subject: Subject) -> None:
    """Each listed parameter takes its own default; one that is not listed is a finding."""
    for path, default in _defaults(subject):
        found = _at(subject.driver.check_parameter_syntax(_with(subject, path, default)), path)
        expect(not found, f"{path} does not take its default {default!r}: {found}")
    findings = subject.driver.check_parameter_syntax(_with(subject, "params.not_a_parameter", 1))
    expect(_at(findings, "params.not_a_parameter"), "a parameter that is not listed is accepted")


def _defaults(subject: Subject) -> Iterator[tuple[str, Any]]:
    for section in _own_sections(subject):
        for field in attrs.fields(section.fields):
            if field.default in (None, attrs.NOTHING) or isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
                continue
            if isinstance(field.default, str | bool | int | float):
                yield f"params.{field.name}", field.default


@check("PA-11")
def every_parameter_is_explained(subject: Subject) -> None:
    """Summary, type and the version that introduced it are there."""
    for row in parameter_rows(subject.driver.parameters()):
        expect(row.declaration.summary.strip(), f"{row.path} has no summary")
        expect(row.type.strip(), f"{row.path} has no type")
        expect(row.declaration.since.strip(), f"{row.path} does not say since when it is there")


@check("PA-12", needs=["password"])
def secrets_are_told_to_nobody(subject: Subject) -> None:
    """No finding, error, file, log, argument list and environment has a secret parameter or a console's password."""
    make, name = subject.profile.password, subject.name()
    if make is None:
        return
    made, marker = make(name, subject.directory), "Hvc0nf!3"
    rows = [row for row in _own_rows(subject) if row.declaration.secret]
    wrong = [_with(subject, row.path, value) for row in rows for value in ([marker], {marker: 1}, marker * 20000)]
    with Disclosure(subject, name, made.secret, marker) as disclosure:
        for definition in wrong:
            disclosure.note(str(list(subject.driver.check_parameter_syntax(definition))), "a finding")
            error = expect_error(InvalidParameters, lambda d=definition: subject.driver.start_instance(d), "a start")  # type: ignore[misc]
            disclosure.note(f"{error!r} {error}", "an error")
        subject.driver.start_instance(made.instance)
        disclosure.note(repr(subject.info(name)), "what is told of the instance")
    expect_equal(disclosure.found, [], "where a secret was found")
