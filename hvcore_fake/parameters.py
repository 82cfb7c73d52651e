"""What can be set for an instance of the fake driver: how its modelled guest behaves."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import attrs

from hvcore import (
    Disk,
    Finding,
    FindingSet,
    Instance,
    ParameterSection,
    ParameterTable,
    Seconds,
    Size,
    checks,
    param,
    structure_sections,
)

NIC_MODES = ("user", "bridged", "routed", "openvswitch")
"""NIC modes that are accepted; a modelled NIC is connected to nothing in all of them."""

SECURITY_MODELS = ("none",)
"""Security models that are accepted; a modelled process needs no confinement."""

CONSOLE_TYPES = ("serial", "vnc")
"""Console types a modelled instance may offer."""

PASSWORD_CONSOLES = ("vnc",)
"""Those that a password can be set for; the others take one client at a time."""


@attrs.frozen(kw_only=True)
class CdRom:
    """A CD-ROM drive."""

    path: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        changes="live",
        summary="Image that is in it; empty when not given.",
    )


@attrs.frozen(kw_only=True)
class GuestParameters:
    """How the guest behaves. All times are seconds of the virtual clock, in which its virtual CPUs run."""

    boot_time: Seconds = param(
        default=Seconds(0.0),
        unit="seconds",
        summary="How long the guest boots; until then it does not notice the power button.",
    )
    shutdown_time: Seconds = param(
        default=Seconds(1.0),
        unit="seconds",
        changes="live",
        summary="How long the guest takes to power off once it was asked to.",
    )
    ignore_power_button: bool = param(
        default=False, changes="live", summary="The guest never powers off when it is asked to."
    )
    power_off_after: Seconds | None = param(
        default=None, unit="seconds", summary="The guest powers itself off so long after its start."
    )
    panic_after: Seconds | None = param(
        default=None, unit="seconds", summary="The guest's kernel panics so long after its start."
    )
    dirty_rate: Size = param(
        default=Size(0),
        unit="bytes a second",
        changes="live",
        summary="How much of its memory the guest changes while it runs; a migration sends 1 GiB a second.",
    )
    on_panic: str = param(
        default="shutdown",
        choices=("shutdown", "pause"),
        changes="live",
        summary="What a panic does to the instance: its process ends, or is kept with the guest paused.",
    )
    unplug_time: Seconds = param(
        default=Seconds(0.0),
        unit="seconds",
        changes="live",
        summary="How long the guest takes to let go of a device once it was asked to.",
    )
    unplug: str = param(
        default="obey",
        choices=("obey", "ignore", "refuse"),
        changes="live",
        summary="What the guest does when it is asked to let go of a device: it does, it never does, or it says that "
        "it will not.",
    )
    console_password: str | None = param(
        default=None,
        secret=True,
        checks=(checks.no_control_characters,),
        summary="Password of the console vnc. It is kept nowhere: nobody can connect.",
    )
    vcpus_max: int | None = param(
        default=None,
        checks=(checks.between(1, 4096),),
        summary="How many virtual CPUs it may get while it runs; vcpus when not given.",
    )
    balloon: bool = param(default=True, summary="The guest has a balloon.")
    balloon_rate: Size | None = param(
        default=None,
        unit="bytes a second",
        changes="live",
        summary="How fast the guest gives memory back or takes more; at once when not given, never with 0.",
    )
    memory_min: Size | None = param(
        default=None, unit="bytes", changes="live", summary="The least memory the balloon may leave to the guest."
    )
    cdroms: tuple[CdRom, ...] = param(default=(), changes="live", summary="CD-ROM drives.")
    tray_locked: bool = param(
        default=False, changes="live", summary="The guest has locked the trays of its CD-ROM drives."
    )


@attrs.frozen(kw_only=True)
class DiskParameters:
    """How a disk is stored."""

    encryption: bool = param(default=False, summary="The image is encrypted as a whole, with format raw.")
    secret_file: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="File that holds the secret of an encrypted image, in one line.",
    )


def _together(parameters: DiskParameters) -> Iterator[Finding]:
    if parameters.encryption != (parameters.secret_file is not None):
        where = "secret_file" if parameters.encryption else "encryption"
        message = "is needed: encryption and secret_file go together"
        yield Finding(code="missing-parameter", path=where, message=message)


def _order(parameters: GuestParameters) -> Iterator[Finding]:
    panic, off = parameters.panic_after, parameters.power_off_after
    if panic is not None and off is not None and panic > off:
        message = f"comes after the guest has powered itself off ({off:g} s)"
        yield Finding(code="invalid-value", path="panic_after", message=message)


_SECRETS = frozenset(("console_password",))

SECTION = ParameterSection(title="Guest", place="instance", fields=GuestParameters, rules=(_order,))
DISK_SECTION = ParameterSection(title="Disk", place="disk", fields=DiskParameters, rules=(_together,))


def parameter_table() -> ParameterTable:
    """Every parameter of the driver."""
    return ParameterTable(sections=(SECTION, DISK_SECTION))


def check_syntax(instance: Instance, foreign: bool) -> FindingSet:
    """Find everything wrong with a definition that needs no host.

    Args:
        instance: the definition.
        foreign: accept what belongs to other drivers: their parameters, NIC modes, security models, consoles.
    """
    _, findings = structure_sections((SECTION,), instance.params, "params")
    for index, disk in enumerate(instance.disks):
        records, wrong = structure_sections((DISK_SECTION,), disk.params, f"disks[{index}].params")
        findings += wrong
        if not wrong and records[DiskParameters].encryption and disk.format != "raw":
            message = f"an encrypted disk of format {disk.format} is not modelled"
            where = f"disks[{index}].params.encryption"
            findings.append(Finding(code="not-supported", path=where, message=message, hint="use format raw"))
    for index, nic in enumerate(instance.nics):
        findings += structure_sections((), nic.params, f"nics[{index}].params")[1]
    if foreign:
        return FindingSet(finding for finding in findings if finding.code != "unknown-parameter")
    return FindingSet((*findings, *_unknown_plugins(instance)))


def without_secrets(instance: Instance) -> Instance:
    """A definition as it may be written down."""
    params = {key: value for key, value in instance.params.items() if key not in _SECRETS}
    return attrs.evolve(instance, params=params)


def guest_parameters(instance: Instance) -> GuestParameters:
    """The parameters of a definition whose syntax has no errors."""
    records, _ = structure_sections((SECTION,), instance.params, "params")
    found: GuestParameters = records[GuestParameters]
    return found


def secret_of(disk: Disk) -> str | None:
    """The file with the secret of a disk whose parameters have no errors; ``None`` for one that is not encrypted."""
    records, _ = structure_sections((DISK_SECTION,), disk.params, "params")
    found: DiskParameters = records[DiskParameters]
    return found.secret_file


def _unknown_plugins(instance: Instance) -> Iterator[Finding]:
    if instance.security_model is not None:
        yield from _unknown("security model", instance.security_model, SECURITY_MODELS, "security_model")
    for index, name in enumerate(instance.consoles):
        yield from _unknown("console type", name, CONSOLE_TYPES, f"consoles[{index}]")
    for index, nic in enumerate(instance.nics):
        yield from _unknown("NIC mode", nic.mode, NIC_MODES, f"nics[{index}].mode")


def _unknown(title: str, name: str, known: Iterable[str], path: str) -> Iterator[Finding]:
    names = tuple(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"modelled: {', '.join(names)}"
    yield Finding(code="unknown-plugin", path=path, message=f"there is no {title} {name!r}", hint=hint)
