"""How drivers are loaded and called, with made-up ones that are installed for the length of a check."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from hvcore import registry
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.installation import Installation
from hvcore.conformance.made_up import MadeUpDriver
from hvcore.conformance.subject import Subject
from hvcore.errors import DriverFault, LoadError
from hvcore.hookspecs.markers import hookimpl

_SOUND = """
    from hvcore.conformance.made_up import MadeUpDriver

    make = MadeUpDriver
"""

_FAULTY = """
    from hvcore import Family, hookimpl
    from hvcore.conformance.made_up import MadeUpDriver

    class make(MadeUpDriver):
        families = (Family(group="hvcore_conformance.parts", title="part"),)

        @hookimpl
        def hv_strat_instance(self, instance, deadline):
            self.called.append("hv_strat_instance")

        @hookimpl
        def hv_cleanup_instance(self, nmae, deadline):
            self.called.append("hv_cleanup_instance")
"""

_BROKEN = "raise RuntimeError('it was not meant to be')\n"

_RAISING = """
    from hvcore import hookimpl
    from hvcore.conformance.made_up import MadeUpDriver

    class make(MadeUpDriver):
        @hookimpl
        def hv_list_instances(self, deadline):
            raise ZeroDivisionError("the stock of zeros")
"""


class _Mistaken:
    """An extension with an argument that the hook has not got."""

    @hookimpl(wrapper=True)
    def hv_operation(self, cal: object):  # type: ignore[no-untyped-def]
        """Never called."""
        return (yield cal)


@contextlib.contextmanager
def _installed(subject: Subject, *drivers: tuple[str, str, str]) -> Iterator[tuple[Installation, dict[str, Any]]]:
    """Install drivers, each a distribution, a name and a source; yields that and settings to load one with."""
    roots = {
        f"{kind}_directory": os.path.join(subject.directory, "made-up", kind) for kind in ("state", "data", "cache")
    }
    with Installation(os.path.join(subject.directory, "site")) as installation:
        for distribution, name, source in drivers:
            module = distribution.replace("-", "_")
            installation.offer(distribution, module, source, registry.DRIVER_GROUP, name, "make")
        yield installation, roots


@check("LD-01", starts=False)
def every_fault_is_reported_at_once(subject: Subject) -> None:
    """Those of the driver, of a plugin of its family and of an extension, with plugin, distribution and hook."""
    with _installed(subject, ("conformance-faulty", "faulty", _FAULTY)) as (installation, roots):
        part = ("conformance_part", _BROKEN, "hvcore_conformance.parts", "wheel", "make")
        installation.offer("conformance-part", *part)
        error = expect_error(
            LoadError,
            lambda: registry.load_driver("faulty", roots, extensions=[_Mistaken()]),
            "loading a faulty driver with a broken part and a mistaken extension",
        )
    said = [str(finding) for finding in error.findings]
    wanted = (
        ("faulty", "conformance-faulty", "hv_strat_instance"),
        ("faulty", "conformance-faulty", "hv_cleanup_instance"),
        ("wheel", "conformance-part"),
        ("_Mistaken", "hv_operation"),
    )
    for words in wanted:
        found = any(all(word in text for word in words) for text in said)
        expect(found, f"no finding names {' and '.join(words)}: {said}")


@check("LD-02", starts=False)
def hooks_of_what_has_faults_are_not_called(subject: Subject) -> None:
    """But for the one that says who it is."""
    MadeUpDriver.called.clear()
    with _installed(subject, ("conformance-faulty", "faulty", _FAULTY)) as (_, roots):
        expect_error(LoadError, lambda: registry.load_driver("faulty", roots), "loading a faulty driver")
    expect_equal(set(MadeUpDriver.called) - {"hv_describe_driver"}, set(), "the hooks that were called")


@check("LD-03", starts=False)
def a_broken_plugin_breaks_only_itself(subject: Subject) -> None:
    """Beside a driver that cannot be imported, another one and the driver that is tested load."""
    broken, sound = ("conformance-broken", "broken", _BROKEN), ("conformance-sound", "sound", _SOUND)
    with _installed(subject, broken, sound) as (_, roots):
        error = expect_error(LoadError, lambda: registry.load_driver("broken", roots), "loading a broken driver")
        expect("conformance-broken" in str(error), f"the error does not name the distribution: {error}")
        try:
            registry.load_driver("sound", roots).close()
        except LoadError as other:
            expect(False, f"a sound driver does not load beside a broken one: {other}")
        subject.load().list_instances()


@check("LD-04", starts=False)
def of_two_with_one_name_none_is_taken(subject: Subject) -> None:
    """The error names both distributions; the settings can prefer one."""
    twins = [(f"conformance-{which}", "twin", _SOUND) for which in ("first", "second")]
    with _installed(subject, *twins) as (_, roots):
        error = expect_error(LoadError, lambda: registry.load_driver("twin", roots), "loading one of two")
        for distribution, _, _ in twins:
            expect(distribution in str(error), f"the error does not name {distribution}: {error}")
            registry.load_driver("twin", {**roots, "prefer": distribution}).close()


@check("ER-07", starts=False)
def a_foreign_exception_is_a_fault_of_the_driver(subject: Subject) -> None:
    """It reaches the caller as a typed error that names the plugin and its distribution, and has it as its cause."""
    with _installed(subject, ("conformance-raising", "raising", _RAISING)) as (_, roots):
        driver = registry.load_driver("raising", roots)
        error = expect_error(DriverFault, driver.list_instances, "an operation in which the driver fails")
        driver.close()
    for words in ("raising", "conformance-raising", "ZeroDivisionError", "the stock of zeros"):
        expect(words in str(error), f"the error does not say {words}: {error}")
    expect(isinstance(error.__cause__, ZeroDivisionError), f"the cause of the error is {error.__cause__!r}")
