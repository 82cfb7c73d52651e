"""What belongs together across the parts of a definition; pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hvcore import Finding
from hvcore_kvm.affinity import parse_mask
from hvcore_kvm.extra_arguments import split_extra_arguments
from hvcore_kvm.parameters.confidential import FROZEN, WITHOUT_FLASH
from hvcore_kvm.placement import family_of
from hvcore_kvm.storage_uri import READ_ONLY_DRIVERS, parse_uri

if TYPE_CHECKING:
    from hvcore_kvm.definition import Definition

_X86 = ("pc", "q35", "microvm")


def check_whole(definition: Definition) -> list[Finding]:
    """Everything wrong with a definition whose parts are right each by itself."""
    family = family_of(definition.wanted_machine)
    findings = [
        *_cpus(definition),
        *_pinning(definition),
        *_memory(definition),
        *_disks(definition),
        *_boot(definition),
        *_nics(definition),
        *_failover(definition),
        *_extra_arguments(definition),
        *_security(definition),
        *_made_files(definition),
        *_firmware(definition),
        *_confidential(definition),
    ]
    if family is not None:
        findings += _family(definition, family)
    return findings


def _cpus(definition: Definition) -> Iterable[Finding]:
    cpu, vcpus = definition.cpu, definition.instance.vcpus
    most = cpu.vcpus_max or vcpus
    if most < vcpus:
        yield _wrong("params.vcpus_max", f"{most} is below vcpus, which is {vcpus}")
    if cpu.topology is not None:
        given = {n: getattr(cpu.topology, n) for n in ("sockets", "dies", "clusters", "cores", "threads")}
        factors = {name: value for name, value in given.items() if value is not None}
        product = math.prod(factors.values())
        whole = all(given[name] is not None for name in ("sockets", "cores", "threads"))
        if most % product or (whole and product != most):
            words = " x ".join(f"{value} {name}" for name, value in factors.items())
            rule = "must equal" if whole else "must divide"
            yield _wrong("params.topology", f"{words} = {product} {rule} the {most} virtual CPUs there can be")
    if cpu.cpu_model == "host" and definition.machine.accel == "tcg":
        yield _wrong("params.cpu_model", "host needs KVM, and accel is tcg", 'use cpu_model = "max"')
    if cpu.hyperv and definition.machine.accel == "tcg":
        yield _wrong("params.hyperv", "needs KVM, and accel is tcg")


def _pinning(definition: Definition) -> Iterable[Finding]:
    cpu = definition.cpu
    if cpu.cpu_pin is not None:
        count, most = len(parse_mask(cpu.cpu_pin)), cpu.vcpus_max or definition.instance.vcpus
        if count not in (1, most):
            yield _wrong("params.cpu_pin", f"has {count} elements, and there can be {most} virtual CPUs")
    if cpu.iothread_pin is not None:
        count, threads = len(parse_mask(cpu.iothread_pin)), definition.storage.iothreads
        if not threads:
            yield _wrong("params.iothread_pin", "there are no I/O threads", "set params.iothreads")
        elif count not in (1, threads):
            yield _wrong("params.iothread_pin", f"has {count} elements, and there are {threads} I/O threads")


def _memory(definition: Definition) -> Iterable[Finding]:
    memory, size = definition.memory, definition.instance.memory
    if memory.memory_min is not None and memory.memory_min > size:
        yield _wrong("params.memory_min", f"{memory.memory_min} is above memory, which is {size}")
    if memory.balloon_target is not None:
        if memory.balloon_target > size:
            yield _wrong("params.balloon_target", f"{memory.balloon_target} is above memory, which is {size}")
        if memory.memory_min is not None and memory.balloon_target < memory.memory_min:
            message = f"{memory.balloon_target} is below params.memory_min, which is {memory.memory_min}"
            yield _wrong("params.balloon_target", message)
    if memory.memory_max is not None and memory.memory_max < size + (memory.virtio_mem or 0):
        yield _wrong("params.memory_max", f"{memory.memory_max} is below memory and virtio_mem together")
    sharing = ["params.shares need"] if definition.devices.shares else []
    modes = {nic.mode.name for nic in definition.nics if getattr(nic.mode.backend, "shared_memory", False)}
    sharing += [f"NIC mode {name} needs" for name in sorted(modes)]
    if sharing and (memory.memory_backend == "anon" or memory.memory_share is False):
        where = "params.memory_backend" if memory.memory_backend == "anon" else "params.memory_share"
        yield _wrong(where, f"{sharing[0]} memory that another process can share", "leave it out")
    if memory.numa:
        total = sum(node.memory for node in memory.numa)
        if total != size:
            yield _wrong("params.numa", f"the nodes have {total} bytes together, and memory is {size}")
        cpus = {cpu for node in memory.numa for cpu in parse_mask(node.cpus)[0] or ()}
        most = definition.cpu.vcpus_max or definition.instance.vcpus
        if cpus != set(range(most)):
            yield _wrong("params.numa", f"the nodes must have each of the virtual CPUs 0 to {most - 1}")


def _disks(definition: Definition) -> Iterable[Finding]:
    storage = definition.storage
    for disk in definition.disks:
        given, below = disk.parameters, f"{disk.origin}.params"
        for name, numbers in (
            ("iothread", () if given.iothread is None else (given.iothread,)),
            ("iothread_mapping", given.iothread_mapping),
        ):
            if any(number >= storage.iothreads for number in numbers):
                message = f"there are {storage.iothreads} I/O threads, counted from 0"
                hint = "set params.iothreads"
                yield Finding(code="no-such-iothread", path=f"{below}.{name}", message=message, hint=hint)
        if given.throttle_group is not None and given.throttle_group not in storage.throttle_groups:
            names = ", ".join(sorted(storage.throttle_groups)) or "none"
            message = f"there is no group {given.throttle_group}"
            yield Finding(
                code="no-such-group", path=f"{below}.throttle_group", message=message, hint=f"there is: {names}"
            )
        if given.bus in ("sata", "ide") and disk.disk.read_only:
            yield _wrong(
                f"{disk.origin}.read_only", f"QEMU has no read-only disks on bus {given.bus}", "use virtio-blk or scsi"
            )
        if given.bus in ("scsi-block", "scsi-generic") and (disk.disk.format != "raw" or disk.disk.path is None):
            yield _wrong(f"{disk.origin}.format", f"bus {given.bus} passes a device of the host through: path and raw")
        if disk.disk.uri is not None:
            yield from _uri(disk.disk.uri, f"{disk.origin}.uri", disk.disk.read_only)
    for index, drive in enumerate(storage.cdroms):
        where = f"params.cdroms[{index}]"
        if drive.url is not None:
            yield from _uri(drive.url, f"{where}.url", read_only=True)
        if drive.bus == "virtio-blk" and drive.path is None and drive.url is None:
            yield _wrong(f"{where}.bus", "virtio-blk has no trays: an empty drive is not possible")


def _uri(uri: str, where: str, read_only: bool) -> Iterable[Finding]:
    try:
        driver = parse_uri(uri)["driver"]
    except ValueError as error:
        yield Finding(code="invalid-value", path=where, message=str(error))
        return
    if driver in READ_ONLY_DRIVERS and not read_only:
        yield _wrong(where, f"{driver} is only read", "set read_only = true")


def _boot(definition: Definition) -> Iterable[Finding]:
    counts = {
        "disks": len(definition.disks),
        "cdroms": len(definition.storage.cdroms),
        "nics": len(definition.nics),
    }
    names = {disk.disk.name for disk in definition.disks} | {nic.nic.name for nic in definition.nics}
    for index, entry in enumerate(definition.boot.boot):
        kind, _, number = entry.rstrip("]").partition("[")
        known = entry in ("disks", "cdroms", "nics") or entry in names
        known = known or (entry == "floppy" and definition.storage.floppy is not None)
        if not known and not (kind in counts and number.isdigit() and int(number) < counts[kind]):
            message = f"there is no {entry}"
            yield Finding(code="no-such-device", path=f"params.boot[{index}]", message=message)


def _nics(definition: Definition) -> Iterable[Finding]:
    seen: dict[int, str] = {}
    for nic in definition.nics:
        given = nic.parameters
        tap = getattr(nic.mode.backend, "tap", False)
        many = tap or getattr(nic.mode.backend, "multiqueue", False)
        for name, wanted in (("queues", given.queues > 1 and not many), ("vhost", bool(given.vhost) and not tap)):
            if wanted:
                message = f"needs a tap, and NIC mode {nic.mode.name} has none"
                yield _wrong(f"{nic.origin}.params.{name}", message)
        if given.acpi_index is not None:
            first = seen.setdefault(given.acpi_index, nic.origin)
            if first != nic.origin:
                where = f"{nic.origin}.params.acpi_index"
                yield Finding(code="repeated-value", path=where, message=f"is the same as that of {first}")


def _failover(definition: Definition) -> Iterable[Finding]:
    there = {device.address for device in definition.devices.pci_passthrough}
    seen: dict[str, str] = {}
    for nic in definition.nics:
        address, where = nic.parameters.failover, f"{nic.origin}.params.failover"
        if address is None:
            continue
        first = seen.setdefault(address, nic.origin)
        if address not in there:
            message = f"there is no {address} among params.pci_passthrough"
            yield Finding(code="no-such-device", path=where, message=message)
        elif first != nic.origin:
            yield Finding(code="repeated-value", path=where, message=f"is the same as that of {first}")


def _extra_arguments(definition: Definition) -> Iterable[Finding]:
    """Ids that the driver gives, which an added option must not take."""
    for name, *words in split_extra_arguments(definition.machine.extra_args):
        for ident in _ids(words[0] if words else ""):
            if ident.startswith(_OWN_IDS) or ident in _OWN_NAMES:
                yield _wrong(
                    "params.extra_args", f"{name} uses the id {ident[:40]!r}, which is the driver's", "use another id"
                )


def _security(definition: Definition) -> Iterable[Finding]:
    model = definition.security_model
    if definition.machine.chroot and model is not None and model.name != "none":
        message = (
            f"needs security model none: with {model.name}, QEMU is not root any more when it would change its root"
        )
        yield _wrong("params.chroot", message)


def _firmware(definition: Definition) -> Iterable[Finding]:
    boot, kind = definition.boot, definition.confidential.confidential
    keeps_flash = not boot.uefi_vars_json and kind not in WITHOUT_FLASH
    if boot.firmware_code is not None and boot.firmware_vars_template is None and keeps_flash:
        message = "needs firmware_vars_template: the instance's UEFI variables begin as that"
        yield Finding(code="incomplete", path="params.firmware_code", message=message)
    if boot.firmware_vars_template is not None and kind in WITHOUT_FLASH:
        yield _wrong("params.firmware_vars_template", f"a guest of {kind} has no UEFI variables that are kept")


def _confidential(definition: Definition) -> Iterable[Finding]:
    given, boot, memory = definition.confidential, definition.boot, definition.memory
    kind = given.confidential
    if kind == "none":
        return
    used = {
        # parameter: whether it is used, and why that cannot be
        "params.accel": (definition.machine.accel == "tcg", "needs KVM"),
        "params.firmware": (boot.firmware in ("bios", "uefi-secure"), "needs firmware uefi"),
        "params.firmware_image": (boot.firmware_image is not None, "needs firmware uefi"),
        "params.uefi_vars_json": (boot.uefi_vars_json, "the host keeps no variables for such a guest"),
        "params.memory_merge": (memory.memory_merge, "equal pages are encrypted differently"),
        "params.memory_min": (memory.memory_min is not None, "memory cannot be taken away from such a guest"),
        "params.balloon_target": (memory.balloon_target is not None, "memory cannot be taken away from such a guest"),
        "params.memory_slots": (bool(memory.memory_slots), "memory cannot be added to such a guest"),
        "params.virtio_mem": (memory.virtio_mem is not None, "memory cannot be added to such a guest"),
        "params.vcpus_max": (
            kind in FROZEN and (definition.cpu.vcpus_max or 0) > definition.instance.vcpus,
            "virtual CPUs cannot be added to such a guest",
        ),
    }
    for path, (wanted, why) in used.items():
        if wanted:
            yield _wrong(path, f"does not go with confidential {kind}: {why}")
    if given.confidential_kernel_hashes and boot.kernel is None:
        message = "measures a kernel that is booted directly, and there is none"
        yield Finding(code="needs-kernel", path="params.confidential_kernel_hashes", message=message)


def _made_files(definition: Definition) -> Iterable[Finding]:
    """What QEMU would make on the host, and cannot where it sees nothing of it."""
    if definition.security_model is None or definition.security_model.name != "confined":
        return
    for nic in definition.nics:
        makes = getattr(nic.mode.backend, "makes_files", None)
        if makes is not None and makes(nic.mode_parameters):
            message = f"QEMU makes a file for NIC mode {nic.mode.name}, and a confined one sees nothing of the host"
            yield _wrong(f"{nic.origin}.mode", message, 'set security_model = "none" or "user"')


def _ids(text: str) -> Iterable[str]:
    if text.startswith("{"):
        try:
            values = json.loads(text)
        except ValueError:
            return ()
        return [str(values[key]) for key in ("id", "node-name", "drive") if isinstance(values, dict) and key in values]
    pairs = [pair.partition("=") for pair in text.split(",")]
    return [value for key, _, value in pairs if key in ("id", "node-name")]


_OWN_IDS = (
    *("disk-", "nic-", "net-", "image-", "secret-", "throttle-", "group-", "iothread", "cdrom", "usb-device", "share"),
    *("scsi", "sata", "serial", "host", "vnc", "spice", "virtconsole", "pty", "virtio-port-"),
)
_OWN_NAMES = frozenset(
    (
        *(
            "control",
            "query",
            "events",
            "serial0",
            "com1",
            "panic0",
            "rng0",
            "rng-source0",
            "balloon0",
            "agent",
            "agent0",
        ),
        *("virtio-serial0", "usb0", "display0", "pointer0", "watchdog0", "vsock0", "tpm0", "tpm-device0", "sound0"),
        *("audio0", "codec0", "floppy0", "fdc0", "iommu0", "vmgenid0", "mem0", "vmem0", "virtio-mem0"),
        *("firmware-code", "firmware-vars", "uefi-vars0", "confidential0", "reservations0"),
    )
)


def _family(definition: Definition, family: str) -> Iterable[Finding]:
    """What a family of machines does not have."""
    arch = "aarch64" if family == "virt" else "x86_64"
    if definition.arch != arch:
        message = (
            f"{definition.wanted_machine} is a machine of {arch}, and the guest's architecture is {definition.arch}"
        )
        yield _wrong("params.machine", message, f'set params.arch = "{arch}"')
        return
    machine, devices, boot = definition.machine, definition.devices, definition.boot
    used = {
        # parameter: where it is possible, whether it is used
        "params.iommu": (
            {"intel": ("q35",), "virtio": ("q35", "virt"), "smmuv3": ("virt",)}.get(machine.iommu, ()),
            machine.iommu != "none",
        ),
        "params.hpet": (("pc", "q35"), machine.hpet),
        "params.vmgenid": (("pc", "q35"), machine.vmgenid),
        "params.rtc_driftfix": (("pc", "q35"), machine.rtc_driftfix),
        "params.smbios": (("pc", "q35", "virt"), bool(machine.smbios)),
        "params.smbios_oem": (("pc", "q35", "virt"), bool(machine.smbios_oem)),
        "params.dtb": (("virt",), boot.dtb is not None),
        "params.firmware": (
            {
                "bios": _X86,
                "uefi": ("pc", "q35", "virt"),
                "uefi-secure": ("pc", "q35") if boot.uefi_vars_json else ("q35",),
            }.get(boot.firmware or "", ()),
            boot.firmware is not None,
        ),
        "params.firmware_code": (("pc", "q35", "virt"), boot.firmware_code is not None),
        "params.uefi_vars_json": (("pc", "q35"), boot.uefi_vars_json),
        "params.confidential": (("q35",), definition.confidential.confidential != "none"),
        "params.floppy": (("pc", "q35"), definition.storage.floppy is not None),
        "params.serial_ports": (("pc", "q35"), bool(devices.serial_ports)),
        "params.watchdog": (
            {"i6300esb": ("pc", "q35", "virt"), "ib700": ("pc", "q35"), "itco": ("q35",)}.get(devices.watchdog, ()),
            devices.watchdog != "none",
        ),
        "params.tpm": (
            {"crb": ("pc", "q35"), "tis": ("pc", "q35", "virt")}.get(devices.tpm, ()),
            devices.tpm != "none",
        ),
        "params.sound": (
            ("pc", "q35") if devices.sound == "sb16" else ("pc", "q35", "virt"),
            devices.sound != "none",
        ),
        "params.vsock": (("pc", "q35", "virt"), devices.vsock),
        "params.shares": (("pc", "q35", "virt"), bool(devices.shares)),
        "params.pci_passthrough": (("pc", "q35", "virt"), bool(devices.pci_passthrough)),
        "params.usb": (("pc", "q35", "virt"), bool(devices.usb)),
        "params.pointer": (("pc", "q35", "virt"), devices.pointer in ("tablet", "mouse")),
        "params.usb_controller": (("pc", "q35", "virt"), devices.usb_controller not in (None, "none")),
        "params.display_device": (
            ("pc", "q35", "virt")
            if devices.display_device in ("virtio-gpu", "bochs", "ramfb", "std")
            else ("pc", "q35"),
            devices.display_device not in (None, "none"),
        ),
        "consoles": (("pc", "q35", "virt"), definition.graphical is not None and devices.display_device is None),
        "params.memory_slots": (("pc", "q35", "virt"), bool(definition.memory.memory_slots)),
        "params.virtio_mem": (("pc", "q35"), definition.memory.virtio_mem is not None),
        "params.numa": (("pc", "q35", "virt"), bool(definition.memory.numa)),
    }
    for disk in definition.disks:
        bus = disk.parameters.bus
        families = {"ide": ("pc",), "virtio-blk": (*_X86, "virt"), "scsi": (*_X86, "virt")}.get(
            bus, ("pc", "q35", "virt")
        )
        used[f"{disk.origin}.params.bus"] = (families, True)
    for index, drive in enumerate(definition.storage.cdroms):
        families = {"ide": ("pc",), "sata": ("pc", "q35", "virt")}.get(drive.bus or "", (*_X86, "virt"))
        used[f"params.cdroms[{index}].bus"] = (families, True)
    if definition.disks or definition.storage.cdroms:
        needs_pci = definition.storage.scsi_controller != "virtio-scsi" and family == "microvm"
        used["params.scsi_controller"] = (("pc", "q35", "virt"), needs_pci)
    for nic in definition.nics:
        model = nic.parameters.model
        used[f"{nic.origin}.params.model"] = (("pc", "q35", "virt"), model != "virtio-net")
        used[f"{nic.origin}.params.failover"] = (("q35", "virt"), nic.parameters.failover is not None)
        used[f"{nic.origin}.params.acpi_index"] = (("pc", "q35"), nic.parameters.acpi_index is not None)
    for path, (families, wanted) in used.items():
        if wanted and family not in families:
            message = f"machine {definition.wanted_machine} has none"
            hint = f"it is there on {', '.join(families)}" if families else None
            yield Finding(code="not-on-machine", path=path, message=message, hint=hint)
    if boot.firmware_image is not None and family == "virt":
        yield _wrong("params.firmware_image", "replaces the BIOS of x86", "use firmware_code")


def _wrong(path: str, message: str, hint: str | None = None) -> Finding:
    return Finding(code="contradiction", path=path, message=message, hint=hint)
