"""From a checked definition to everything a start needs, as data; touching nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Finding, Plan, PlannedFd, PlannedOption
from hvcore_kvm import process
from hvcore_kvm.accelerator import Accelerator, Choice
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.cgroup import IoLimit, Limits
from hvcore_kvm.command_line import Option, flag, word
from hvcore_kvm.companions import Companion
from hvcore_kvm.definition import Definition, NicDefinition
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.families import ConsoleContext, FdRequest, NicPlan, SecurityPlan
from hvcore_kvm.firmware import Firmware
from hvcore_kvm.hardware.builder import Builder, device_id
from hvcore_kvm.hardware.devices import add_devices
from hvcore_kvm.hardware.machine import (
    add_boot,
    add_extra_arguments,
    add_machine,
    add_monitors,
    add_root_ports,
)
from hvcore_kvm.hardware.memory import add_memory
from hvcore_kvm.hardware.network import add_nics
from hvcore_kvm.hardware.storage import add_storage
from hvcore_kvm.hardware.virtio_serial import add_virtio_ports
from hvcore_kvm.images import Image, whole_disk
from hvcore_kvm.private_root import PrivateRoot, program_tree
from hvcore_kvm.runtime import Placement


@attrs.frozen(kw_only=True)
class Decisions:
    """What was decided for a start, from the definition, the program and the host.

    Attributes:
        definition: the definition, structured.
        capabilities: what the QEMU program can do.
        machine: versioned machine type.
        choice: accelerator.
        images: what each image is, by uuid of a disk or by the parameter that names it.
        firmware: UEFI firmware, if any.
        programs: paths of the companions' programs.
        kept: where devices sat before.
        ports: PCI Express root ports it has; ``None`` where that is to be decided.
        encryption_bit: the bit of a physical address that says whether memory is encrypted, for AMD's SEV.
        cpu_without: CPU features that are switched off because a guest that arrives has not had them.
        arriving: its guest comes from another host.
        plugged: devices of the driver's own, by the identities of their places, that come while the guest runs.
    """

    definition: Definition
    capabilities: QemuCapabilities
    machine: str
    choice: Choice
    images: Mapping[str, Image]
    firmware: Firmware | None
    programs: Mapping[str, str]
    kept: Placement | None
    ports: int | None = None
    encryption_bit: int | None = None
    cpu_without: tuple[str, ...] = ()
    arriving: bool = False
    plugged: frozenset[str] = frozenset()

    @property
    def cpu_model(self) -> str:
        """The CPU model: the one asked for, else all of what the accelerator offers."""
        kvm = self.choice.accelerator is Accelerator.KVM
        return self.definition.cpu.cpu_model or ("host" if kvm else "max")


@attrs.frozen(kw_only=True)
class Command:
    """A command for QEMU's monitor, given before the guest runs.

    Attributes:
        name: QMP command.
        arguments: its arguments.
        origin: what in the definition it comes from.
    """

    name: str
    arguments: Mapping[str, Any]
    origin: str


@attrs.frozen(kw_only=True)
class LaunchPlan:
    """Everything a start needs.

    Attributes:
        decisions: what it follows from.
        options: QEMU's command line.
        placement: where each device sits.
        ports: how many PCI Express root ports there are.
        fds: descriptors QEMU inherits, the first as number 3.
        companions: processes that serve it.
        commands: what its monitor is told before the guest runs.
        nics: how each NIC is connected.
        security: how the process is confined.
        reads: files, directories and devices of the host that QEMU opens by their path.
        limits: what it may take of the host.
        logs: files that QEMU appends to, and the bytes of each that are kept.
        paused: the guest stays paused.
    """

    decisions: Decisions
    options: tuple[Option, ...]
    placement: Placement
    ports: int
    fds: tuple[FdRequest, ...]
    companions: tuple[Companion, ...]
    commands: tuple[Command, ...]
    nics: tuple[tuple[NicDefinition, NicPlan], ...]
    security: SecurityPlan
    reads: tuple[str, ...]
    limits: Limits
    logs: Mapping[str, int]
    paused: bool

    @property
    def argv(self) -> tuple[str, ...]:
        """QEMU's argument list."""
        return (self.decisions.capabilities.path, *(w for option in self.options for w in option.words))

    @property
    def pins(self) -> bool:
        """Threads are pinned to CPUs of the host."""
        cpu = self.decisions.definition.cpu
        return any(mask is not None for mask in (cpu.cpu_pin, cpu.emulator_pin, cpu.iothread_pin))

    def public(self) -> Plan:
        """The plan as hvcore hands it out."""
        d = self.decisions
        return Plan(
            name=d.definition.name,
            program=d.capabilities.path,
            options=tuple(
                PlannedOption(words=option.words, origin=option.origin, name=option.name, value=option.data)
                for option in self.options
            ),
            environment=tuple(sorted(process.ENVIRONMENT.items())),
            fds=tuple(
                PlannedFd(number=process.FIRST_FD + index, name=request.name, purpose=request.purpose)
                for index, request in enumerate(self.fds)
            ),
            steps=tuple(self._steps()),
            notes=tuple(self._notes()),
        )

    def _steps(self) -> list[str]:
        d, definition = self.decisions, self.decisions.definition
        steps = ["make the instance's directory, write down what was decided"]
        if definition.machine.chroot:
            steps.append("make an empty directory that becomes QEMU's root")
        if d.firmware is not None and d.firmware.variables is not None:
            how = f"copy {d.firmware.template}" if d.firmware.template is not None else "make an empty store"
            steps.append(f"{how} as the instance's UEFI variables, unless it has them")
        steps += [f"{step.name} (security model)" for step in self.security.steps]
        if self.limits.controllers:
            steps.append(f"make a control group with limits of {', '.join(self.limits.controllers)}")
        steps += [f"{step.name} (NIC)" for _, nic in self.nics for step in nic.up]
        steps += [f"start {companion.name}: {' '.join(companion.argv)}" for companion in self.companions]
        steps += [
            "open descriptors: " + ", ".join(request.name for request in self.fds),
            "start QEMU, paused, in a session of its own",
            "write down its process, its places and that it was started",
            "wait for its monitor",
        ]
        steps += [f"tell QEMU {command.name} {dict(command.arguments)}" for command in self.commands]
        if definition.memory.balloon_target is not None:
            steps.append("give the balloon what is above params.balloon_target")
        if definition.memory.memory_min is not None:
            steps.append("give the balloon what the host lacks in free memory, down to params.memory_min")
        cpu = definition.cpu
        for name in ("cpu_pin", "emulator_pin", "iothread_pin"):
            mask = getattr(cpu, name)
            if mask is not None:
                steps.append(f"pin threads: {name} {mask}")
        return steps if self.paused else [*steps, "let the guest run"]

    @property
    def root(self) -> PrivateRoot | None:
        """The file system of its own that the process has; ``None`` for the host's."""
        root = self.security.root
        if root is None:
            return None
        program = program_tree(self.decisions.capabilities.path)
        return attrs.evolve(root, paths=(*root.paths, *([program] if program else []), *self.reads))

    def _seen(self) -> str:
        root = self.root
        return f", and {', '.join(root.paths)}" if root is not None and root.paths else ""

    def _notes(self) -> list[str]:
        d = self.decisions
        wanted = d.definition.wanted_machine
        notes = [
            f"QEMU {d.capabilities.version_text} ({d.capabilities.path})",
            f"machine type {wanted} is {d.machine}",
            f"accelerator {d.choice.accelerator.value}: {d.choice.reason}",
            f"CPU model {d.cpu_model}",
        ]
        if d.firmware is not None:
            notes.append(f"firmware {d.firmware.code}")
        if self.security.namespaces:
            notes.append(f"QEMU has namespaces of its own: {', '.join(self.security.namespaces)}")
        if self.security.root is not None:
            notes.append(f"of the host's files it sees its programs and libraries{self._seen()}")
        if self.security.launcher:
            notes.append(f"QEMU is executed by: {' '.join(self.security.launcher)}")
        if d.definition.machine.extra_args:
            notes.append("params.extra_args adds options that the driver knows nothing of")
        return notes


def plan_launch(
    decisions: Decisions, directory: InstanceDirectory, *, paused: bool
) -> tuple[LaunchPlan, list[Finding]]:
    """Plan a start.

    Args:
        decisions: what was decided.
        directory: the instance's directory; it need not exist.
        paused: the guest stays paused.

    Returns:
        The plan, to be used only if there are no findings, and the findings: devices without a place.
    """
    builder = Builder(decisions, directory)
    definition = decisions.definition
    security = _security(definition)
    add_machine(builder)
    add_memory(builder)
    add_boot(builder)
    add_monitors(builder)
    add_root_ports(builder)
    add_devices(builder)
    _add_consoles(builder)
    # After the console on virtio: guests number consoles in the order of their ports.
    add_virtio_ports(builder)
    add_storage(builder)
    nics = add_nics(builder)
    add_extra_arguments(builder)
    builder.add(*security.options, flag("S"))
    if decisions.arriving:
        builder.add(word("incoming", "defer"))
    options, placed = builder.placed()
    plan = LaunchPlan(
        decisions=decisions,
        options=options,
        placement=placed,
        ports=builder.ports,
        fds=tuple(builder.fds),
        companions=tuple(builder.companions),
        commands=tuple(_commands(definition)),
        nics=nics,
        security=security,
        reads=tuple(builder.paths),
        limits=_limits(decisions, security),
        logs=builder.logs,
        paused=paused,
    )
    return plan, builder.findings


def _security(definition: Definition) -> SecurityPlan:
    model = definition.security_model
    if model is None:
        return SecurityPlan()
    return model.backend.plan(definition.instance, definition.security_parameters)


def _add_consoles(builder: Builder) -> None:
    for console, parameters in builder.definition.consoles:
        context = ConsoleContext(
            instance=builder.definition.instance,
            parameters=parameters,
            family=builder.family,
            directory=builder.directory.path,
            listen=builder.listen,
            fd=builder.fd,
            secret=builder.secret,
            virtio_serial=builder.virtio_serial,
            reads=builder.reads,
            log=builder.log,
        )
        builder.add(*console.backend.plan(context).options)


def _limits(decisions: Decisions, security: SecurityPlan) -> Limits:
    given = decisions.definition.resources
    io = given.io_limit
    limits = {} if io is None else {"rbps": io.read_bps, "wbps": io.write_bps, "riops": io.read_iops}
    limits |= {} if io is None else {"wiops": io.write_iops}
    wanted = {key: value for key, value in limits.items() if value is not None}
    disks = [image for uuid, image in decisions.images.items() if "." not in uuid] if wanted else []
    return Limits(
        cpu_shares=given.cpu_shares,
        cpu_quota=given.cpu_quota,
        memory=given.memory_limit,
        pids=given.pids_limit or security.pids_limit,
        io=tuple(IoLimit(device=device, limits=wanted) for device in sorted({whole_disk(i.device) for i in disks})),
    )


def _commands(definition: Definition) -> list[Command]:
    commands = []
    interval = definition.memory.balloon_stats_interval
    if interval:
        values = {
            "path": "/machine/peripheral/balloon0",
            "property": "guest-stats-polling-interval",
            "value": int(interval),
        }
        commands.append(Command(name="qom-set", arguments=values, origin="params.balloon_stats_interval"))
    for nic in definition.nics:
        if not nic.parameters.link_up:
            down = {"name": device_id("nic", nic.nic.uuid or ""), "up": False}
            commands.append(Command(name="set_link", arguments=down, origin=f"{nic.origin}.params.link_up"))
    return commands
