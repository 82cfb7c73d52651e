"""The KVM driver's own parameters: each declared once, with everything that is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, ParameterSection, ParameterTable, checks, param
from hvcore_kvm.families import Families

_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-"


def qemu_word(value: str) -> str | None:
    """A name of QEMU: letters, digits and ``. _ + -``, not beginning with a hyphen, 64 characters at most."""
    if not 0 < len(value) <= 64 or value.startswith("-") or any(c not in _WORD for c in value):
        return f"{value[:64]!r} is not a name of QEMU: letters, digits, '.', '_', '+' and '-'"
    return None


def disk_serial(value: str) -> str | None:
    """A virtio-blk serial: printable ASCII without blanks or commas, 20 characters at most."""
    if not 0 < len(value) <= 20 or not value.isascii() or not value.isprintable() or set(value) & set(" ,"):
        return f"{value[:40]!r} is not a serial number: at most 20 printable ASCII characters, no blank or comma"
    return None


@attrs.frozen(kw_only=True)
class MachineParameters:
    """The machine: what QEMU emulates, and what it does when the guest ends."""

    qemu: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("kvm_path",),
        summary="QEMU program for this instance; the driver's setting when not given.",
    )
    machine: str = param(
        default="q35",
        checks=(qemu_word,),
        aliases=("machine_version",),
        summary="Machine type. An alias such as pc or q35 becomes a versioned name at the first start, and stays that.",
    )
    accel: str = param(
        default="auto",
        choices=("auto", "kvm", "tcg"),
        aliases=("kvm_flag",),
        summary="What runs the guest's code. auto takes KVM where it can run an operating system, else TCG.",
    )
    acpi: bool = param(
        default=True,
        aliases=("acpi",),
        summary="Offer ACPI to the guest; without it, it cannot be asked to power off.",
    )
    on_reboot: str = param(
        default="reset",
        choices=("reset", "shutdown"),
        aliases=("reboot_behavior",),
        summary="What a restart from inside the guest does.",
    )
    on_panic: str = param(
        default="shutdown",
        choices=("shutdown", "pause", "none"),
        summary="What becomes of the instance when the guest's kernel panics; with none it is left running.",
    )
    panic_device: bool = param(default=True, summary="Offer pvpanic, by which the guest reports a panic.")
    rng: bool = param(default=True, summary="Offer virtio-rng, fed from the host's random number generator.")
    balloon: bool = param(default=True, summary="Offer the virtio balloon, with free page reporting.")
    sandbox: bool = param(
        default=True,
        summary="Run QEMU in its seccomp sandbox, with all four denials.",
    )


@attrs.frozen(kw_only=True)
class CpuParameters:
    """The guest's processors."""

    cpu_model: str | None = param(
        default=None,
        checks=(qemu_word,),
        aliases=("cpu_type",),
        summary="CPU model; host with KVM and max with TCG when not given.",
    )
    cpu_features: Mapping[str, bool] = param(
        factory=dict, summary="CPU features switched on or off, added to the model."
    )


@attrs.frozen(kw_only=True)
class BootParameters:
    """What the guest boots."""

    kernel: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("kernel_path",),
        summary="Kernel image that is booted directly; then no disk or network is tried.",
    )
    initrd: str | None = param(
        default=None, checks=(checks.absolute_path,), aliases=("initrd_path",), summary="Initial RAM disk."
    )
    cmdline: str | None = param(
        default=None,
        checks=(checks.no_control_characters,),
        aliases=("kernel_args",),
        summary="Kernel command line, verbatim.",
    )
    firmware_image: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="Firmware image that replaces QEMU's own BIOS.",
    )


@attrs.frozen(kw_only=True)
class DiskParameters:
    """One disk, as the guest sees it and as QEMU reads it."""

    bus: str = param(
        default="virtio-blk", choices=("virtio-blk",), aliases=("disk_type",), summary="Device the guest sees."
    )
    cache: str = param(
        default="writeback",
        choices=("none", "writeback", "writethrough", "directsync", "unsafe"),
        aliases=("disk_cache",),
        summary="Cache mode: whether the host's page cache is used, and whether writes wait for the disk.",
    )
    aio: str = param(
        default="threads",
        choices=("threads", "native", "io_uring"),
        aliases=("disk_aio",),
        summary="How QEMU does input and output; native needs a cache mode without the host's page cache.",
    )
    discard: str = param(
        default="unmap",
        choices=("unmap", "ignore"),
        aliases=("disk_discard",),
        summary="Whether space the guest frees is given back.",
    )
    serial: str | None = param(
        default=None,
        checks=(disk_serial,),
        summary="Serial number the guest sees; the beginning of the uuid when not given.",
    )
    any_header: bool = param(
        default=False,
        summary="Accept a raw disk that begins with the header of another image format: its guest wrote it.",
    )


@attrs.frozen(kw_only=True)
class NicParameters:
    """One NIC, as the guest sees it."""

    model: str = param(
        default="virtio-net",
        choices=("virtio-net", "e1000e", "e1000", "rtl8139"),
        aliases=("nic_type",),
        summary="Device the guest sees.",
    )


def _kernel_rules(boot: BootParameters) -> Iterator[Finding]:
    for name in ("initrd", "cmdline"):
        if getattr(boot, name) is not None and boot.kernel is None:
            yield Finding(
                code="needs-kernel",
                path=name,
                message="only goes with a kernel that is booted directly",
                hint="set params.kernel, or leave it out",
            )
    if boot.kernel is not None and boot.firmware_image is not None:
        yield Finding(
            code="contradiction",
            path="firmware_image",
            message="cannot go with a kernel that is booted directly: QEMU's own firmware hands over to the kernel",
            hint="leave out one of the two",
        )


def _feature_rules(cpu: CpuParameters) -> Iterator[Finding]:
    for name in cpu.cpu_features:
        problem = qemu_word(name)
        if problem:
            yield Finding(code="invalid-value", path="cpu_features", message=problem)


def _aio_rules(disk: DiskParameters) -> Iterator[Finding]:
    if disk.aio == "native" and disk.cache not in ("none", "directsync"):
        yield Finding(
            code="contradiction",
            path="aio",
            message=f"native needs cache none or directsync, and cache is {disk.cache}",
            hint='set cache = "none", or aio = "threads"',
        )


OWN_SECTIONS = (
    ParameterSection(title="Machine", place="instance", fields=MachineParameters),
    ParameterSection(title="CPU", place="instance", fields=CpuParameters, rules=(_feature_rules,)),
    ParameterSection(title="Boot", place="instance", fields=BootParameters, rules=(_kernel_rules,)),
    ParameterSection(title="Disk", place="disk", fields=DiskParameters, rules=(_aio_rules,)),
    ParameterSection(title="NIC", place="nic", fields=NicParameters),
)


def parameter_table(families: Families) -> ParameterTable:
    """Every parameter of the driver and of its family plugins."""
    return ParameterTable(sections=(*OWN_SECTIONS, *families.sections()))
