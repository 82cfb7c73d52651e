"""Marking a class as a faulty family plugin, and trying the checks of one sentence on it, with real QEMU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeVar

import attrs

import hvcore
from hvcore.conformance import Check, ConformanceFailure, Subject
from hvcore_kvm import ConsoleType, NicMode, SecurityModel, hookimpl
from hvcore_kvm.conformance import profile
from hvcore_kvm.plugin import KvmDriver

M = TypeVar("M", bound=type)

MUTANTS: list[tuple[str, type]] = []
"""Every sentence and a plugin that breaks it."""

_GROUPS = {NicMode: "nic_modes", SecurityModel: "security_models", ConsoleType: "console_types"}
_KINDS = {NicMode: "nic-mode", SecurityModel: "security-model", ConsoleType: "console-type"}


def breaks(*requirements: str) -> Callable[[M], M]:
    """Enter a faulty plugin in the catalogue, with the sentences that its checks have to fail."""

    def enter(mutant: M) -> M:
        MUTANTS.extend((requirement, mutant) for requirement in requirements)
        return mutant

    return enter


class Plugin:
    """What the entry point refers to: offers the mutant that is tried at the moment."""

    mutant: Any = None

    @hookimpl
    def kvm_nic_modes(self) -> Iterator[NicMode]:
        yield from self._offered(NicMode)

    @hookimpl
    def kvm_security_models(self) -> Iterator[SecurityModel]:
        yield from self._offered(SecurityModel)

    @hookimpl
    def kvm_console_types(self) -> Iterator[ConsoleType]:
        yield from self._offered(ConsoleType)

    def _offered(self, kind: type) -> Iterator[Any]:
        if self.mutant is not None and self.mutant.kind is kind:
            yield kind(
                name=self.mutant.name,
                summary=self.mutant.summary,
                backend=self.mutant(),
                parameters=self.mutant.parameters,
            )


PLUGIN = Plugin()


def load(settings: Mapping[str, Any], extensions: Sequence[object] = ()) -> hvcore.Driver:
    """Load driver kvm with the plugin among the installed ones, as if it were installed too."""
    points = [point for kind in _GROUPS.values() for point in metadata.entry_points(group=f"hvcore_kvm.{kind}")]
    points.append(metadata.EntryPoint("mutant", "breaking_families:PLUGIN", "hvcore_kvm.nic_modes"))
    given = dict(settings)
    roots = {kind: given.pop(f"{kind}_directory") for kind in ("state", "data", "cache")}
    directories = hvcore.Directories(**roots).below("kvm")
    context = hvcore.DriverContext(name="kvm", directories=directories, host_id="mutant", settings=given)
    return hvcore.load_plugin(
        KvmDriver(context), context, label="kvm", extensions=extensions, points=metadata.EntryPoints(points)
    )


def failures(mutant: Any, requirement: str, cache: str) -> list[ConformanceFailure]:
    """What the checks of one sentence find wrong with a plugin, or those of all sentences when none is named."""
    suite = profile({}).families[_KINDS[mutant.kind]]
    chosen: list[Check] = [check for check in suite.checks if requirement in ("", check.requirement)]
    assert chosen, f"there is no check of {requirement} for a {suite.title}"
    PLUGIN.mutant = mutant
    found = []
    try:
        with tempfile.TemporaryDirectory(prefix="hvc-", ignore_cleanup_errors=True) as directory:
            made = attrs.evolve(suite.profile(mutant.name, {"cuts": "4"}), resources=None)
            subject = Subject(load, made, directory, cache)
            try:
                for check in chosen:
                    try:
                        check.run(subject)
                    except ConformanceFailure as failure:
                        found.append(failure)
            finally:
                _put_away(subject)
    finally:
        PLUGIN.mutant = None
    return found


def _put_away(subject: Subject) -> None:
    """Whatever a mutant leaves, its instance does not outlive the test."""
    for row in subject.driver.list_instances().instances:
        for operation in (subject.driver.stop_instance, subject.driver.cleanup_instance):
            try:
                operation(row.name, **({"force": True} if operation == subject.driver.stop_instance else {}))
            except hvcore.HypervisorError:
                continue
    subject.driver.close()
