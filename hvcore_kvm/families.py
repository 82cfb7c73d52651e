"""What family plugins yield and what the objects in their records implement.

Everything a plan needs is data: options, descriptors to open, steps to do. A plugin's ``plan`` touches nothing; what
touches the host stands in the steps it returns.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import attrs

from hvcore import Console, Finding, FindingSet, Instance, LoadError, Nic, ParameterSection, Rule, Step
from hvcore_kvm.command_line import Option

if TYPE_CHECKING:
    from hvcore_kvm.companions import Companion
    from hvcore_kvm.parameters.nic import NicParameters
    from hvcore_kvm.private_root import PrivateRoot


@attrs.frozen(kw_only=True)
class FdRequest:
    """A descriptor the QEMU process is to inherit.

    Attributes:
        name: what it is called in messages.
        purpose: what it is, for the plan.
        open: opens it, when the instance is started; the driver closes it. Not called for the connection to a
            companion, which is there once that has been started.
    """

    name: str
    purpose: str
    open: Callable[[], int]


@attrs.frozen(kw_only=True)
class NicContext:
    """What a NIC mode gets to plan with.

    Attributes:
        instance: the definition.
        nic: the NIC; its uuid and hardware address are filled in.
        parameters: the mode's own parameters, an object of its class; ``None`` if it has none.
        device: how the guest sees the NIC: model, queues, vhost and so on.
        netdev_id: id the network backend must have.
        fd: asks for a descriptor and returns the number it will have in the QEMU process.
    """

    instance: Instance
    nic: Nic
    parameters: Any
    device: NicParameters
    netdev_id: str
    fd: Callable[[FdRequest], int]


@attrs.frozen(kw_only=True)
class NicPlan:
    """How one NIC is connected.

    Attributes:
        netdev: the ``-netdev`` option as QEMU's JSON, with ``id``.
        options: further options it needs, for example a character device; their ids begin with that of ``netdev``.
        waits_for: what QEMU waits for before it answers, for the message when that takes too long; empty for nothing.
        interface: name of the host's network interface, empty if there is none.
        vnet_hdr: packets carry a virtio-net header, so that offloads work; a property of a tap.
        up: steps on the host before QEMU starts.
        down: steps on the host once QEMU is gone, each done once, after a start that failed as well; perhaps by another
            process, so each must follow from the definition alone and not fail when there is nothing left to do.
        change: steps that make the connection of a running NIC, planned by the same mode for the same uuid, into this
            one, while the guest keeps its device; ``None`` if there is no such way.
        companions: processes that serve it, started before QEMU; `Companion.take` opens QEMU's end of the connection.
            An error of code ``companion-ended`` that is raised instead gets the companion's last words.
    """

    netdev: Mapping[str, Any]
    options: tuple[Option, ...] = ()
    waits_for: str = ""
    interface: str = ""
    vnet_hdr: bool = False
    up: tuple[Step, ...] = ()
    down: tuple[Step, ...] = ()
    change: tuple[Step, ...] | None = None
    companions: tuple[Companion, ...] = ()


class NicBackend(Protocol):
    """One way to connect a NIC.

    A backend on a tap, where queues and vhost mean something, says so with an attribute ``tap = True``. One where
    queues mean something without a tap has ``multiqueue = True``, and one that shares the guest's memory with another
    process ``shared_memory = True``.
    """

    def check(self, nic: Nic, parameters: Any) -> Iterable[Finding]:
        """Find what is wrong without looking at the host; paths below the NIC."""
        ...

    def check_host(self, nic: Nic, parameters: Any) -> Iterable[Finding]:
        """Find what the host lacks; reads only."""
        ...

    def plan(self, context: NicContext) -> NicPlan:
        """Plan the connection; touches nothing."""
        ...


@attrs.frozen(kw_only=True)
class SecurityPlan:
    """How one QEMU process is confined.

    Attributes:
        launcher: argument words put before QEMU's, for programs that change something and then execute the rest.
        options: further QEMU options.
        steps: steps on the host before QEMU starts; undone once QEMU is gone, perhaps by another process, so an undo
            must follow from the definition alone and not fail when there is nothing left to undo.
        namespaces: kinds of namespaces of its own: ``mount``, ``uts``, ``ipc``, ``pid``.
        root: a file system of its own in place of the host's; needs the kind ``mount``.
        pids_limit: how many threads it may have, if ``params.pids_limit`` does not say.
    """

    launcher: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    steps: tuple[Step, ...] = ()
    namespaces: tuple[str, ...] = ()
    root: PrivateRoot | None = None
    pids_limit: int | None = None


class Confinement(Protocol):
    """One way to confine a QEMU process."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Find what is wrong without looking at the host."""
        ...

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Find what the host lacks; reads only."""
        ...

    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        """Plan the confinement; touches nothing."""
        ...


@attrs.frozen(kw_only=True)
class ConsoleContext:
    """What a console type gets to plan with.

    Attributes:
        instance: the definition.
        parameters: the type's own parameters, an object of its class; ``None`` if it has none.
        family: family of the machine: ``pc``, ``q35``, ``microvm`` or ``virt``.
        directory: the instance's directory; it need not exist while planning.
        listen: asks for a listening UNIX socket of this name in the instance's directory; returns its descriptor's
            number in the QEMU process.
        fd: asks for any other descriptor and returns its number in the QEMU process.
        secret: asks for a QEMU ``secret`` object of this id that holds the one line of a file of the host (id, path,
            what it is for messages); the secret reaches QEMU by descriptor, never by its command line.
        virtio_serial: asks for a virtio-serial controller, shared by all who ask, and returns the name of its bus.
        reads: says that QEMU opens a file, directory or device of the host by its path; a security model may show it
            nothing else.
        log: asks for a file of this name in the instance's directory of which this many of the newest bytes are kept;
            returns the path by which QEMU opens it, for appending only: ``logfile`` with ``logappend=on``.
    """

    instance: Instance
    parameters: Any
    family: str
    directory: str
    listen: Callable[[str], int]
    fd: Callable[[FdRequest], int]
    secret: Callable[[str, str, str], None]
    virtio_serial: Callable[[], str]
    reads: Callable[[str], None]
    log: Callable[[str, int], str]


@attrs.frozen(kw_only=True)
class ConsolePlan:
    """The devices and backends of one console."""

    options: tuple[Option, ...] = ()


@attrs.frozen(kw_only=True)
class EndpointContext:
    """What a console type gets to say how a running console is reached.

    Attributes:
        name: name of the instance.
        directory: the instance's directory, where its sockets are.
        parameters: the type's own parameters.
        ask: gives a QMP command with its arguments to QEMU's monitor for questions, and returns the answer. Raises
            `HypervisorRefused`, or `DeadlineExceeded` when QEMU does not answer.
    """

    name: str
    directory: str
    parameters: Any
    ask: Callable[[str, Mapping[str, Any]], Any]

    def socket_path(self, name: str) -> str:
        """Path of a socket that `ConsoleContext.listen` was asked for."""
        return os.path.join(self.directory, name)


class ConsoleBackend(Protocol):
    """One type of console.

    It may have a method ``assess(instance, parameters)``, which yields findings that are no errors: what is legal and
    unwise. Where one client keeps others out, it may have a method ``disconnect(context)`` with an `EndpointContext`,
    which makes the client go.
    """

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Find what is wrong without looking at the host."""
        ...

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Find what the host lacks; reads only."""
        ...

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """Plan the console; touches nothing."""
        ...

    def endpoint(self, context: EndpointContext) -> Console:
        """Say how to attach."""
        ...


@attrs.frozen(kw_only=True)
class NicMode:
    """A NIC mode, picked by ``mode`` of a NIC; its parameters stand below the NIC's ``params``.

    Attributes:
        name: what users write.
        summary: one sentence.
        backend: implements it.
        parameters: attrs class of its parameters, declared with `hvcore.param`.
        rules: checks of several of them together.
    """

    name: str
    summary: str
    backend: NicBackend
    parameters: type | None = None
    rules: Sequence[Rule] = ()


@attrs.frozen(kw_only=True)
class SecurityModel:
    """A security model, picked by ``security_model``; its parameters stand in ``params`` under its name."""

    name: str
    summary: str
    backend: Confinement
    parameters: type | None = None
    rules: Sequence[Rule] = ()


@attrs.frozen(kw_only=True)
class ConsoleType:
    """A console type, picked by ``consoles``; its parameters stand in ``params`` under its name.

    Attributes:
        name: what users write.
        summary: one sentence.
        backend: implements it.
        parameters: attrs class of its parameters, declared with `hvcore.param`.
        rules: checks of several of them together.
        display_device: graphics card the instance gets with this console, if it names none; empty for a console
            without a picture.
    """

    name: str
    summary: str
    backend: ConsoleBackend
    parameters: type | None = None
    rules: Sequence[Rule] = ()
    display_device: str = ""


@attrs.frozen(kw_only=True)
class InterfaceEvent:
    """A network interface of an instance went up or down."""

    instance: str
    nic: Nic
    interface: str
    change: Literal["up", "down"]


Member = TypeVar("Member", NicMode, SecurityModel, ConsoleType)


@attrs.frozen(kw_only=True)
class Families:
    """The family plugins of one loaded driver, by name."""

    nic_modes: Mapping[str, NicMode]
    security_models: Mapping[str, SecurityModel]
    console_types: Mapping[str, ConsoleType]

    def sections(self) -> tuple[ParameterSection, ...]:
        """The parameter sections of all of them."""
        found = []
        kinds: tuple[tuple[str, Literal["instance", "nic"], Mapping[str, Any]], ...] = (
            ("security model", "instance", self.security_models),
            ("console type", "instance", self.console_types),
            ("NIC mode", "nic", self.nic_modes),
        )
        for title, place, members in kinds:
            for member in members.values():
                if member.parameters is not None:
                    found.append(
                        ParameterSection(
                            title=f"{title} {member.name}",
                            place=place,
                            fields=member.parameters,
                            # A NIC has one mode, so its parameters stand beside the driver's own.
                            name="" if place == "nic" else member.name,
                            plugin=f"{title} {member.name}",
                            rules=tuple(member.rules),
                        )
                    )
        return tuple(found)


def collect(hook: Any) -> Families:
    """Ask all family plugins for their records.

    Raises:
        LoadError: a name offered twice, or a record of another kind; all faults at once.
    """
    findings: list[Finding] = []
    families = Families(
        nic_modes=_by_name(hook.kvm_nic_modes, NicMode, "NIC mode", findings),
        security_models=_by_name(hook.kvm_security_models, SecurityModel, "security model", findings),
        console_types=_by_name(hook.kvm_console_types, ConsoleType, "console type", findings),
    )
    if findings:
        raise LoadError("the family plugins of driver kvm have faults", FindingSet(findings))
    return families


def _by_name(caller: Any, kind: type[Member], title: str, findings: list[Finding]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    origins: dict[str, str] = {}
    for implementation in caller.get_hookimpls():
        origin = implementation.plugin_name
        for record in implementation.function():
            if not isinstance(record, kind):
                message = f"yields {type(record).__name__}, not {kind.__name__}"
                findings.append(Finding(code="wrong-record", path=origin, message=message))
            elif record.name in members:
                message = f"{title} {record.name} is offered by {origins[record.name]} too"
                findings.append(Finding(code="duplicate-plugin", path=origin, message=message))
            else:
                members[record.name] = record
                origins[record.name] = origin
    return dict(sorted(members.items()))


def unknown_member(title: str, name: str, known: Iterable[str], path: str) -> Finding:
    """The finding for a name that no plugin offers."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return Finding(
        code="unknown-plugin",
        path=path,
        message=f"there is no {title} {name!r}",
        hint=f"did you mean {near[0]}?" if near else f"installed: {', '.join(names) or 'none'}",
    )
