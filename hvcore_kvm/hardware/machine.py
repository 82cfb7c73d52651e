"""The machine: its type, accelerator, processors, firmware, boot, and what it does when the guest ends."""

from __future__ import annotations

import functools
import os
from typing import Any

from hvcore_kvm.accelerator import Accelerator
from hvcore_kvm.command_line import Option, flag, json_option, keyed, word
from hvcore_kvm.confidential import OBJECTS
from hvcore_kvm.cpu_model import cpu_value
from hvcore_kvm.directory import CONTROL, EVENTS, QUERY
from hvcore_kvm.extra_arguments import split_extra_arguments
from hvcore_kvm.families import FdRequest
from hvcore_kvm.firmware import Firmware
from hvcore_kvm.hardware.builder import Builder
from hvcore_kvm.hardware.memory import has_backend
from hvcore_kvm.images import ImageFile, open_image
from hvcore_kvm.parameters.confidential import AMD, FROZEN, policy_of
from hvcore_kvm.placement import root_port
from hvcore_kvm.unprivileged import KVM

_DENIED = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")


def add_machine(builder: Builder) -> None:
    """Add what the whole machine is."""
    d, definition = builder.decisions, builder.definition
    machine, instance = definition.machine, definition.instance
    builder.add(
        keyed("name", None, {"guest": instance.name, "debug-threads": True}, origin="name"),
        flag("nodefaults"),
        flag("no-user-config"),
        word("display", "none"),
        keyed("machine", d.machine, _machine_values(builder), origin="params.machine"),
        _accelerator(builder),
        keyed("cpu", *cpu_value(d), origin="params.cpu_model"),
        keyed("smp", None, _smp(builder), origin="vcpus"),
        word("uuid", instance.uuid or "", origin="uuid"),
    )
    actions = {
        "reboot": "shutdown" if machine.on_reboot == "shutdown" else "reset",
        "panic": machine.on_panic,
        "watchdog": definition.devices.watchdog_action,
    }
    builder.add(keyed("action", None, actions, origin="params.on_panic"))
    if machine.sandbox:
        builder.add(keyed("sandbox", "on", dict.fromkeys(_DENIED, "deny"), origin="params.sandbox"))
    if machine.chroot:
        root = builder.join("root")
        if "chroot" in builder.capabilities.options.get("run-with", ()):
            builder.add(keyed("run-with", None, {"chroot": root}, origin="params.chroot"))
        else:
            builder.add(word("chroot", root, origin="params.chroot"))
    fix = "slew" if machine.rtc_driftfix else None
    builder.add(keyed("rtc", None, {"base": machine.rtc_base, "driftfix": fix}, origin="params.rtc_base"))
    if machine.smbios:
        builder.add(keyed("smbios", None, {"type": 1, **dict(sorted(machine.smbios.items()))}, origin="params.smbios"))
    for text in machine.smbios_oem:
        builder.add(keyed("smbios", None, {"type": 11, "value": text}, origin="params.smbios_oem"))
    for name, text in sorted(machine.fw_cfg.items()):
        builder.add(keyed("fw_cfg", None, {"name": name, "string": text}, origin="params.fw_cfg"))
    if machine.iommu == "intel":
        kvm = d.choice.accelerator is Accelerator.KVM
        values = {"driver": "intel-iommu", "id": "iommu0", "intremap": "on" if kvm else "off"}
        builder.add(json_option("device", values, origin="params.iommu"))
    elif machine.iommu == "virtio":
        builder.device("virtio-iommu-pci", "iommu0", origin="params.iommu")
    if machine.vmgenid:
        builder.add(
            json_option("device", {"driver": "vmgenid", "id": "vmgenid0", "guid": "auto"}, origin="params.vmgenid")
        )


def _machine_values(builder: Builder) -> dict[str, Any]:
    definition, family = builder.definition, builder.family
    values: dict[str, Any] = {}
    if not definition.machine.acpi:
        values["acpi"] = False
    if family in ("pc", "q35"):
        values["hpet"] = definition.machine.hpet
    if definition.machine.iommu == "smmuv3":
        values["iommu"] = "smmuv3"
    if not has_backend(definition):
        values["mem-merge"] = definition.memory.memory_merge
        values["dump-guest-core"] = definition.memory.memory_dump
    elif not definition.memory.numa:
        values["memory-backend"] = "mem0"
    firmware = builder.decisions.firmware
    if firmware is not None and firmware.kind == "flash":
        values |= {"pflash0": "firmware-code", "pflash1": "firmware-vars"}
        if firmware.secure and family == "q35":
            values["smm"] = True
    kind = definition.confidential.confidential
    if kind != "none":
        values["confidential-guest-support"] = "confidential0"
        if kind in FROZEN:
            # It would need the state of the guest's processors.
            values["smm"] = False
    return values


def _accelerator(builder: Builder) -> Option:
    choice = builder.decisions.choice
    values = {}
    definition = builder.definition
    tdx = definition.confidential.confidential == "tdx"
    if choice.accelerator is Accelerator.KVM:
        builder.reads(KVM)
    if choice.accelerator is Accelerator.KVM and (definition.machine.iommu == "intel" or tdx):
        # Interrupt remapping happens in QEMU, so the interrupt controllers it concerns have to be there too; a guest
        # of TDX has no others.
        values["kernel-irqchip"] = "split"
    return keyed("accel", choice.accelerator.value, values, origin="params.accel")


def _smp(builder: Builder) -> dict[str, Any]:
    definition = builder.definition
    topology = definition.cpu.topology
    values: dict[str, Any] = {
        "cpus": definition.instance.vcpus,
        "maxcpus": definition.cpu.vcpus_max or definition.instance.vcpus,
    }
    if topology is not None:
        for name in ("sockets", "dies", "clusters", "cores", "threads"):
            values[name] = getattr(topology, name)
    return values


def add_root_ports(builder: Builder) -> None:
    """Add the PCI Express root ports, eight to a slot."""
    for index in range(builder.ports):
        builder.device(
            "pcie-root-port",
            root_port(index),
            {"chassis": index + 1},
            uuid=f"driver/ports{index // 8}",
            function=index % 8,
            origin="params.hotplug_ports",
        )


def add_monitors(builder: Builder) -> None:
    """Add the monitors: for commands, for questions, and the one that writes down events."""
    for name in (CONTROL, QUERY):
        chardev = {"id": name, "fd": builder.listen(name), "server": True, "wait": False}
        builder.add(keyed("chardev", "socket", chardev), keyed("mon", None, {"chardev": name, "mode": "control"}))
    directory = builder.directory
    events = FdRequest(
        name=EVENTS, purpose="file QEMU appends its events to", open=lambda: directory.append_only(EVENTS)
    )
    path = builder.fdset(events, "driver")
    # A monitor on a null device never sees a client, needs no handshake, and logs every event.
    builder.add(
        keyed("chardev", "null", {"id": EVENTS, "logfile": path, "logappend": True}),
        keyed("mon", None, {"chardev": EVENTS, "mode": "control"}),
    )


def add_boot(builder: Builder) -> None:
    """Add firmware, kernel and boot options."""
    boot = builder.definition.boot
    for name, option in (
        ("kernel", "kernel"),
        ("initrd", "initrd"),
        ("cmdline", "append"),
        ("dtb", "dtb"),
        ("firmware_image", "bios"),
    ):
        value = getattr(boot, name)
        if value is not None:
            builder.add(word(option, value, origin=f"params.{name}"))
            if name != "cmdline":
                builder.reads(value)
    firmware = builder.decisions.firmware
    if firmware is not None and firmware.kind == "flash":
        _add_flash(builder, firmware)
    elif firmware is not None:
        builder.add(word("bios", firmware.code, origin="params.firmware"))
        builder.reads(firmware.code)
        if firmware.kind == "store":
            _add_store(builder, firmware)
    if builder.definition.confidential.confidential != "none":
        _add_confidential(builder)
    splash = round(boot.boot_splash * 1000) or None
    menu = {"menu": True} if boot.boot_menu else {}
    builder.add(keyed("boot", None, {**menu, "splash-time": splash, "strict": boot.boot_strict}, origin="params.boot"))


def _add_flash(builder: Builder, firmware: Firmware) -> None:
    kept = os.path.join(builder.directory.data_path, firmware.variables or "")
    for node, path, read_only in (("firmware-code", firmware.code, True), ("firmware-vars", kept, False)):
        file = ImageFile(path=path, format="raw", where="params.firmware", read_only=read_only)
        access = "read-only" if read_only else "read-write"
        request = FdRequest(name=node, purpose=f"{path}, {access}", open=functools.partial(open_image, file))
        source = {"driver": "file", "filename": builder.fdset(request, "params.firmware"), "read-only": read_only}
        values = {"driver": "raw", "node-name": node, "read-only": read_only, "file": source}
        builder.add(json_option("blockdev", values, origin="params.firmware"))
    if firmware.secure and builder.family == "q35":
        for setting in (
            # Only code in system management mode may change the variables.
            {"driver": "cfi.pflash01", "property": "secure", "value": "on"},
            {"driver": "ICH9-LPC", "property": "disable_s3", "value": "1"},
        ):
            builder.add(keyed("global", None, setting, origin="params.firmware"))


def _add_store(builder: Builder, firmware: Firmware) -> None:
    origin = "params.uefi_vars_json"
    kept = os.path.join(builder.directory.data_path, firmware.variables or "")
    file = ImageFile(path=kept, format="raw", where=origin, read_only=False)
    request = FdRequest(name="uefi-vars", purpose=f"{kept}, read-write", open=functools.partial(open_image, file))
    values: dict[str, Any] = {"driver": "uefi-vars-x64", "id": "uefi-vars0", "jsonfile": builder.fdset(request, origin)}
    if firmware.secure:
        values["force-secure-boot"] = True
    builder.add(json_option("device", values, origin=origin))


def _add_confidential(builder: Builder) -> None:
    given = builder.definition.confidential
    values: dict[str, Any] = {"qom-type": OBJECTS[given.confidential][0], "id": "confidential0"}
    if given.confidential in AMD:
        # The encryption bit is one address bit less for the guest.
        values |= {"cbitpos": builder.decisions.encryption_bit, "reduced-phys-bits": 1}
        policy = policy_of(given)
        if policy is not None:
            values["policy"] = policy
        if given.confidential_kernel_hashes:
            values["kernel-hashes"] = True
    builder.add(json_option("object", values, origin="params.confidential"))


def add_extra_arguments(builder: Builder) -> None:
    """Add the options of the escape hatch."""
    for name, *words in split_extra_arguments(builder.definition.machine.extra_args):
        option = Option(name=name.removeprefix("-"), form="raw", value=tuple(words), origin="params.extra_args")
        builder.add(option)
