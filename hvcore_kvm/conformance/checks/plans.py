"""Checking and planning touch nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvcore import with_identities
from hvcore.conformance import (
    CHANGES,
    LOOKS,
    PROCESSES,
    SOCKETS,
    Subject,
    actions,
    check,
    expect,
    expect_equal,
)
from hvcore_kvm.conformance.member import Member, families_of
from hvcore_kvm.conformance.traces import Traces, confirmed
from hvcore_kvm.definition import Definition, read
from hvcore_kvm.families import ConsoleContext
from hvcore_kvm.release import connection_of

_DOINGS = CHANGES | PROCESSES | SOCKETS | {"open-write"}
_NOWHERE = "open-write /dev/null"
"""What a program gets for its input and output that is to have none."""


def _parsed(subject: Subject) -> Definition:
    definition = with_identities(subject.definition(), "conformance")
    parsed, findings = read(definition, families_of(subject.driver))
    expect(not findings, f"the definition has errors: {findings}")
    return parsed


@check("FA-04", starts=False)
def its_check_touches_nothing(subject: Subject) -> None:
    """A definition with the plugin is checked without a file, a process or a socket."""
    definition = subject.definition()
    expect_equal(_done(_DOINGS, lambda: subject.load().check_parameter_syntax(definition)), [], "what check did first")
    # What is imported at first has been looked for and read now.
    fresh = subject.load()
    touched = actions(_DOINGS | LOOKS | {"open-read"}, lambda: fresh.check_parameter_syntax(definition))
    expect_equal(touched, [], "what check touched")


@check("FA-05", starts=False)
def its_host_check_changes_nothing(subject: Subject) -> None:
    """Looking at the host changes no file, and leaves no process and no network interface."""
    parsed = _parsed(subject)
    member: Member = subject.profile.member

    def look() -> None:
        if member.kind == "nic-mode":
            for nic in parsed.nics:
                list(nic.mode.backend.check_host(nic.nic, nic.mode_parameters))
        elif member.kind == "security-model" and parsed.security_model is not None:
            list(parsed.security_model.backend.check_host(parsed.instance, parsed.security_parameters))
        elif member.kind == "console-type":
            for console, parameters in parsed.consoles:
                list(console.backend.check_host(parsed.instance, parameters))

    def attempt() -> list[str]:
        with Traces(subject.directory) as traces:
            with traces.noting():
                done = _done(CHANGES | {"open-write"}, look)
            return done + traces.left()

    expect_equal(confirmed(attempt), [], "what check_host changed")


@check("FA-06")
def its_plan_touches_nothing(subject: Subject) -> None:
    """Planning creates nothing, opens nothing for writing, starts and connects to nothing."""
    plan = _planning(subject, _parsed(subject))

    def attempt() -> list[str]:
        with Traces(subject.directory) as traces:
            with traces.noting():
                done = _done(_DOINGS, plan)
            return done + traces.left()

    expect_equal(confirmed(attempt), [], "what plan did")


def _done(wanted: frozenset[str], call: Callable[[], object]) -> list[str]:
    return [each for each in actions(wanted, call) if each != _NOWHERE]


def _planning(subject: Subject, parsed: Definition) -> Callable[[], None]:
    """Lets the plugin plan, and nothing else; what it asks for is given to it as the driver would."""
    member: Member = subject.profile.member

    def plan() -> None:
        if member.kind == "nic-mode":
            for nic in parsed.nics:
                connection_of(parsed, nic)
        elif member.kind == "security-model" and parsed.security_model is not None:
            parsed.security_model.backend.plan(parsed.instance, parsed.security_parameters)
        elif member.kind == "console-type":
            for console, parameters in parsed.consoles:
                console.backend.plan(_context(subject, parsed, parameters))

    return plan


def _context(subject: Subject, parsed: Definition, parameters: Any) -> ConsoleContext:
    return ConsoleContext(
        instance=parsed.instance,
        parameters=parameters,
        family="pc",
        directory=subject.directory,
        listen=lambda _: 10,
        fd=lambda _: 11,
        secret=lambda *_: None,
        virtio_serial=lambda: "virtio-serial0.0",
        reads=lambda _: None,
        log=lambda *_: "/dev/fdset/1",
    )


@check("FA-07")
def its_plan_is_the_same(subject: Subject) -> None:
    """The same definition gives the same plan, again and to another host application."""
    definition = subject.definition()
    first = subject.driver.plan_start(definition)
    expect_equal(subject.driver.plan_start(definition), first, "the second plan")
    expect_equal(subject.load().plan_start(definition), first, "the plan of another host application")
