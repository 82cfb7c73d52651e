"""Consoles."""

from __future__ import annotations

import contextlib

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.disclosure import Disclosure
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import InvalidParameters
from hvcore.model.state import InstanceState

_WILDCARDS = ("0.0.0.0", "::", "", "*")  # noqa: S104 - nothing is bound to them


@check("CO-01", capabilities=[Capability.CONSOLE])
def the_address_is_not_a_wildcard(subject: Subject) -> None:
    """A client is told the address it can connect to."""
    name = subject.start()
    console = subject.driver.get_instance_console(name)
    expect_equal(console.instance, name, "the instance of the console")
    expect(console.address not in _WILDCARDS, f"the address is {console.address!r}")
    reachable = console.socket_path or console.address or console.command or console.message
    expect(reachable, "nothing says how to reach the console")


@check("CO-02", capabilities=[Capability.CONSOLE])
def a_console_it_does_not_offer_is_refused(subject: Subject) -> None:
    """A console type the instance does not offer is refused."""
    name = subject.start()
    expect_error(
        InvalidParameters,
        lambda: subject.driver.get_instance_console(name, "no-such-console"),
        "a console it does not offer",
    )


@check("CO-03", capabilities=[Capability.CONSOLE_PASSWORD], needs=["password"])
def a_password_is_told_to_nobody(subject: Subject) -> None:
    """Neither one that is set nor one that is refused is in a file, a log, an error or what the process was given."""
    make, name = subject.profile.password, subject.name()
    if make is None:
        return
    made = make(name, subject.directory)
    subject.driver.start_instance(made.instance)
    words = ("Hvc0nf!1", "Hvc0nf!2")
    with Disclosure(subject, name, *words) as disclosure:
        result = subject.driver.set_console_password(name, made.kind, words[0], expires=3600.0)
        expect(result.expires is not None, "the result does not say when the password expires")
        disclosure.note(repr(result))
        error = expect_error(
            InvalidParameters,
            lambda: subject.driver.set_console_password(name, "no-such-console", words[1]),
            "the password of a console it does not offer",
        )
        disclosure.note(f"{error!r} {error} {error.__dict__}")
    expect_equal(disclosure.found, [], "where a password was found")


@check("CO-04", capabilities=[Capability.CONSOLE_DISCONNECT], needs=["attach"])
def whoever_is_attached_has_to_go(subject: Subject) -> None:
    """The client that is attached is made to go, the one in line is attached then, and the instance runs on."""
    attach, name = subject.profile.attach, subject.start(ready=True)
    if attach is None:
        return
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(attach(subject.driver, name)))
        expect(first.wait_attached(), "the first client does not get through")
        second = stack.enter_context(contextlib.closing(attach(subject.driver, name)))
        pid = subject.info(name).pid
        console = subject.driver.disconnect_console(name)
        expect_equal(console.instance, name, "the instance of the console")
        expect(second.wait_attached(), "the client in line does not get through")
        expect(first.wait_detached(), "the first client is still attached")
    info = subject.info(name)
    expect_equal((info.state, info.pid), (InstanceState.RUNNING, pid), "state and process afterwards")
