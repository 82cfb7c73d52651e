"""A definition with its parameters structured: what everything after the syntax check works with."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from hvcore import Disk, Finding, Instance, Nic, ParameterSection, structure_sections
from hvcore_kvm.coherence import check_whole
from hvcore_kvm.families import ConsoleType, Families, NicMode, SecurityModel, unknown_member
from hvcore_kvm.images import ImageFile
from hvcore_kvm.parameters.confidential import ConfidentialParameters
from hvcore_kvm.parameters.cpu import CpuParameters
from hvcore_kvm.parameters.devices import DeviceParameters
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters
from hvcore_kvm.parameters.memory import MemoryParameters
from hvcore_kvm.parameters.nic import NicParameters
from hvcore_kvm.parameters.resources import ResourceParameters
from hvcore_kvm.parameters.table import DISK_DEFAULTS, NIC_DEFAULTS, OWN_SECTIONS, parameter_table

T = TypeVar("T")

_MIB = 2**20
_PR_CAPBSET_READ = 23
_CAPABILITIES = (18, 21, 27)
"""What confinement takes: CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_MKNOD (linux/capability.h)."""


@attrs.frozen(kw_only=True)
class DiskDefinition:
    """One disk: the model's record, the driver's parameters, its place in the definition.

    Of its attributes, ``overlays`` are the paths of the images that external snapshots have put above its own, the
    topmost last.
    """

    index: int
    disk: Disk
    parameters: DiskParameters
    overlays: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where it stands in the definition."""
        return f"disks[{self.index}]"

    @property
    def file(self) -> ImageFile:
        """Its image, for a disk that has a path."""
        given = self.parameters
        encrypted = given.encryption and self.disk.format == "raw"
        return ImageFile(
            path=self.disk.path or "",
            format="luks" if encrypted else self.disk.format,
            read_only=self.disk.read_only,
            direct=given.cache in ("none", "directsync"),
            any_header=given.any_header,
            shared=given.shared,
            where=f"{self.origin}.path",
            format_where=f"{self.origin}.format",
        )

    @property
    def layers(self) -> tuple[ImageFile, ...]:
        """Its overlays, the topmost last."""
        return tuple(attrs.evolve(self.file, path=path, format="qcow2", format_where="") for path in self.overlays)


@attrs.frozen(kw_only=True)
class NicDefinition:
    """One NIC: the model's record, the driver's parameters, its mode and the mode's parameters."""

    index: int
    nic: Nic
    parameters: NicParameters
    mode: NicMode
    mode_parameters: Any

    @property
    def origin(self) -> str:
        """Where it stands in the definition."""
        return f"nics[{self.index}]"


@attrs.frozen(kw_only=True)
class Definition:
    """An instance with everything structured and every plugin picked.

    Of its attributes, ``given`` is what was read, and ``records`` are all sections of its params, by their class.
    """

    instance: Instance
    machine: MachineParameters
    boot: BootParameters
    cpu: CpuParameters
    memory: MemoryParameters
    confidential: ConfidentialParameters
    storage: StorageParameters
    devices: DeviceParameters
    resources: ResourceParameters
    disks: tuple[DiskDefinition, ...]
    nics: tuple[NicDefinition, ...]
    security_model: SecurityModel | None
    security_parameters: Any
    consoles: tuple[tuple[ConsoleType, Any], ...]
    given: Instance
    records: Mapping[type, Any]

    @property
    def name(self) -> str:
        """Name of the instance."""
        return self.instance.name

    @property
    def arch(self) -> str:
        """Architecture of the guest, in QEMU's words."""
        return self.machine.arch or host_architecture()

    @property
    def wanted_machine(self) -> str:
        """The machine type as it was asked for, or the default of the architecture."""
        return self.machine.machine or ("virt" if self.arch == "aarch64" else "q35")

    @property
    def graphical(self) -> ConsoleType | None:
        """The first console that shows a picture."""
        return next((console for console, _ in self.consoles if console.display_device), None)


def host_architecture() -> str:
    """Architecture of this host, in QEMU's words."""
    return os.uname().machine


def default_security_model(instance: Instance) -> str:
    """The model of an instance that names none: ``confined`` for root with all its capabilities, else ``none``.

    Also ``none`` for one with a confinement of its own making.
    """
    if os.geteuid() != 0 or instance.params.get("chroot") is True or instance.params.get("sandbox") is False:
        return "none"
    libc = ctypes.CDLL(None)
    return "confined" if all(libc.prctl(_PR_CAPBSET_READ, number) == 1 for number in _CAPABILITIES) else "none"


def read(instance: Instance, families: Families, before: Definition | None = None) -> tuple[Definition, list[Finding]]:
    """Structure the parameters of a definition and find everything wrong that needs no host.

    Args:
        instance: the definition.
        families: the family plugins it was and is read with.
        before: another one without findings, such as an earlier one of the same instance; parts that are the same are
            not structured again.

    Returns:
        The definition, to be used only if there are no findings, and the findings.
    """
    given = instance
    instance = attrs.evolve(instance, security_model=instance.security_model or default_security_model(instance))
    table = parameter_table(families)
    findings: list[Finding]
    if before is not None and is_same(before.given.params, instance.params):
        records, findings = before.records, []
    else:
        records, findings = structure_sections(table.at("instance"), instance.params, "params")
        before = None  # the defaults of disks and NICs are among them
    if instance.memory % _MIB:
        message = f"{instance.memory} bytes is not a whole number of MiB"
        findings.append(Finding(code="invalid-value", path="memory", message=message))
    disk_defaults = _defaults(instance, DISK_DEFAULTS, findings)
    nic_defaults = _defaults(instance, NIC_DEFAULTS, findings)
    disks = tuple(
        _known(before, "disks", i, disk) or _disk(i, disk, disk_defaults, findings)
        for i, disk in enumerate(instance.disks)
    )
    nics = tuple(
        n
        for i, nic in enumerate(instance.nics)
        if (n := _known(before, "nics", i, nic) or _nic(i, nic, nic_defaults, families, findings)) is not None
    )
    security, security_parameters = _security_model(instance, families, records, findings)
    consoles = _consoles(instance, families, records, findings)
    definition = Definition(
        instance=instance,
        machine=_of(records, MachineParameters),
        boot=_of(records, BootParameters),
        cpu=_of(records, CpuParameters),
        memory=_of(records, MemoryParameters),
        confidential=_of(records, ConfidentialParameters),
        storage=_of(records, StorageParameters),
        devices=_of(records, DeviceParameters),
        resources=_of(records, ResourceParameters),
        disks=disks,
        nics=nics,
        security_model=security,
        security_parameters=security_parameters,
        consoles=consoles,
        given=given,
        records=records,
    )
    if not findings:
        findings += check_whole(definition)
    return definition, findings


def _known(before: Definition | None, kind: str, index: int, device: Disk | Nic) -> Any:
    """A disk or NIC of an earlier reading, if it is the same at the same place."""
    if before is None:
        return None
    given, read_before = getattr(before.given, kind), getattr(before, kind)
    return read_before[index] if index < len(given) and is_same(given[index], device) else None


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same to a reader of definitions, to whom ``True`` is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, Disk | Nic):
        return all(is_same(getattr(one, f.name), getattr(other, f.name)) for f in attrs.fields(type(one)))
    return isinstance(one, str | int | float | None) and one == other


def _defaults(instance: Instance, key: str, findings: list[Finding]) -> Mapping[str, Any]:
    """What an instance says of all its disks or NICs; nothing if that is wrong, which has been found already."""
    given = instance.params.get(key, {})
    below = f"params.{key}"
    wrong = any(finding.path == below or finding.path.startswith(f"{below}.") for finding in findings)
    return {} if wrong or not isinstance(given, Mapping) else given


def _with_defaults(defaults: Mapping[str, Any], given: Any) -> Any:
    return {**defaults, **given} if isinstance(given, Mapping) else given


def _of(records: Mapping[type, Any], kind: type[T]) -> T:
    found: T = records[kind]
    return found


def _disk(index: int, disk: Disk, defaults: Mapping[str, Any], findings: list[Finding]) -> DiskDefinition:
    sections = [section for section in OWN_SECTIONS if section.place == "disk"]
    records, problems = structure_sections(sections, _with_defaults(defaults, disk.params), f"disks[{index}].params")
    findings += problems
    return DiskDefinition(index=index, disk=disk, parameters=_of(records, DiskParameters))


def _nic(
    index: int, nic: Nic, defaults: Mapping[str, Any], families: Families, findings: list[Finding]
) -> NicDefinition | None:
    path = f"nics[{index}]"
    sections = [section for section in OWN_SECTIONS if section.place == "nic"]
    mode = families.nic_modes.get(nic.mode)
    if mode is None:
        findings.append(unknown_member("NIC mode", nic.mode, families.nic_modes, f"{path}.mode"))
        return None
    if mode.parameters is not None:
        sections.append(ParameterSection(title=mode.name, place="nic", fields=mode.parameters, rules=tuple(mode.rules)))
    # What the mode looks at is what holds, defaults for all NICs included.
    nic = attrs.evolve(nic, params=_with_defaults(defaults, nic.params))
    records, problems = structure_sections(sections, nic.params, f"{path}.params")
    mode_parameters = records.get(mode.parameters) if mode.parameters is not None else None
    if not problems:
        problems = [finding.below(path) for finding in mode.backend.check(nic, mode_parameters)]
    findings += problems
    return NicDefinition(
        index=index,
        nic=nic,
        parameters=_of(records, NicParameters),
        mode=mode,
        mode_parameters=mode_parameters,
    )


def _security_model(
    instance: Instance, families: Families, records: Mapping[type, Any], findings: list[Finding]
) -> tuple[SecurityModel | None, Any]:
    name = instance.security_model or "none"
    model = families.security_models.get(name)
    if model is None:
        findings.append(unknown_member("security model", name, families.security_models, "security_model"))
        return None, None
    parameters = records.get(model.parameters) if model.parameters is not None else None
    findings += model.backend.check(instance, parameters)
    return model, parameters


def _consoles(
    instance: Instance, families: Families, records: Mapping[type, Any], findings: list[Finding]
) -> tuple[tuple[ConsoleType, Any], ...]:
    chosen = []
    for index, name in enumerate(instance.consoles):
        console = families.console_types.get(name)
        if console is None:
            findings.append(unknown_member("console type", name, families.console_types, f"consoles[{index}]"))
            continue
        parameters = records.get(console.parameters) if console.parameters is not None else None
        findings += console.backend.check(instance, parameters)
        chosen.append((console, parameters))
    return tuple(chosen)
