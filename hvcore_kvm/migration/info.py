"""What the source tells the destination: decisions as plain data, with a version; hostile until it has been checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import attrs

from hvcore import Finding, Instance, MigrationInfo, checks, param, read_definition, structure
from hvcore_kvm.migration.disk_places import SentImage
from hvcore_kvm.migration.processor import Processor
from hvcore_kvm.runtime import Placement

SCHEMA = 1
"""Version of the format of `Moving`."""

RUN_STATES = ("running", "paused", "prelaunch")
"""QEMU's run states in which a guest can be moved."""

_PLACE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}/[0-9]{1,5}")
_RECORD = "record"


def _is_place(value: str) -> str | None:
    return None if _PLACE.fullmatch(value) else f"{value[:40]!r} is no place of a device"


@attrs.frozen(kw_only=True)
class Plugged:
    """A virtual CPU that was added while the guest ran."""

    number: int = param(checks=(checks.between(0, 4096),), summary="Its number, from which its device's id is made.")
    props: Mapping[str, Any] = param(summary="Where it sits, in QEMU's words.")


@attrs.frozen(kw_only=True)
class Moving:
    """The record of an instance that moves."""

    instance: Mapping[str, Any] = param(summary="The definition, with every identity.")
    machine: str = param(checks=(checks.no_control_characters,), summary="Versioned machine type.")
    accelerator: str = param(choices=("kvm", "tcg"), summary="What runs the guest's code.")
    cpu_model: str = param(checks=(checks.no_control_characters,), summary="CPU model.")
    qemu_version: str = param(checks=(checks.no_control_characters,), summary="Version of the source's QEMU.")
    ports: int = param(checks=(checks.between(0, 256),), summary="PCI Express root ports.")
    addresses: Mapping[str, str] = param(summary="Place of each device.")
    run_state: str = param(choices=RUN_STATES, summary="What the guest was doing.")
    plugged: tuple[Plugged, ...] = param(default=(), summary="Virtual CPUs that it was not started with.")
    expanded: bool = param(default=False, summary="The source's QEMU has said what the processor is.")
    vendor: str = param(default="", checks=(checks.no_control_characters,), summary="Maker of the processor.")
    images: tuple[SentImage, ...] = param(default=(), summary="What its disks are, should they be copied.")
    features: tuple[str, ...] = param(
        default=(), item_checks=(checks.no_control_characters,), summary="Features of the processor."
    )

    @property
    def processor(self) -> Processor | None:
        """The guest's processor, if the source's QEMU could say."""
        return Processor(vendor=self.vendor, features=self.features) if self.expanded else None

    @property
    def placement(self) -> Placement:
        """Where the devices sit."""
        return Placement(machine=self.machine, addresses=self.addresses)

    @property
    def runs(self) -> bool:
        """The guest is to run where it arrives."""
        return self.run_state == "running"


def read_info(info: MigrationInfo, driver: str) -> tuple[Moving, Instance, list[Finding]]:
    """Structure and check what a source has sent.

    Args:
        info: from the source.
        driver: name of this driver.

    Returns:
        The record, the definition in it, and everything wrong; with findings neither must be used.
    """
    findings = []
    known = type(info.schema) is int and info.schema == SCHEMA
    if not known:
        message = f"has version {str(info.schema)[:20]}, this driver reads {SCHEMA}"
        findings.append(Finding(code="unknown-schema", path="schema", message=message))
    if info.driver != driver:
        message = f"comes from driver {str(info.driver)[:40]!r}, this is {driver}"
        findings.append(Finding(code="other-driver", path="driver", message=message))
    if not _all_text(info.capabilities):
        findings.append(Finding(code="wrong-type", path="capabilities", message="expected a list of words"))
    record = info.record
    moving, problems = structure(Moving, record, _RECORD)
    instance, more = read_definition(moving.instance)
    if known:
        findings += [*problems, *(finding.below(f"{_RECORD}.instance") for finding in more)]
    if not findings:
        findings += _whole(info, moving, instance)
    return moving, instance, findings


def _all_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 1000 and all(type(item) is str for item in value)


def _whole(info: MigrationInfo, moving: Moving, instance: Instance) -> list[Finding]:
    where = f"{_RECORD}.instance"
    findings = []
    if instance.name != info.instance:
        message = f"is {instance.name!r}, and the instance is {info.instance!r}"
        findings.append(Finding(code="contradiction", path=f"{where}.name", message=message))
    # What is missing would be derived from this host, and the guest would see another one.
    missing = [f"{where}.uuid"] if instance.uuid is None else []
    missing += [f"{where}.disks[{index}].uuid" for index, disk in enumerate(instance.disks) if disk.uuid is None]
    missing += [f"{where}.nics[{index}].uuid" for index, nic in enumerate(instance.nics) if nic.uuid is None]
    missing += [f"{where}.nics[{index}].mac" for index, nic in enumerate(instance.nics) if nic.mac is None]
    findings += [Finding(code="missing-parameter", path=path, message="is required") for path in missing]
    if len(moving.plugged) >= instance.vcpus:
        message = (
            f"are {len(moving.plugged)} of the {instance.vcpus} virtual CPUs, and one at least was there from the start"
        )
        findings.append(Finding(code="contradiction", path=f"{_RECORD}.plugged", message=message))
    for key, place in moving.addresses.items():
        problem = _is_place(place) if key.isprintable() else "belongs to a device whose name cannot be printed"
        if problem:
            findings.append(Finding(code="invalid-value", path=f"{_RECORD}.addresses", message=problem))
            break
    return findings


def plain_definition(value: Any) -> Any:
    """A definition as plain data, as an instance file would hold it."""
    if attrs.has(type(value)):
        return {f.name: plain_definition(getattr(value, f.name)) for f in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain_definition(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_definition(item) for item in value]
    # Sizes and durations are numbers with a type of their own.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def run_state_of(word: str) -> Literal["running", "paused", "prelaunch"] | None:
    """A run state in which a guest can be moved; ``None`` for others."""
    return cast('Literal["running", "paused", "prelaunch"]', word) if word in RUN_STATES else None
