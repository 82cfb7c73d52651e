"""From an instance to Ganeti's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from hvcore import (
    AutoConverge,
    Disk,
    Finding,
    FindingSet,
    Instance,
    MigrationPolicy,
    MultiFd,
    Nic,
    read_definition,
)
from hvcore_kvm.ganeti.cpu_type import CpuType
from hvcore_kvm.ganeti.inexpressible import ANYTHING, NEUTRAL
from hvcore_kvm.ganeti.kernel_command_line import KernelCommandLine
from hvcore_kvm.ganeti.own_parameters import device_values, read_section
from hvcore_kvm.ganeti.reading import GanetiParameters, Values
from hvcore_kvm.ganeti.table import backend_defaults, hypervisor_defaults
from hvcore_kvm.ganeti.translation import Unplaced, lossy, note
from hvcore_kvm.ganeti.vocabulary import (
    ACCEL,
    BOOT,
    CDROM_BUS,
    DEFAULT_CPU,
    DEFAULT_MACHINE,
    DISK_BUS,
    INHERITED_CDROM_BUS,
    NIC_MODE,
    NIC_MODEL,
    REBOOT,
    SCSI_CONTROLLER,
    SHARED_TEMPLATES,
    SOUND,
    SPICE_IP_VERSION,
    SPICE_TEXTS,
    USB_DEVICES,
)
from hvcore_kvm.parameters.confidential import ConfidentialParameters
from hvcore_kvm.parameters.cpu import CpuParameters
from hvcore_kvm.parameters.devices import DeviceParameters
from hvcore_kvm.parameters.disk import DiskParameters, StorageParameters
from hvcore_kvm.parameters.machine import BootParameters, MachineParameters
from hvcore_kvm.parameters.memory import MemoryParameters
from hvcore_kvm.parameters.nic import NicParameters

_MIB = 2**20
_SIZE_STEP = 4

_OWN_VNC = ("bind_address", "port", "tls", "x509_path", "x509_verify", "password_file")
_OWN_SPICE = (
    *("bind_address", "port", "ip_version", "tls", "x509_path", "playback_compression", "agent"),
    *SPICE_TEXTS.values(),
)
# Where Ganeti has no such device, the nearest it has.
_SOME_DIRECTORY = "/run"
_NEAREST_DISK_TYPE = {"nvme": "paravirtual", "usb": "paravirtual", "sata": "ide"}
_NEAREST_NIC_TYPE = {"e1000e": "e1000", "vmxnet3": "e1000", "usb-net": "e1000"}
_NEAREST_CACHE = {"directsync": "none", "unsafe": "default", "writeback": "default"}
_NEAREST_SOUND = {"hda": "hda", "usb": ""}
_NEAREST_VGA = {"virtio-gpu": "virtio", "bochs": "std", "ramfb": "std"}


def from_instance(
    instance: Instance,
    *,
    migration: MigrationPolicy | None = None,
    migration_port: int = 8102,
    migration_capabilities: Sequence[str] = (),
    network_port: int | None = None,
    unplaced: Mapping[str, Unplaced] | None = None,
) -> GanetiParameters:
    """Say an instance in Ganeti's words; what cannot be said is a finding with code ``lossy``, never an exception.

    Args:
        instance: the definition. What is wrong with it is among the findings.
        migration: how it is to be moved; hvcore's defaults when not given.
        migration_port: the port that Ganeti is to migrate to.
        migration_capabilities: what is to be switched on in QEMU for a migration.
        network_port: TCP port of the graphical console; that of the instance when not given.
        unplaced: of the translation the instance comes from: restores what it does not say, where it has not been
            changed since.
    """
    return _Way(instance, unplaced or {}).back(
        migration or MigrationPolicy(), migration_port, migration_capabilities, network_port
    )


class _Way:
    """One way back: the values gathered so far, and what was lost."""

    def __init__(self, instance: Instance, unplaced: Mapping[str, Unplaced]) -> None:
        self.instance, wrong = read_definition(instance)
        self.unplaced = unplaced
        self.findings: list[Finding] = list(wrong)
        self.hv: Values = hypervisor_defaults()
        self.params = self.instance.params

    def back(
        self, migration: MigrationPolicy, port: int, capabilities: Sequence[str], network_port: int | None
    ) -> GanetiParameters:
        self._machine()
        self._cpu()
        self._devices()
        vnc_port, spice_port = self._vnc(), self._spice()
        disks = self._disks()
        self._boot_and_drives()
        nics = self._nics()
        self._security()
        self._migration(migration, capabilities)
        self.hv["migration_port"] = port
        for console in self.instance.consoles:
            if console not in ("serial", "vnc", "spice"):
                self._lost("consoles", f"there is no console {console}")
        be = self._backend()
        port_known = network_port if network_port is not None else vnc_port if vnc_port is not None else spice_port
        hv, be, nics, disks = self._with_unplaced(be, nics, disks)
        return GanetiParameters(
            hvparams=hv,
            beparams=be,
            nics=tuple(nics),
            disks=tuple(disks),
            network_port=port_known,
            findings=FindingSet(self.findings),
        )

    def _lost(self, path: str, message: str) -> None:
        self.findings.append(lossy(path, message))

    def _section(self, fields: type, values: Any, path: str) -> Any:
        """The record of a section; what Ganeti has no word for is found lost."""
        record: Any
        record, wrong = read_section(fields, values, path)
        self.findings += wrong
        for name, accepted in NEUTRAL[fields].items():
            value = getattr(record, name)
            if ANYTHING not in accepted and value not in accepted:
                self._lost(f"{path}.{name}", f"{_words(value)} cannot be said in Ganeti")
        return record

    def _machine(self) -> None:
        machine = self._section(MachineParameters, self.params, "params")
        self._section(ConfidentialParameters, self.params, "params")
        kind = machine.machine
        if kind is None:
            self._lost("params.machine", "q35, which is meant when none is given, does not start in Ganeti")
        elif "q35" in kind or kind.startswith(("virt", "microvm")):
            self._lost("params.machine", f"{kind} does not start in Ganeti")
        if machine.qemu is None:
            self.findings.append(note("params.qemu", "is not given; leave kvm_path to the cluster's default"))
        self.hv |= {
            "kvm_path": machine.qemu or "",
            "machine_version": "" if kind in (None, DEFAULT_MACHINE) else kind,
            "kvm_flag": _reverse(ACCEL)[machine.accel],
            "acpi": machine.acpi,
            "kvm_pci_reservations": machine.pci_reservations,
            "reboot_behavior": _reverse(REBOOT)[machine.on_reboot],
            "use_localtime": machine.rtc_base == "localtime",
            "use_chroot": machine.chroot,
            "kvm_extra": machine.extra_args,
        }

    def _cpu(self) -> None:
        cpu = self._section(CpuParameters, self.params, "params")
        model = cpu.cpu_model
        if model is None:
            model = "host" if self.hv["kvm_flag"] != "disabled" else "max"
        if model.startswith("x86-64-v"):
            self._lost("params.cpu_model", f"{model} is a level that QEMU has no model for")
            model = DEFAULT_CPU
        enforce = cpu.cpu_enforce and model not in ("host", "max")
        text = str(CpuType(model=model, features=cpu.cpu_features, enforce=enforce))
        self.hv["cpu_type"] = "" if text == DEFAULT_CPU else text
        self.hv["cpu_mask"] = cpu.cpu_pin or "all"
        topology = cpu.topology
        for name in ("sockets", "cores", "threads"):
            self.hv[f"cpu_{name}"] = (getattr(topology, name) if topology is not None else None) or 0
        for name in ("dies", "clusters"):
            if topology is not None and getattr(topology, name) is not None:
                self._lost(f"params.topology.{name}", "Ganeti knows sockets, cores and threads")

    def _backend(self) -> Values:
        memory = self._section(MemoryParameters, self.params, "params")
        high = self._mebibytes("memory", self.instance.memory)
        low = high if memory.memory_min is None else self._mebibytes("params.memory_min", memory.memory_min)
        self.hv["mem_path"] = memory.memory_path or ""
        if memory.memory_backend == "memfd" or (memory.memory_backend == "hugepages" and memory.memory_path is None):
            self._lost("params.memory_backend", f"{memory.memory_backend} without a path cannot be said in Ganeti")
        if memory.memory_prealloc not in (None, memory.memory_path is not None):
            self._lost("params.memory_prealloc", "in Ganeti that is so exactly with mem_path")
        return {**backend_defaults(), "maxmem": high, "minmem": low, "vcpus": self.instance.vcpus}

    def _mebibytes(self, path: str, size: int) -> int:
        step = _SIZE_STEP * _MIB
        if size % step:
            self._lost(path, f"{size} bytes is not a multiple of {_SIZE_STEP} MiB, and is rounded up")
        return -(-size // step) * _SIZE_STEP

    def _devices(self) -> None:
        devices = self._section(DeviceParameters, self.params, "params")
        spice = "spice" in self.instance.consoles
        graphical = spice or "vnc" in self.instance.consoles
        card = devices.display_device or ("qxl" if spice else "std" if graphical else "none")
        if card in _NEAREST_VGA:
            self._lost("params.display_device", f"Ganeti has no {card}; the nearest is {_NEAREST_VGA[card]}")
            card = _NEAREST_VGA[card]
        pointer = devices.pointer or ("tablet" if graphical else "none")
        usual = "tablet" if "vnc" in self.instance.consoles else "none"
        if pointer == "none" != usual:
            self._lost("params.pointer", "Ganeti always adds a tablet with VNC")
            pointer = usual
        sound = _reverse(SOUND).get(devices.sound, "")
        if devices.sound in _NEAREST_SOUND:
            sound = _NEAREST_SOUND[devices.sound]
            self._lost("params.sound", f"Ganeti has no {devices.sound}; the nearest is {sound or 'none'}")
        self.hv |= {
            "vga": "" if card == ("qxl" if spice else "std") else card,
            "keymap": devices.keymap or "",
            "usb_mouse": "" if pointer == usual else pointer,
            "usb_devices": ",".join(device.type for device in devices.usb if device.type in USB_DEVICES),
            "soundhw": sound,
            "use_guest_agent": devices.guest_agent,
            "serial_console": "serial" in self.instance.consoles,
        }
        for index, device in enumerate(devices.usb):
            if device.type not in USB_DEVICES:
                self._lost(f"params.usb[{index}]", f"{device.type} cannot be said in Ganeti")

    def _plugin(self, name: str, known: Sequence[str]) -> Mapping[str, Any] | None:
        """The values of a console type that the instance has."""
        if name not in self.instance.consoles:
            return None
        given = self.params.get(name, {})
        given = given if isinstance(given, Mapping) else {}
        for key, value in given.items():
            if key not in known and value not in (None, False, ()):
                self._lost(f"params.{name}.{key}", f"{_words(value)} cannot be said in Ganeti")
        return given

    def _vnc(self) -> int | None:
        vnc = self._plugin("vnc", _OWN_VNC)
        if vnc is None:
            return None
        address = _text(vnc, "bind_address")
        if not address:
            # Ganeti's parameter needs some directory; a translation knows which it was.
            address = _SOME_DIRECTORY
            if "hvparams.vnc_bind_address" not in self.unplaced:
                self._lost("params.vnc", f"VNC on a socket needs a directory in Ganeti; {address} is taken")
        tls = _text(vnc, "tls") or "none"
        self.hv |= {
            "vnc_bind_address": address,
            "vnc_tls": tls != "none",
            "vnc_x509_path": _text(vnc, "x509_path") if tls == "x509" else "",
            "vnc_x509_verify": tls == "x509" and vnc.get("x509_verify") is True,
            "vnc_password_file": _text(vnc, "password_file"),
        }
        return _port(vnc)

    def _spice(self) -> int | None:
        spice = self._plugin("spice", _OWN_SPICE)
        if spice is None:
            return None
        if "vnc" in self.instance.consoles:
            self._lost("consoles", "Ganeti allows one of VNC and SPICE at a time; SPICE is left out")
            return None
        address = _text(spice, "bind_address")
        if not address:
            self._lost("params.spice", "SPICE on a socket cannot be said in Ganeti; it is left out")
            return None
        tls = spice.get("tls") is True
        self.hv |= {
            "spice_bind": address,
            "spice_ip_version": _reverse(SPICE_IP_VERSION).get(_text(spice, "ip_version"), 0),
            "spice_use_tls": tls,
            "spice_playback_compression": spice.get("playback_compression") is not False,
            "spice_use_vdagent": spice.get("agent") is not False,
        }
        for name, place in SPICE_TEXTS.items():
            if name != "spice_tls_ciphers" or tls:
                self.hv[name] = _text(spice, place)
        return _port(spice)

    def _boot_and_drives(self) -> None:
        storage = self._section(StorageParameters, self.params, "params")
        controller = _reverse(SCSI_CONTROLLER).get(storage.scsi_controller)
        if controller is None:
            self._lost("params.scsi_controller", f"Ganeti has no {storage.scsi_controller}; the nearest is lsi")
        self.hv["scsi_controller_type"] = controller or "lsi"
        self.hv["floppy_image_path"] = storage.floppy or ""
        drives = storage.cdroms[: len(storage.cdroms) - len(self._cdrom_disks())]
        for index, drive in enumerate(drives):
            if index > 1:
                self._lost(f"params.cdroms[{index}]", "Ganeti has two CD-ROM drives")
            elif drive.path is None and drive.url is None:
                self._lost(f"params.cdroms[{index}]", "Ganeti has no empty CD-ROM drive")
            else:
                self.hv["cdrom_image_path" if index == 0 else "cdrom2_image_path"] = drive.path or drive.url
        self._drive_bus([drive.bus for drive in drives[:2] if drive.path or drive.url])
        self._boot([drive.path or drive.url for drive in drives])

    def _drive_bus(self, buses: Sequence[str | None]) -> None:
        if not buses:
            return
        # Not given is what the machine has, and that is IDE on those of Ganeti.
        wanted = ["ide" if bus in (None, "sata") else bus for bus in buses]
        if len(set(wanted)) > 1:
            self._lost("params.cdroms[1].bus", "both drives are on one bus in Ganeti")
        bus = wanted[0]
        kind = _reverse(CDROM_BUS).get(bus)
        if kind is None:
            self._lost("params.cdroms[0].bus", f"Ganeti has no CD-ROM drive on {bus}")
            kind = "ide"
        self.hv["cdrom_disk_type"] = "" if INHERITED_CDROM_BUS.get(self.hv["disk_type"]) == bus else kind

    def _boot(self, images: Sequence[str | None]) -> None:
        boot = self._section(BootParameters, self.params, "params")
        if boot.kernel is not None:
            self._kernel(boot)
            return
        first = re.sub(r"\[0\]$", "", boot.boot[0]) if boot.boot else "disks"
        kind = _reverse(BOOT).get(first)
        if kind is None:
            self._lost("params.boot", f"{first} cannot be said in Ganeti, which knows kinds of devices")
            kind = _reverse(BOOT).get(first.partition("[")[0], "disk")
        elif len(boot.boot) > 1 and not (boot.boot[1:] == ("cdroms",) and not images):
            self._lost("params.boot", f"after {first} the firmware decides in Ganeti")
        self.hv["boot_order"] = kind

    def _kernel(self, boot: BootParameters) -> None:
        serial = "serial" in self.instance.consoles
        line = KernelCommandLine.parse(boot.cmdline or "", serial=serial)
        if line.root is None:
            self._lost("params.cmdline", "does not begin with root=, and Ganeti wants a root device with a kernel")
        if serial and line.speed is None:
            self._lost("params.cmdline", "does not end with console=ttyS0,SPEED, and Ganeti adds that")
        self.hv |= {
            "kernel_path": boot.kernel,
            "initrd_path": boot.initrd or "",
            "root_path": line.root,
            "kernel_args": line.arguments,
        }
        if line.speed is not None:
            self.hv["serial_speed"] = line.speed

    def _cdrom_disks(self) -> list[str]:
        """Paths of the disks that were made CD-ROM drives, if this comes from such a translation."""
        kind = self.unplaced.get("hvparams.disk_type")
        if kind is None or kind.given != "scsi-cd" or self.instance.disks:
            return []
        count = len({path.partition(".")[0] for path in self.unplaced if path.startswith("disks[")})
        given = self.params.get("cdroms", ())
        return [f"disks[{index}]" for index in range(min(count, len(given)))]

    def _disks(self) -> list[Values]:
        disks = []
        records: list[DiskParameters] = []
        for index, disk in enumerate(self.instance.disks):
            path = f"disks[{index}]"
            values = device_values(self.instance, "disk", disk.params)
            record = self._section(DiskParameters, values, f"{path}.params")
            records.append(record)
            disks.append(self._disk(disk, path))
        if not records:
            values = device_values(self.instance, "disk", {})
            records = [self._section(DiskParameters, values, "params.disk")] if values else []
        if records:
            self._disk_type([record.bus for record in records])
            # Those whose cache mode was decided by their template say nothing about that of the instance.
            own = [r for i, r in enumerate(records) if not self._is_shared(i)] or records
            for field, name in (("cache", "disk_cache"), ("aio", "disk_aio"), ("discard", "disk_discard")):
                self.hv[name] = self._common(field, [getattr(record, field) for record in own])
            cache = self.hv["disk_cache"]
            if cache in ("directsync", "unsafe"):
                self._lost("disks[0].params.cache", f"Ganeti has no {cache}; the nearest is {_NEAREST_CACHE[cache]}")
            self.hv["disk_cache"] = _NEAREST_CACHE.get(cache, cache)
        return disks

    def _is_shared(self, index: int) -> bool:
        kind = self.unplaced.get(f"disks[{index}].dev_type")
        return kind is not None and kind.given in SHARED_TEMPLATES

    def _common(self, field: str, values: Sequence[Any]) -> Any:
        for index, value in enumerate(values):
            if value != values[0]:
                self._lost(f"disks[{index}].params.{field}", "is the same for all disks in Ganeti")
        return values[0]

    def _disk_type(self, buses: Sequence[str]) -> None:
        bus = self._common("bus", buses)
        kind = _reverse(DISK_BUS).get(bus)
        if kind is None:
            kind = _NEAREST_DISK_TYPE[bus]
            if bus != "sata" or "q35" not in self.hv["machine_version"]:
                self._lost("disks[0].params.bus", f"Ganeti has no {bus}; the nearest is {kind}")
        self.hv["disk_type"] = kind

    def _disk(self, disk: Disk, path: str) -> Values:
        if disk.format != "raw":
            self._lost(f"{path}.format", f"{disk.format} cannot be said in Ganeti, whose disks are raw")
        return {
            "uuid": disk.uuid,
            "name": disk.name,
            "provider": None,
            "dev_type": _template(disk),
            "size": None,
            "mode": "ro" if disk.read_only else "rw",
            "path": disk.path,
            "uri": disk.uri,
            "access": "kernelspace" if disk.uri is None else "userspace",
        }

    def _nics(self) -> list[Values]:
        records: list[NicParameters] = []
        nics = []
        for index, nic in enumerate(self.instance.nics):
            path = f"nics[{index}]"
            values = device_values(self.instance, "nic", nic.params)
            records.append(self._section(NicParameters, values, f"{path}.params"))
            nics.append(self._nic(nic, path))
        if not records:
            values = device_values(self.instance, "nic", {})
            records = [self._section(NicParameters, values, "params.nic")] if values else []
        for index, record in enumerate(records):
            if attrs.astuple(record, filter=_shared_nic_fields) != attrs.astuple(records[0], filter=_shared_nic_fields):
                self._lost(f"nics[{index}].params", "model, queues, vhost and vnet_hdr are the same for all in Ganeti")
        if records:
            self._nic_type(records[0])
        return nics

    def _nic_type(self, record: NicParameters) -> None:
        kind = _reverse(NIC_MODEL).get(record.model)
        if kind is None:
            kind = _NEAREST_NIC_TYPE[record.model]
            self._lost("nics[0].params.model", f"Ganeti has no {record.model}; the nearest is {kind}")
        self.hv["nic_type"] = kind
        if kind == "paravirtual":
            self.hv |= {
                "vhost_net": True if record.vhost is None else record.vhost,
                "virtio_net_queues": record.queues,
                "vnet_hdr": record.vnet_hdr,
            }

    def _nic(self, nic: Nic, path: str) -> Values:
        mode = _reverse(NIC_MODE).get(nic.mode)
        if mode is None:
            self._lost(f"{path}.mode", f"Ganeti has no mode {nic.mode}; ext leaves it to a script")
        return {
            "name": nic.name,
            "uuid": nic.uuid,
            "ip": nic.ip,
            "network": None,
            "netinfo": None,
            "mode": mode or "ext",
            "link": nic.link or "",
            "vlan": _text(nic.params, "vlan"),
            "mac": nic.mac.lower() if nic.mac is not None else None,
        }

    def _security(self) -> None:
        model = self.instance.security_model or "none"
        if model not in ("none", "user", "pool"):
            self._lost("security_model", f"Ganeti has no {model}")
            model = "none"
        self.hv["security_model"] = model
        user = self.params.get("user", {})
        if model == "user" and isinstance(user, Mapping):
            self.hv["security_domain"] = _text(user, "name")

    def _migration(self, policy: MigrationPolicy, capabilities: Sequence[str]) -> None:
        wanted = {
            "postcopy-ram": policy.live and policy.going_over_early is not None,
            "postcopy-preempt": policy.postcopy is not None and policy.postcopy.preempt,
            "auto-converge": policy.live and policy.throttling is not None,
            "multifd": policy.multifd is not None,
            "pause-before-switchover": policy.switchover == "paused",
            "switchover-ack": policy.switchover == "ack",
            "zero-copy-send": policy.zero_copy,
            "dirty-limit": policy.dirty_limit is not None,
        }
        capabilities = [*capabilities, *(name for name in wanted if wanted[name] and name not in capabilities)]
        bandwidth = policy.max_bandwidth or 0
        if bandwidth % _MIB:
            self._lost("migration.max_bandwidth", f"{bandwidth} bytes a second is no whole number of MiB")
        self.hv |= {
            "migration_bandwidth": -(-bandwidth // _MIB),
            "migration_downtime": round(policy.downtime_limit * 1000),
            "migration_mode": "live" if policy.live else "non-live",
            "migration_caps": ":".join(capabilities),
        }
        if policy.tls is not None:
            self.findings.append(note("migration.tls", "Ganeti sends the guest's memory unencrypted"))
        if policy.on_no_convergence == "cancel":
            self._lost("migration.on_no_convergence", "Ganeti never cancels by itself")
        usual = MigrationPolicy()
        for name in ("deadline", "converge_within", "downtime_maximum", "dirty_limit", "first_port", "last_port"):
            if getattr(policy, name) != getattr(usual, name):
                self._lost(f"migration.{name}", "Ganeti has no word for it")
        if policy.auto_converge not in (None, AutoConverge()):
            self._lost("migration.auto_converge", "Ganeti has QEMU slow the guest down as it thinks best")
        if policy.postcopy is not None and policy.postcopy.after_passes not in (None, 2):
            self._lost("migration.postcopy.after_passes", "Ganeti lets the guest go over after the second pass")
        if policy.multifd not in (None, MultiFd()):
            self._lost("migration.multifd", "Ganeti uses QEMU's two channels, without compression")

    def _with_unplaced(
        self, be: Values, nics: list[Values], disks: list[Values]
    ) -> tuple[Values, Values, list[Values], list[Values]]:
        """Restore what an instance does not say, unless what it says in its place has been changed."""
        disks = [*disks, *({} for _ in self._cdrom_disks())]
        groups: dict[str, Values] = {"hvparams": self.hv, "beparams": be}
        groups |= {f"nics[{index}]": nic for index, nic in enumerate(nics)}
        groups |= {f"disks[{index}]": disk for index, disk in enumerate(disks)}
        for path, value in self.unplaced.items():
            group, _, name = path.partition(".")
            if group in groups and groups[group].get(name) == value.returned:
                groups[group][name] = value.given
        return self.hv, be, nics, disks


def _text(values: Mapping[str, Any], name: str) -> str:
    """Text of a plugin's parameter; whether it is right is the plugin's business."""
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _port(values: Mapping[str, Any]) -> int | None:
    value = values.get("port")
    return value if type(value) is int else None


def _template(disk: Disk) -> str:
    """The likeliest template; a translation knows which it was."""
    if disk.uri is not None:
        return {"rbd": "rbd", "gluster": "gluster"}.get(disk.uri.partition(":")[0], "ext")
    return "plain" if disk.path is None or disk.path.startswith("/dev/") else "file"


def _shared_nic_fields(field: attrs.Attribute[Any], _: Any) -> bool:
    return field.name in ("model", "queues", "vhost", "vnet_hdr")


def _reverse(words: Mapping[Any, Any]) -> dict[Any, Any]:
    return {value: key for key, value in reversed(list(words.items()))}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "what is taken when it is not given"
    return repr(value)[:40] if isinstance(value, str | int | float) else "this"
