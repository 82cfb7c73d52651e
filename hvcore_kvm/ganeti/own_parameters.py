"""This driver's own parameters of an instance, structured; those of family plugins are the plugins' business."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs

from hvcore import Finding, Instance, structure
from hvcore_kvm.parameters.confidential import ConfidentialParameters, confidential_rules
from hvcore_kvm.parameters.cpu import CpuParameters, cpu_rules
from hvcore_kvm.parameters.devices import DeviceParameters, device_rules
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters, disk_rules, storage_rules
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters, boot_rules, machine_rules
from hvcore_kvm.parameters.memory import MemoryParameters, memory_rules
from hvcore_kvm.parameters.nic import NicParameters, nic_rules

T = TypeVar("T")
Rules = Callable[[Any], Iterable[Finding]]

INSTANCE_SECTIONS: Mapping[type, Rules] = {
    MachineParameters: machine_rules,
    BootParameters: boot_rules,
    CpuParameters: cpu_rules,
    MemoryParameters: memory_rules,
    ConfidentialParameters: confidential_rules,
    StorageParameters: storage_rules,
    DeviceParameters: device_rules,
}


def read_section(fields: type[T], values: Any, path: str) -> tuple[T, list[Finding]]:
    """The record of one section, and what is wrong with its values; keys of other sections are passed over."""
    given = values if isinstance(values, Mapping) else {}
    names = {field.name for field in attrs.fields(fields)}  # type: ignore[arg-type]
    return structure(fields, {key: value for key, value in given.items() if key in names}, path)


def device_values(instance: Instance, key: str, values: Any) -> dict[str, Any]:
    """The parameters of one disk or NIC over the defaults that stand under ``key`` in the instance."""
    defaults = instance.params.get(key, {})
    return {
        **(defaults if isinstance(defaults, Mapping) else {}),
        **(values if isinstance(values, Mapping) else {}),
    }


def check_parameters(instance: Instance) -> list[Finding]:
    """What is wrong with the driver's own parameters, all sections and all devices."""
    findings: list[Finding] = []
    for fields, rules in INSTANCE_SECTIONS.items():
        findings += _check(fields, rules, instance.params, "params")
    for index, disk in enumerate(instance.disks):
        values = device_values(instance, "disk", disk.params)
        findings += _check(DiskParameters, disk_rules, values, f"disks[{index}].params")
    for index, nic in enumerate(instance.nics):
        values = device_values(instance, "nic", nic.params)
        findings += _check(NicParameters, nic_rules, values, f"nics[{index}].params")
    return findings


def _check(fields: type, rules: Rules, values: Any, path: str) -> list[Finding]:
    record: Any
    record, problems = read_section(fields, values, path)
    return problems or [finding.below(path) for finding in rules(record)]
