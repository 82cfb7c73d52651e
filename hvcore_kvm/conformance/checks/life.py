"""What an instance with the plugin leaves on the host: after a stop, after a failure, after a kill."""

from __future__ import annotations

import functools

from hvcore import HypervisorError, Instance, InstanceState, with_identities
from hvcore.conformance import (
    ConformanceFailure,
    Subject,
    check,
    count_cuts,
    expect,
    expect_equal,
    expect_error,
    kill_at,
    spread,
)
from hvcore_kvm.conformance.member import Member, families_of
from hvcore_kvm.conformance.traces import Traces, confirmed
from hvcore_kvm.definition import read
from hvcore_kvm.release import connection_of


@check("FA-08")
def a_stop_leaves_nothing(subject: Subject) -> None:
    """It starts and runs; stopped, it has left no process, interface or file."""
    _warm_up(subject)

    def attempt() -> list[str]:
        with Traces(subject.directory) as traces:
            with traces.noting():
                name = subject.start()
            expect_equal(subject.state(name), InstanceState.RUNNING, "the state after the start")
            expect(subject.lives(name), "no process of the instance lives")
            _put_away(subject, name)
            return [*traces.left(), *subject.files_about(name)]

    expect_equal(confirmed(attempt), [], "what is left after the stop")


@check("FA-08")
def it_can_be_started_again(subject: Subject) -> None:
    """After a stop the same definition starts once more, also in another host application."""
    definition = subject.definition()
    for driver in (subject.driver, subject.load()):
        driver.start_instance(definition)
        driver.stop_instance(definition.name, force=True)


@check("FA-09", needs=["unstartable"])
def a_failed_start_leaves_nothing(subject: Subject) -> None:
    """QEMU ends at once, after the steps of the plugin: they are taken back."""
    make = subject.profile.unstartable
    if make is None:
        raise ConformanceFailure("the profile has nothing that fails to start")
    _warm_up(subject)

    def attempt() -> list[str]:
        definition = make(subject.name(), subject.directory)
        with Traces(subject.directory) as traces:
            with traces.noting():
                expect_error(HypervisorError, lambda: subject.driver.start_instance(definition), "the start")
            return [*traces.left(), *subject.files_about(definition.name)]

    expect_equal(confirmed(attempt), [], "what is left of the failed start")


@check("FA-10")
def a_killed_start_is_put_in_order(subject: Subject) -> None:
    """A host application is killed at any action of a start: recover and a stop leave nothing."""
    member: Member = subject.profile.member
    # Used by forks of this process alone: to each of them it is as fresh as to the first.
    killed, fresh = subject.load(), subject.load()
    _warm_up(subject)
    with Traces(subject.directory) as traces:
        definition = _prepared(subject, traces)
        cuts = count_cuts(lambda: killed.start_instance(definition))
        _put_away(subject, definition.name)

        def attempt(cut: int) -> list[str]:
            nonlocal definition
            with traces.noting():
                kill_at(lambda: killed.start_instance(definition), cut)
            fresh.recover(definition.name)
            _put_away(subject, definition.name)
            found = [*traces.left(), *subject.files_about(definition.name)]
            found += ["the process of the instance"] if subject.lives(definition.name) else []
            if found:
                definition = _prepared(subject, traces)
            return found

        for cut in spread(cuts, member.cuts):
            left = confirmed(functools.partial(attempt, cut))
            expect(not left, f"killed at action {cut}, there is left: {', '.join(left)}")


def _warm_up(subject: Subject) -> None:
    """What all instances share is there after the first."""
    subject.driver.stop_instance(subject.start(), force=True)


def _prepared(subject: Subject, traces: Traces) -> Instance:
    """A definition of which is known which files its start makes: those that a fork makes are not seen."""
    definition = subject.definition()
    with traces.noting():
        subject.driver.start_instance(definition)
    _put_away(subject, definition.name)
    return definition


def _put_away(subject: Subject, name: str) -> None:
    subject.driver.stop_instance(name, force=True)
    subject.driver.cleanup_instance(name)


@check("FA-11")
def taking_back_may_be_repeated(subject: Subject) -> None:
    """What takes steps back is done again, and again, with nothing left to take back."""
    definition = with_identities(subject.definition(), "conformance")
    subject.driver.start_instance(definition)
    subject.driver.stop_instance(definition.name, force=True)
    parsed, findings = read(definition, families_of(subject.driver))
    expect(not findings, f"the definition has errors: {findings}")
    for turn in ("second", "third"):
        try:
            for nic in parsed.nics:
                for step in connection_of(parsed, nic).down:
                    step.do()
            if parsed.security_model is not None:
                planned = parsed.security_model.backend.plan(parsed.instance, parsed.security_parameters)
                for step in reversed(planned.steps):
                    if step.undo is not None:
                        step.undo()
        except (HypervisorError, OSError) as error:
            raise ConformanceFailure(f"taking {step.name!r} back for the {turn} time: {error}") from error
