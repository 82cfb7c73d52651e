"""From a checked definition to everything a start needs, as data; touching nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Plan, PlannedFd, PlannedOption
from hvcore_kvm import process
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.command_line import Option, flag, json_option, keyed, word
from hvcore_kvm.definition import Definition, DiskDefinition, NicDefinition
from hvcore_kvm.directory import CONTROL, EVENTS, QUERY, InstanceDirectory
from hvcore_kvm.families import ConsoleContext, FdRequest, NicContext, NicPlan, SecurityPlan
from hvcore_kvm.images import Image, open_image
from hvcore_kvm.placement import Place
from hvcore_kvm.runtime import Placement

_MIB = 2**20
_CACHE = {
    # mode: the guest sees a write cache, direct I/O, flushes are ignored
    "none": ("on", True, False),
    "writeback": ("on", False, False),
    "writethrough": ("off", False, False),
    "directsync": ("off", True, False),
    "unsafe": ("on", False, True),
}
_NIC_DEVICES = {"virtio-net": "virtio-net-pci"}
PANIC_UUID = "driver/panic"
RNG_UUID = "driver/rng"
BALLOON_UUID = "driver/balloon"


@attrs.frozen(kw_only=True)
class Decisions:
    """What was decided for a start, from the definition, the program and the host."""

    definition: Definition
    capabilities: QemuCapabilities
    machine: str
    choice: Choice
    images: Mapping[str, Image]
    places: Mapping[str, Place]
    placement: Placement

    @property
    def cpu_model(self) -> str:
        """The CPU model: the one asked for, else all of what the accelerator offers."""
        kvm = self.choice.accelerator is Accelerator.KVM
        return self.definition.cpu.cpu_model or ("host" if kvm else "max")


@attrs.frozen(kw_only=True)
class LaunchPlan:
    """Everything a start needs.

    Attributes:
        decisions: what it follows from.
        options: QEMU's command line.
        fds: descriptors QEMU inherits, the first as number 3.
        nics: how each NIC is connected.
        security: how the process is confined.
        paused: the guest stays paused.
    """

    decisions: Decisions
    options: tuple[Option, ...]
    fds: tuple[FdRequest, ...]
    nics: tuple[tuple[NicDefinition, NicPlan], ...]
    security: SecurityPlan
    paused: bool

    @property
    def argv(self) -> tuple[str, ...]:
        """QEMU's argument list."""
        return (self.decisions.capabilities.path, *(w for option in self.options for w in option.words))

    def public(self) -> Plan:
        """The plan as hvcore hands it out."""
        d = self.decisions
        steps = [
            "make the instance's directory, write down what was decided",
            *(f"{step.name} (security model)" for step in self.security.steps),
            *(f"{step.name} (NIC)" for _, nic in self.nics for step in nic.up),
            "open descriptors: " + ", ".join(request.name for request in self.fds),
            "start QEMU, paused, in a session of its own",
            "write down its process, its places and that it was started",
            "wait for its monitor",
            *([] if self.paused else ["let the guest run"]),
        ]
        return Plan(
            name=d.definition.name,
            program=d.capabilities.path,
            options=tuple(PlannedOption(words=option.words, origin=option.origin) for option in self.options),
            environment=tuple(sorted(process.ENVIRONMENT.items())),
            fds=tuple(
                PlannedFd(number=process.FIRST_FD + index, name=request.name, purpose=request.purpose)
                for index, request in enumerate(self.fds)
            ),
            steps=tuple(steps),
            notes=(
                f"QEMU {d.capabilities.version_text} ({d.capabilities.path})",
                f"machine type {d.definition.machine.machine} is {d.machine}",
                f"accelerator {d.choice.accelerator.value}: {d.choice.reason}",
                f"CPU model {d.cpu_model}",
            ),
        )


def device_uuids(definition: Definition) -> tuple[str, ...]:
    """Identities of everything that needs a PCI place, in the order in which places are given."""
    own = definition.machine
    optional = ((PANIC_UUID, own.panic_device), (RNG_UUID, own.rng), (BALLOON_UUID, own.balloon))
    return (
        *(uuid for uuid, wanted in optional if wanted),
        *(disk.disk.uuid or "" for disk in definition.disks),
        *(nic.nic.uuid or "" for nic in definition.nics),
    )


def plan_launch(decisions: Decisions, directory: InstanceDirectory, *, paused: bool) -> LaunchPlan:
    """Plan a start.

    Args:
        decisions: what was decided.
        directory: the instance's directory; it need not exist.
        paused: the guest stays paused.
    """
    return _Planner(decisions, directory).plan(paused)


def device_id(kind: str, uuid: str) -> str:
    """The id of a device in QEMU: short enough for a block node (31 characters), distinct for distinct uuids."""
    digest = hashlib.blake2b(uuid.lower().encode(), digest_size=6).hexdigest()
    return f"{kind}-{uuid[:8].lower()}-{digest}"


class _Planner:
    def __init__(self, decisions: Decisions, directory: InstanceDirectory) -> None:
        self.d = decisions
        self.definition = decisions.definition
        self.directory = directory
        self.fds: list[FdRequest] = []
        self.fdsets = 0

    def plan(self, paused: bool) -> LaunchPlan:
        definition = self.definition
        security = self._security()
        options = [*self._base(), *self._monitors(), *self._own_devices()]
        for console, parameters in definition.consoles:
            context = ConsoleContext(
                instance=definition.instance, parameters=parameters, listen=self._listen, fd=self._fd
            )
            options += console.backend.plan(context).options
        for disk in definition.disks:
            options += self._disk(disk)
        nics = []
        for nic in definition.nics:
            plan, words = self._nic(nic)
            nics.append((nic, plan))
            options += words
        options += security.options
        options.append(flag("S"))
        return LaunchPlan(
            decisions=self.d,
            options=tuple(options),
            fds=tuple(self.fds),
            nics=tuple(nics),
            security=security,
            paused=paused,
        )

    def _security(self) -> SecurityPlan:
        model = self.definition.security_model
        if model is None:
            return SecurityPlan()
        return model.backend.plan(self.definition.instance, self.definition.security_parameters)

    def _base(self) -> list[Option]:
        d, machine, cpu, boot = self.d, self.definition.machine, self.definition.cpu, self.definition.boot
        instance = self.definition.instance
        options = [
            keyed("name", None, {"guest": instance.name, "debug-threads": True}, origin="name"),
            flag("nodefaults"),
            flag("no-user-config"),
            word("display", "none"),
            keyed("machine", d.machine, {} if machine.acpi else {"acpi": False}, origin="params.machine"),
            word("accel", d.choice.accelerator.value, origin="params.accel"),
            keyed("cpu", d.cpu_model, dict(sorted(cpu.cpu_features.items())), origin="params.cpu_model"),
            keyed("m", None, {"size": f"{instance.memory // _MIB}M"}, origin="memory"),
            keyed("smp", None, {"cpus": instance.vcpus, "maxcpus": instance.vcpus}, origin="vcpus"),
            word("uuid", instance.uuid or "", origin="uuid"),
        ]
        actions = {
            "reboot": "shutdown" if machine.on_reboot == "shutdown" else "reset",
            "panic": machine.on_panic,
        }
        options.append(keyed("action", None, actions, origin="params.on_panic"))
        if machine.sandbox:
            denied = dict.fromkeys(("obsolete", "elevateprivileges", "spawn", "resourcecontrol"), "deny")
            options.append(keyed("sandbox", "on", denied, origin="params.sandbox"))
        if boot.kernel is not None:
            options.append(word("kernel", boot.kernel, origin="params.kernel"))
        if boot.initrd is not None:
            options.append(word("initrd", boot.initrd, origin="params.initrd"))
        if boot.cmdline is not None:
            options.append(word("append", boot.cmdline, origin="params.cmdline"))
        if boot.firmware_image is not None:
            options.append(word("bios", boot.firmware_image, origin="params.firmware_image"))
        return options

    def _monitors(self) -> list[Option]:
        options = []
        for name in (CONTROL, QUERY):
            chardev = {"id": name, "fd": self._listen(name), "server": True, "wait": False}
            options.append(keyed("chardev", "socket", chardev))
            options.append(keyed("mon", None, {"chardev": name, "mode": "control"}))
        events = FdRequest(
            name=EVENTS,
            purpose="file QEMU appends its events to",
            open=lambda: self.directory.append_only(EVENTS),
        )
        path, option = self._fdset(events, "driver")
        options.append(option)
        # A monitor on a null device never sees a client, needs no handshake, and logs every event.
        options.append(keyed("chardev", "null", {"id": EVENTS, "logfile": path, "logappend": True}))
        options.append(keyed("mon", None, {"chardev": EVENTS, "mode": "control"}))
        return options

    def _own_devices(self) -> list[Option]:
        own = self.definition.machine
        options = []
        if own.panic_device:
            options.append(self._device("pvpanic-pci", "panic0", PANIC_UUID, "params.panic_device"))
        if own.rng:
            origin = "params.rng"
            options.append(json_option("object", {"qom-type": "rng-builtin", "id": "rng-source0"}, origin=origin))
            options.append(self._device("virtio-rng-pci", "rng0", RNG_UUID, origin, {"rng": "rng-source0"}))
        if own.balloon:
            extra = {"free-page-reporting": True, "deflate-on-oom": True}
            options.append(self._device("virtio-balloon-pci", "balloon0", BALLOON_UUID, "params.balloon", extra))
        return options

    def _disk(self, disk: DiskDefinition) -> list[Option]:
        uuid = disk.disk.uuid or ""
        ident = device_id("disk", uuid)
        image = self.d.images[uuid]
        access = "read-only" if disk.disk.read_only else "read-write"
        request = FdRequest(name=ident, purpose=f"{disk.disk.path}, {access}", open=lambda: open_image(disk))
        path, add_fd = self._fdset(request, disk.origin)
        guest_cache, direct, no_flush = _CACHE[disk.parameters.cache]
        cache = {"direct": direct, "no-flush": no_flush}
        common = {"cache": cache, "read-only": disk.disk.read_only, "auto-read-only": False}
        discard = {"discard": disk.parameters.discard}
        node = {
            "driver": disk.disk.format,
            "node-name": ident,
            **common,
            **discard,
            "file": {
                "driver": "host_device" if image.is_block_device else "file",
                "filename": path,
                "aio": disk.parameters.aio,
                **common,
                **discard,
            },
        }
        extra: dict[str, Any] = {
            "drive": ident,
            "serial": disk.parameters.serial or uuid.replace("-", "")[:20],
            "write-cache": guest_cache,
        }
        if self.definition.boot.kernel is None:
            extra["bootindex"] = disk.index + 1
        return [
            add_fd,
            json_option("blockdev", node, origin=disk.origin),
            self._device("virtio-blk-pci", ident, uuid, disk.origin, extra),
        ]

    def _nic(self, nic: NicDefinition) -> tuple[NicPlan, list[Option]]:
        uuid = nic.nic.uuid or ""
        ident = device_id("nic", uuid)
        netdev = device_id("net", uuid)
        context = NicContext(
            instance=self.definition.instance,
            nic=nic.nic,
            parameters=nic.mode_parameters,
            netdev_id=netdev,
            fd=self._fd,
        )
        plan = nic.mode.backend.plan(context)
        model = nic.parameters.model
        # Without an option ROM: a guest boots from its disks, and a ROM of another size breaks a migration.
        extra = {"netdev": netdev, "mac": nic.nic.mac, "romfile": ""}
        return plan, [
            json_option("netdev", plan.netdev, origin=nic.origin),
            self._device(_NIC_DEVICES.get(model, model), ident, uuid, nic.origin, extra),
        ]

    def _device(
        self, driver: str, ident: str, uuid: str, origin: str, extra: Mapping[str, Any] | None = None
    ) -> Option:
        place = self.d.places[uuid].properties
        return json_option("device", {"driver": driver, "id": ident, **place, **(extra or {})}, origin=origin)

    def _listen(self, name: str) -> int:
        directory = self.directory
        request = FdRequest(name=name, purpose="listening UNIX socket", open=lambda: directory.listen(name))
        return self._fd(request)

    def _fd(self, request: FdRequest) -> int:
        self.fds.append(request)
        return process.FIRST_FD + len(self.fds) - 1

    def _fdset(self, request: FdRequest, origin: str) -> tuple[str, Option]:
        self.fdsets += 1
        values = {"fd": self._fd(request), "set": self.fdsets, "opaque": request.name}
        return f"/dev/fdset/{self.fdsets}", keyed("add-fd", None, values, origin=origin)
