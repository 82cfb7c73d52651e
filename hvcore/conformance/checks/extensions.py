"""Loading, extensions and closing."""

from __future__ import annotations

from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import Subject
from hvcore.errors import HypervisorError, InstanceNotFound, LoadError, PolicyDenied
from hvcore.hookspecs.markers import hookimpl
from hvcore.operation import OperationCall


class _Noting:
    """An extension that writes down what passes."""

    def __init__(self, notes: list[tuple[str, ...]], label: str = "") -> None:
        self._notes = notes
        self._label = label

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall):  # type: ignore[no-untyped-def]
        """Write down the call and what came of it."""
        self._notes.append((self._label, call.name, call.instance or ""))
        try:
            result = yield
        except HypervisorError as error:
            self._notes.append((self._label, call.name, type(error).__name__))
            raise
        self._notes.append((self._label, call.name, type(result).__name__))
        return result


class _Denying:
    """An extension that allows nothing that changes an instance."""

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall):  # type: ignore[no-untyped-def]
        """Refuse before anything is touched."""
        if call.name in ("start_instance", "stop_instance"):
            raise PolicyDenied("not here")
        return (yield)


@check("LD-05")
def wrong_settings_are_refused(subject: Subject) -> None:
    """Settings that the driver does not know are refused, with every one of them."""
    error = expect_error(LoadError, lambda: subject.load(no_such_setting=1, nor_this_one=2), "loading it")
    paths = " ".join(f"{finding.path} {finding.message}" for finding in error.findings)
    for name in ("no_such_setting", "nor_this_one"):
        expect(name in paths, f"the setting {name} is not found: {paths}")


@check("LD-06")
def an_extension_sees_every_operation(subject: Subject) -> None:
    """An extension sees name, instance and result, and the error where there is one."""
    notes: list[tuple[str, ...]] = []
    driver, name = subject.load(_Noting(notes)), subject.name()
    driver.list_instances()
    expect_error(InstanceNotFound, lambda: driver.get_instance_info(name), "information on an unknown name")
    wanted = [
        ("", "list_instances", ""),
        ("", "list_instances", "InstanceListing"),
        ("", "get_instance_info", name),
        ("", "get_instance_info", "InstanceNotFound"),
    ]
    expect_equal(notes, wanted, "what the extension saw")


@check("LD-07")
def the_first_extension_is_outermost(subject: Subject) -> None:
    """Extensions see an operation in the host's order, and its result in the other."""
    notes: list[tuple[str, ...]] = []
    subject.load(_Noting(notes, "first"), _Noting(notes, "second")).list_instances()
    expect_equal([note[0] for note in notes], ["first", "second", "second", "first"], "the order")


@check("LD-08")
def an_extension_can_refuse(subject: Subject) -> None:
    """What an extension refuses is not begun."""
    definition = subject.definition()
    strict = subject.load(_Denying())
    expect_error(PolicyDenied, lambda: strict.start_instance(definition), "a start that an extension refuses")
    expect(not subject.lives(definition.name), "a process of it lives")
    expect_equal(subject.files_about(definition.name), (), "what is left of the refused start")
    subject.driver.start_instance(definition)
    expect_error(PolicyDenied, lambda: strict.stop_instance(definition.name), "a stop that an extension refuses")
    expect(subject.lives(definition.name), "its process is gone after the refused stop")


@check("LD-09")
def closing_lets_instances_run_on(subject: Subject) -> None:
    """A closed driver refuses every operation, and what it started runs on."""
    driver, definition = subject.load(), subject.definition()
    driver.start_instance(definition)
    driver.close()
    expect_error(HypervisorError, driver.list_instances, "a list by a closed driver")
    expect_error(HypervisorError, lambda: driver.stop_instance(definition.name), "a stop by a closed driver")
    expect(subject.lives(definition.name), "its process is gone after the driver was closed")
