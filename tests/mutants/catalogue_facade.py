"""Faults of what is around a driver: each mutant is the fake driver with a faulty part of hvcore in ``replaces``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from breaking import breaks

from hvcore import Deadline, Finding, FindingSet, HypervisorError, InstanceBusy, Recovery
from hvcore.audit import audit_driver
from hvcore.directories import private_directory
from hvcore.locks import instance_lock
from hvcore.operation import OperationCall
from hvcore.registry import PluginEntry, available
from hvcore_fake import FakeDriver


def first_fault(*given: Any) -> list[Finding]:
    return audit_driver(*given)[:1]


@breaks("LD-01")
class ReportsTheFirstFaultOnly(FakeDriver):
    replaces = {"hvcore.registry.audit_driver": first_fault}


def calling(plugin: Any, *given: Any) -> list[Finding]:
    plugin.hv_verify(deadline=None)
    return audit_driver(plugin, *given)


@breaks("LD-02")
class TriesHooksBeforeItLooks(FakeDriver):
    replaces = {"hvcore.registry.audit_driver": calling}


def after_all(points: Any, group: str, title: str, name: str, prefer: str | None) -> PluginEntry:
    for point in points.select(group=group):
        point.load()
    return first_named(points, group, title, name, prefer)


@breaks("LD-03")
class ImportsEveryDriver(FakeDriver):
    replaces = {"hvcore.registry._choose": after_all}


def first_named(points: Any, group: str, title: str, name: str, prefer: str | None) -> PluginEntry:
    return next(entry for entry in available(group) if entry.name == name)


@breaks("LD-04")
class TakesTheFirstOfTwo(FakeDriver):
    replaces = {"hvcore.registry._choose": first_named}


def no_extensions(*given: Any) -> tuple[list[Any], list[Finding]]:
    return [], []


@breaks("LD-06", "LD-08")
class RunsNoExtensions(FakeDriver):
    replaces = {"hvcore.registry._extensions": no_extensions}


def nameless(**given: Any) -> OperationCall:
    return OperationCall(**{**given, "instance": None})


@breaks("LD-06")
class TellsExtensionsNoInstance(FakeDriver):
    replaces = {"hvcore.passage.OperationCall": nameless}


@breaks("LD-07")
class LastExtensionIsOutermost(FakeDriver):
    replaces = {"hvcore.registry.reversed": list}


def unwrapped(self: Any, name: str, arguments: Any) -> Any:
    return getattr(self._hook, f"hv_{name}")(**arguments)


@breaks("ER-07")
class DoesNotSayWhoFailed(FakeDriver):
    replaces = {"hvcore.operation.Dispatcher.reach": unwrapped}


def nothing_required(self: Any, capability: Any, operation: str, instance: str | None) -> None:
    return None


@breaks("ER-08")
class AsksForWhatIsNotClaimed(FakeDriver):
    replaces = {"hvcore.passage.Passage._require": nothing_required}


def as_given(device: Any, **_: Any) -> Any:
    return device


@breaks("DE-08")
class ReadsNoDevices(FakeDriver):
    replaces = {"hvcore.passage.read_device": as_given}


def unstamped(self: Any, error: HypervisorError, operation: str, instance: str | None) -> HypervisorError:
    return error


@breaks("ER-02")
class DoesNotSayWhere(FakeDriver):
    replaces = {"hvcore.passage.Passage._stamp": unstamped}


def unchecked(self: Any, instance: Any) -> Any:
    return self._examined(instance)[0]


@breaks("PA-08")
class StartsWhateverItIsGiven(FakeDriver):
    replaces = {"hvcore.passage.Passage._checked": unchecked}


def both_at_once(self: Any, instance: Any, *, timeout: float | None = None) -> FindingSet:
    definition, findings = self._examined(instance)
    return findings + self._call("validate_parameters", definition.name, instance=definition, deadline=...)


@breaks("PA-06")
class AsksTheHostOfWhatIsWrong(FakeDriver):
    replaces = {"hvcore.driver.Driver.validate_parameters": both_at_once}


def nobody(fd: int) -> str:
    return "somebody"


@breaks("LK-02")
class DoesNotSayWhoHoldsIt(FakeDriver):
    replaces = {"hvcore.locks._read_holder": nobody}


@contextlib.contextmanager
def lasting(directory: str, name: str, operation: str, deadline: Deadline) -> Iterator[None]:
    path = os.path.join(private_directory(directory), f"{name}.taken")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise InstanceBusy("somebody has it") from error
    yield
    os.unlink(path)


@breaks("LK-03")
class LocksOutliveTheirHolders(FakeDriver):
    replaces = {"hvcore.passage.instance_lock": lasting}


@contextlib.contextmanager
def one_for_all(directory: str, name: str, operation: str, deadline: Deadline) -> Iterator[None]:
    with instance_lock(directory, "all", operation, Deadline.after(0.1)):
        yield


@breaks("LK-05")
class HasOneLockForAll(FakeDriver):
    replaces = {"hvcore.passage.instance_lock": one_for_all}


def until_the_first_fails(self: Any, instance: Any = None, *, timeout: float | None = None) -> Recovery:
    names = [row.name for row in self.list_instances().instances] if instance is None else [instance]
    found = [self._call("recover", name, name=name, deadline=...) for name in names]
    return Recovery(instances=tuple(row for each in found for row in each.instances))


def only_what_is_listed(self: Any, instance: Any = None, *, timeout: float | None = None) -> Recovery:
    names = [row.name for row in self.list_instances().instances] if instance is None else [instance]
    found = [self._named("recover", name, timeout) for name in names]
    return Recovery(instances=tuple(row for each in found for row in each.instances))


@breaks("LC-32")
class RecoversOnlyWhatIsListed(FakeDriver):
    replaces = {"hvcore.driver.Driver.recover": only_what_is_listed}


@breaks("LC-31")
class RecoversUntilTheFirstFails(FakeDriver):
    replaces = {"hvcore.driver.Driver.recover": until_the_first_fails}
