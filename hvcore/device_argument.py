"""From the device that a host application gives to a hotplug operation to one whose fields are what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from hvcore.definition import field_findings
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.devices import Device, LiveParameters, Medium, Processors
from hvcore.model.instance import Disk, Nic
from hvcore.params.checks import absolute_path, no_control_characters


def read_device(device: object, *, named: bool = False, complete: bool = True) -> Device:
    """Check the fields of a device as those of a definition are; what a driver thinks of it is another matter.

    Args:
        device: what was given; anything.
        named: it is there already, so a disk or NIC has to say by its uuid which one it is.
        complete: it is all of the device, and not only which one it is.

    Raises:
        InvalidParameters: everything that is wrong with it.
    """
    read: Any = device
    findings: list[Finding]
    if isinstance(device, Disk | Nic):
        read, findings = field_findings(device, "device", complete=complete)
        if named and not findings and not read.uuid:
            message = "is required: it says which device is meant"
            findings.append(Finding(code="missing-parameter", path="device.uuid", message=message))
    elif isinstance(device, Medium):
        findings = list(_of_medium(device))
    elif isinstance(device, Processors):
        findings = list(_of_processors(device))
    elif isinstance(device, LiveParameters):
        findings = []  # they are the driver's, and so is what they are called
    else:
        findings = [_wrong("device", f"is no device but {type(device).__name__}")]
    if findings:
        raise InvalidParameters("the description of the device has errors", FindingSet(findings))
    known: Device = read
    if isinstance(known, Disk | Nic) and known.uuid:
        known = attrs.evolve(known, uuid=known.uuid.lower())
    return known


def check_device_uuid(uuid: object) -> None:
    """Refuse an argument that cannot say which device is meant.

    Raises:
        InvalidParameters: it is none.
    """
    if type(uuid) is not str:
        finding = _wrong("device", f"is not the uuid of a device but {type(uuid).__name__}")
        raise InvalidParameters("an argument is not valid", FindingSet([finding]))


def _of_medium(medium: Medium) -> Iterator[Finding]:
    yield from _of_text("device.drive", medium.drive)
    for name, check in (("path", absolute_path), ("url", no_control_characters)):
        value = getattr(medium, name)
        if value is not None:
            yield from _of_text(f"device.{name}", value, check)
    if medium.path is not None and medium.url is not None:
        yield Finding(code="contradiction", path="device.url", message="a drive has one of path and url")
    force: Any = medium.force
    if type(force) is not bool:
        yield _wrong("device.force", f"is not true or false but {type(force).__name__}")


def _of_processors(processors: Processors) -> Iterator[Finding]:
    count: Any = processors.count
    if type(count) is not int:
        yield _wrong("device.count", f"is not a whole number but {type(count).__name__}")


def _of_text(path: str, value: object, check: Any = no_control_characters) -> Iterator[Finding]:
    problem = check(value) if type(value) is str else f"is not text but {type(value).__name__}"
    if problem:
        yield Finding(code="invalid-value", path=path, message=problem)


def _wrong(path: str, message: str) -> Finding:
    return Finding(code="wrong-type", path=path, message=message)
