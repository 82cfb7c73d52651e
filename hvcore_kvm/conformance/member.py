"""One family plugin under test: found by its entry point, and put into every definition of the run."""

from __future__ import annotations

import os
import tomllib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hvcore import (
    ConformanceProfile,
    Driver,
    Finding,
    FindingSet,
    HypervisorError,
    Instance,
    InvalidParameters,
    LoadError,
    Nic,
)
from hvcore.conformance import Check, FamilySuite
from hvcore_kvm.families import ConsoleType, Families, NicMode, SecurityModel, unknown_member

_OF_NIC = ("link", "ip")
_OF_RUN = ("accel", "security_model", "cuts")
_SPACE = uuid.UUID("0b0e6a52-3d5f-4c55-8f55-3f0d6b0f3a9e")


@attrs.frozen(kw_only=True)
class Member:
    """The plugin that is tested.

    Attributes:
        kind: ``nic-mode``, ``security-model`` or ``console-type``.
        title: what it is called.
        name: what users write.
        given: its parameters.
        of_nic: fields of the NIC, for a NIC mode.
        cuts: at how many points of a start a host application is killed, spread over all there are.
    """

    kind: str
    title: str
    name: str
    given: Mapping[str, Any]
    of_nic: Mapping[str, Any]
    cuts: int = 8

    def nic(self, instance: str, directory: str, others: Mapping[str, Any] | None = None) -> Nic:
        """A NIC of the mode; its identity is one that no other run has, and so is what is named after it."""
        given = {**self.given, **(others or {})}
        fields = {**self.of_nic, **{key: given.pop(key) for key in _OF_NIC if key in given}}
        ident = str(uuid.uuid5(_SPACE, f"{directory}/{instance}"))
        return Nic(mode=self.name, uuid=ident, params=given, **fields)

    def put_into(self, instance: Instance, directory: str, others: Mapping[str, Any] | None = None) -> Instance:
        """The definition with the plugin in it, with its parameters, and others in their place."""
        if self.kind == "nic-mode":
            return attrs.evolve(instance, nics=(self.nic(instance.name, directory, others),))
        own = {**self.given, **(others or {})}
        given = {**instance.params, self.name: own} if own else instance.params
        if self.kind == "security-model":
            return attrs.evolve(instance, security_model=self.name, params=given)
        return attrs.evolve(instance, consoles=(self.name,), params=given)

    def where(self, key: str) -> str:
        """Path of one of its parameters in findings."""
        return f"nics[0].params.{key}" if self.kind == "nic-mode" else f"params.{self.name}.{key}"

    def record(self, driver: Driver) -> Any:
        """The record, as the driver has it.

        Raises:
            LoadError: there is none of the name.
        """
        found: Mapping[str, Any] = getattr(families_of(driver), f"{self.kind.replace('-', '_')}s")
        if self.name not in found:
            finding = unknown_member(self.title, self.name, found, self.name)
            raise LoadError(f"there is no {self.title} to test", FindingSet([finding]))
        return found[self.name]


def families_of(driver: Driver) -> Families:
    """The family plugins of a loaded driver."""
    plugin: Any = driver._plugin
    found: Families = plugin.family_plugins
    return found


def suites(
    base: Callable[[str], ConformanceProfile], checks: Mapping[str, tuple[Check, ...]]
) -> dict[str, FamilySuite]:
    """The suite of each family.

    Args:
        base: makes the profile of the driver for an accelerator.
        checks: the checks, by name of the record.
    """
    kinds = {"nic-mode": NicMode, "security-model": SecurityModel, "console-type": ConsoleType}
    titles = {"nic-mode": "NIC mode", "security-model": "security model", "console-type": "console type"}
    return {
        kind: FamilySuite(
            title=titles[kind],
            record=record.__name__,
            checks=checks[record.__name__],
            profile=lambda name, options, kind=kind: _profile(base, kind, titles[kind], name, options),  # type: ignore[misc]
        )
        for kind, record in kinds.items()
    }


def _profile(
    base: Callable[[str], ConformanceProfile], kind: str, title: str, name: str, options: Mapping[str, str]
) -> ConformanceProfile:
    given = {key: _value(text) for key, text in options.items() if key not in _OF_RUN}
    # Fields of a NIC are text, whatever they look like.
    of_nic = {key: options[key] for key in _OF_NIC if kind == "nic-mode" and key in options}
    params = {key: value for key, value in given.items() if key not in of_nic}
    cuts = _cuts(options.get("cuts", "8"))
    member = Member(kind=kind, title=title, name=name, given=params, of_nic=of_nic, cuts=cuts)
    profile = base(options.get("accel", "tcg"))

    def with_member(make: Callable[[str, str], Instance]) -> Callable[[str, str], Instance]:
        def definition(name: str, directory: str) -> Instance:
            bare = attrs.evolve(make(name, directory), security_model=options.get("security_model"))
            made = member.put_into(bare, directory)
            if os.geteuid() == 0:
                # Another user has to get to the guest's firmware; the driver's own directories below stay private.
                os.chmod(directory, 0o711)  # noqa: S103 - it is entered, not listed
            return made

        return definition

    definition = with_member(profile.definition)
    return attrs.evolve(
        profile,
        definition=definition,
        unstartable=None if profile.unstartable is None else with_member(profile.unstartable),
        member=member,
        families={},
        probe=lambda driver: _obstacle(driver, member, definition),
    )


def _cuts(text: str) -> int:
    """The option ``cuts``.

    Raises:
        ValueError: it is no number of them.
    """
    if not text.isascii() or not text.isdigit() or not 2 <= int(text[:6]) <= 10_000:
        raise ValueError(f"cuts={text[:20]} is no number from 2 to 10000")
    return int(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _obstacle(driver: Driver, member: Member, make: Callable[[str, str], Instance]) -> str:
    """Why an instance with the plugin cannot be run here; a definition that is wrong is an error."""
    import tempfile

    member.record(driver)
    with tempfile.TemporaryDirectory(prefix="hvc-") as directory:
        definition = make("conformance", directory)
        findings = driver.check_parameter_syntax(definition)
        if not findings.ok:
            raise InvalidParameters(
                f"{member.title} {member.name} needs other options: give them with --option KEY=VALUE", findings.errors
            )
        try:
            findings = driver.validate_parameters(definition)
        except HypervisorError:
            return ""  # a fault of the plugin, which the checks are to find
    return "; ".join(_said(finding) for finding in findings.errors)


def _said(finding: Finding) -> str:
    return f"{finding.path}: {finding.message}" if finding.path else finding.message
