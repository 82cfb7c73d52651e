"""The KVM driver's own parameters: each declared once, with everything that is known about it."""

from __future__ import annotations

from hvcore import ParameterSection, ParameterTable
from hvcore_kvm.families import Families
from hvcore_kvm.parameters.confidential import ConfidentialParameters, confidential_rules
from hvcore_kvm.parameters.cpu import CpuParameters, cpu_rules
from hvcore_kvm.parameters.devices import DeviceParameters, device_rules
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters, disk_rules, storage_rules
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters, boot_rules, machine_rules
from hvcore_kvm.parameters.memory import MemoryParameters, memory_rules
from hvcore_kvm.parameters.nic import NicParameters, nic_rules
from hvcore_kvm.parameters.resources import ResourceParameters, resource_rules

DISK_DEFAULTS = "disk"
"""Key in an instance's ``params`` under which defaults for its disks stand."""

NIC_DEFAULTS = "nic"
"""Key in an instance's ``params`` under which defaults for its NICs stand."""

OWN_SECTIONS = (
    ParameterSection(title="Machine", place="instance", fields=MachineParameters, rules=(machine_rules,)),
    ParameterSection(title="Boot", place="instance", fields=BootParameters, rules=(boot_rules,)),
    ParameterSection(title="CPU", place="instance", fields=CpuParameters, rules=(cpu_rules,)),
    ParameterSection(title="Memory", place="instance", fields=MemoryParameters, rules=(memory_rules,)),
    ParameterSection(
        title="Confidential computing",
        place="instance",
        fields=ConfidentialParameters,
        rules=(confidential_rules,),
    ),
    ParameterSection(title="Storage", place="instance", fields=StorageParameters, rules=(storage_rules,)),
    ParameterSection(title="Devices", place="instance", fields=DeviceParameters, rules=(device_rules,)),
    ParameterSection(title="Resources", place="instance", fields=ResourceParameters, rules=(resource_rules,)),
    ParameterSection(title="Disk", place="disk", fields=DiskParameters, rules=(disk_rules,)),
    ParameterSection(title="NIC", place="nic", fields=NicParameters, rules=(nic_rules,)),
)

DEFAULTS_SECTIONS = (
    # No rules: only together with what a disk or NIC says itself can be told what contradicts what.
    ParameterSection(title="Defaults for disks", place="instance", fields=DiskParameters, name=DISK_DEFAULTS),
    ParameterSection(title="Defaults for NICs", place="instance", fields=NicParameters, name=NIC_DEFAULTS),
)


def parameter_table(families: Families) -> ParameterTable:
    """Every parameter of the driver and of its family plugins."""
    return ParameterTable(sections=(*OWN_SECTIONS, *DEFAULTS_SECTIONS, *families.sections()))
