"""From what a host application or an instance file gives to an `Instance`, with every problem of the model's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore.findings import Finding
from hvcore.model.instance import Disk, Instance, Nic
from hvcore.params.structure import structure

DefinitionLike = Instance | Mapping[str, Any]
"""An `Instance`, or a mapping as an instance file holds it."""


def read_definition(given: DefinitionLike) -> tuple[Instance, list[Finding]]:
    """Structure and check a definition.

    Args:
        given: an `Instance` (whose constructor checks nothing) or a mapping.

    Returns:
        The definition, and everything wrong with the fields of the model. With findings, fields that were wrong hold
        empty values.
    """
    values = _as_mapping(given) if isinstance(given, Instance) else given
    instance, findings = structure(Instance, values)
    return instance, [*findings, *_sources(instance, findings), *_repetitions(instance)]


def field_findings(device: Disk | Nic, path: str, *, complete: bool = True) -> tuple[Any, list[Finding]]:
    """Structure and check one disk or NIC.

    Args:
        device: the device, whose constructor checks nothing.
        path: where it stands, for the findings.
        complete: it is all of the device, so that what it must have is required.

    Returns:
        The device, and everything wrong with the fields of the model, as `read_definition` does.
    """
    read, findings = structure(type(device), _as_mapping(device), path)
    if complete and isinstance(read, Disk):
        findings = [*findings, *_source(read, path, {finding.path for finding in findings})]
    return read, findings


def _as_mapping(record: Any) -> Any:
    # Not attrs.asdict: it would copy what is not ours, and fail on what is not what it should be.
    if isinstance(record, Instance | Disk | Nic):
        fields = ((field.name, getattr(record, field.name)) for field in attrs.fields(type(record)))
        return {name: _as_mapping(value) for name, value in fields}
    if isinstance(record, tuple):
        return [_as_mapping(item) for item in record]
    return record


def _sources(instance: Instance, known: list[Finding]) -> list[Finding]:
    """A disk comes from one place."""
    findings = []
    wrong = {finding.path for finding in known}
    for index, disk in enumerate(instance.disks):
        findings += _source(disk, f"disks[{index}]", wrong)
    return findings


def _source(disk: Disk, path: str, wrong: set[str]) -> list[Finding]:
    if disk.path is not None and disk.uri is not None:
        return [Finding(code="contradiction", path=f"{path}.uri", message="a disk has one of path and uri")]
    if disk.path is None and disk.uri is None and not {f"{path}.path", f"{path}.uri"} & wrong:
        hint = "an image file or block device, or give uri"
        return [Finding(code="missing-parameter", path=f"{path}.path", message="is required", hint=hint)]
    return []


def _repetitions(instance: Instance) -> list[Finding]:
    findings = []
    for kind, devices in (("disks", instance.disks), ("nics", instance.nics)):
        for attribute in ("uuid", "name", "mac", "path", "uri"):
            seen: dict[str, int] = {}
            for index, device in enumerate(devices):
                value = getattr(device, attribute, None)
                if not value:
                    continue
                first = seen.setdefault(value.lower() if attribute in ("uuid", "mac") else value, index)
                if first != index:
                    findings.append(
                        Finding(
                            code="repeated-value",
                            path=f"{kind}[{index}].{attribute}",
                            message=f"is the same as that of {kind}[{first}]",
                        )
                    )
    if len(set(instance.consoles)) != len(instance.consoles):
        findings.append(Finding(code="repeated-value", path="consoles", message="names a console type twice"))
    return findings
