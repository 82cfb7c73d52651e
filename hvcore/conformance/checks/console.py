"""Consoles."""

from __future__ import annotations

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import InvalidParameters

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
