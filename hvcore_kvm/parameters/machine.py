"""Parameters of the machine: what is emulated, and what it does when the guest ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, Seconds, checks, param
from hvcore_kvm.extra_arguments import check_extra_arguments
from hvcore_kvm.parameters.syntax import boot_entry, fw_cfg_name, qemu_word

SMBIOS_FIELDS = ("manufacturer", "product", "version", "serial", "sku", "family")
"""Fields of the system information table (SMBIOS type 1) that can be set; its uuid is the instance's."""


@attrs.frozen(kw_only=True)
class MachineParameters:
    """The machine: what QEMU emulates, and what it does when the guest ends."""

    qemu: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("kvm_path",),
        summary="QEMU program for this instance; the driver's setting when not given.",
    )
    arch: str | None = param(
        default=None,
        choices=("x86_64", "aarch64"),
        summary="Architecture of the guest; picks the QEMU program. The host's own when not given.",
    )
    machine: str | None = param(
        default=None,
        checks=(qemu_word,),
        aliases=("machine_version",),
        summary="Machine type: pc, q35, microvm, virt or a versioned name of them; q35, for aarch64 virt, when not "
        "given. An alias becomes a versioned name at the first start, and stays that.",
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
    hpet: bool = param(default=False, summary="Offer the HPET timer on x86; current guests do better without it.")
    iommu: str = param(
        default="none",
        choices=("none", "intel", "virtio", "smmuv3"),
        summary="IOMMU for the guest: intel on q35, virtio on q35 and virt, smmuv3 on virt.",
    )
    pci_reservations: int = param(
        default=3,
        checks=(checks.between(1, 30),),
        aliases=("kvm_pci_reservations",),
        summary="PCI slots of the root bus, counted from 0, that devices of the definition do not get.",
    )
    on_reboot: str = param(
        default="reset",
        choices=("reset", "shutdown"),
        changes="live",
        aliases=("reboot_behavior",),
        summary="What a restart from inside the guest does.",
    )
    on_panic: str = param(
        default="shutdown",
        choices=("shutdown", "pause", "none"),
        changes="live",
        summary="What becomes of the instance when the guest's kernel panics; with none it is left running.",
    )
    panic_device: bool = param(default=True, summary="Offer pvpanic, by which the guest reports a panic.")
    vmgenid: bool = param(
        default=False,
        summary="Offer a generation ID, by which the guest notices that it was restored or copied (pc, q35).",
    )
    hotplug_ports: int = param(
        default=4,
        checks=(checks.between(0, 64),),
        summary="PCI Express root ports that stay free for devices plugged while the guest runs (q35, virt). With 0 "
        "there are no root ports at all: no device can be plugged or unplugged, and firmware starts sooner.",
    )
    rtc_base: str = param(
        default="utc",
        choices=("utc", "localtime"),
        aliases=("use_localtime",),
        summary="What the guest's clock is set to at start: Coordinated Universal Time, or the host's local time.",
    )
    rtc_driftfix: bool = param(
        default=False, summary="Re-inject timer ticks the guest has missed, for guests that count them (x86)."
    )
    smbios: Mapping[str, str] = param(
        factory=dict,
        summary="System information the guest's firmware tables show: " + ", ".join(SMBIOS_FIELDS) + " (x86, virt).",
    )
    smbios_oem: tuple[str, ...] = param(
        default=(),
        item_checks=(checks.no_control_characters,),
        summary="OEM strings (SMBIOS type 11), for example systemd credentials.",
    )
    fw_cfg: Mapping[str, str] = param(
        factory=dict,
        summary="Texts for the guest by name below opt/, read through QEMU's firmware configuration device.",
    )
    sandbox: bool = param(
        default=True,
        summary="Run QEMU in its seccomp sandbox, with all four denials.",
    )
    chroot: bool = param(
        default=False,
        aliases=("use_chroot",),
        summary="QEMU changes its root to an empty directory of the instance once everything is open; needs root.",
    )
    extra_args: str = param(
        default="",
        checks=(check_extra_arguments,),
        aliases=("kvm_extra",),
        summary="Further QEMU options, in shell words. Those the driver owns are refused; the instance is marked.",
    )


@attrs.frozen(kw_only=True)
class BootParameters:
    """What the guest boots."""

    firmware: str | None = param(
        default=None,
        choices=("bios", "uefi", "uefi-secure"),
        summary="Firmware: bios (x86), uefi, or uefi-secure with Secure Boot. bios on x86 and uefi on aarch64 when "
        "not given. UEFI variables are kept per instance until it is cleaned up.",
    )
    firmware_image: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="Firmware image that replaces QEMU's own BIOS.",
    )
    firmware_code: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="UEFI code image; found through QEMU's firmware descriptors when not given.",
    )
    firmware_vars_template: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="Image that the instance's UEFI variables begin as; goes with firmware_code. With uefi_vars_json it is "
        "a store in JSON, which goes with any firmware.",
    )
    uefi_vars_json: bool = param(
        default=False,
        summary="QEMU itself keeps the UEFI variables, in JSON, and guards them: Secure Boot without system management "
        "mode (pc, q35; QEMU 10.0 and newer, with firmware made for it).",
    )
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
        aliases=("kernel_args", "root_path", "serial_speed"),
        summary="Kernel command line, verbatim.",
    )
    dtb: str | None = param(
        default=None, checks=(checks.absolute_path,), summary="Device tree for a directly booted kernel (virt)."
    )
    boot: tuple[str, ...] = param(
        default=("disks", "cdroms"),
        item_checks=(boot_entry,),
        aliases=("boot_order",),
        summary="What is tried in order: disks, cdroms, nics or floppy for all of a kind, or one of them by its place "
        "(disks[1]) or name.",
    )
    boot_menu: bool = param(default=False, summary="The firmware offers a boot menu.")
    boot_splash: Seconds = param(
        default=Seconds(0.0), unit="seconds", summary="How long the boot menu's prompt is shown; up to 65.5 s."
    )
    boot_strict: bool = param(default=True, summary="Nothing but what boot names is tried.")


def machine_rules(machine: MachineParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    for key, value in machine.smbios.items():
        problem = checks.no_control_characters(value)
        if key not in SMBIOS_FIELDS:
            problem = f"{key[:40]!r} is none of {', '.join(SMBIOS_FIELDS)}"
        if problem:
            yield Finding(code="invalid-value", path="smbios", message=f"{key[:40]}: {problem}")
    for key, value in machine.fw_cfg.items():
        problem = fw_cfg_name(key) or ("holds NUL" if "\0" in value else None) or checks.no_control_characters(value)
        if problem:
            yield Finding(code="invalid-value", path="fw_cfg", message=f"{key[:40]}: {problem}")
    if machine.iommu == "smmuv3" and machine.arch == "x86_64":
        yield Finding(code="contradiction", path="iommu", message="smmuv3 is for aarch64", hint="use intel or virtio")


def boot_rules(boot: BootParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    for name in ("initrd", "cmdline", "dtb"):
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
    uefi = boot.firmware in ("uefi", "uefi-secure")
    if uefi and boot.firmware_image is not None:
        message = "is a BIOS image, and firmware is UEFI"
        yield Finding(code="contradiction", path="firmware_image", message=message, hint="use firmware_code")
    store = boot.uefi_vars_json
    if store and (boot.firmware == "bios" or boot.firmware_image is not None):
        yield Finding(code="contradiction", path="uefi_vars_json", message="is of UEFI, and firmware is a BIOS")
    if store and boot.firmware == "uefi-secure" and boot.firmware_vars_template is None:
        message = "is needed with uefi-secure and uefi_vars_json: a store with enrolled keys"
        hint = "virt-fw-vars of python3-virt-firmware makes one"
        yield Finding(code="incomplete", path="firmware_vars_template", message=message, hint=hint)
    if boot.firmware_vars_template is not None and boot.firmware_code is None and not store:
        message = "only goes with firmware_code"
        yield Finding(code="incomplete", path="firmware_vars_template", message=message)
    if boot.firmware_code is not None and boot.firmware == "bios":
        message = "is a UEFI image, and firmware is bios"
        yield Finding(code="contradiction", path="firmware_code", message=message)
    if boot.boot_splash > 65.5:
        yield Finding(code="invalid-value", path="boot_splash", message=f"{boot.boot_splash:g} s is above 65.5 s")
    if len(set(boot.boot)) != len(boot.boot):
        yield Finding(code="repeated-value", path="boot", message="names something twice")
