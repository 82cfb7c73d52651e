"""What family plugins yield and what the objects in their records implement.

Everything a plan needs is data: options, descriptors to open, steps to do. A plugin's ``plan`` touches nothing; what
touches the host stands in the steps it returns.
"""

from __future__ import annotations

import difflib
import os
import re
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
        arriving: the guest still runs on another host: what leads to it must not lead here yet.
    """

    instance: Instance
    nic: Nic
    parameters: Any
    device: NicParameters
    netdev_id: str
    fd: Callable[[FdRequest], int]
    arriving: bool = False


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
        change: steps that make the connection of a running NIC, planned by the same mode for the same uuid or released
            by another one, into this one, while the guest keeps its device; ``None`` if there is no such way.
        release: steps that take the interface of a running NIC out of where it is, so that another connection with such
            an interface can have it; ``None`` if there is no such way. Their names say what it is taken out of: a
            change within the mode does them first when these are others than those of the new connection.
        lead: steps that lead to a guest that was ``arriving`` what must not reach this host before it runs here; done
            when it does, perhaps again and by another process.
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
    release: tuple[Step, ...] | None = None
    lead: tuple[Step, ...] = ()
    companions: tuple[Companion, ...] = ()


class NicBackend(Protocol):
    """One way to connect a NIC.

    A backend on a tap, where queues and vhost mean something, says so with an attribute ``tap = True``. One where
    queues mean something without a tap has ``multiqueue = True``, and one that shares the guest's memory with another
    process ``shared_memory = True``. One for which QEMU itself makes files on the host says so with a method
    ``makes_files(parameters)``; a confined QEMU cannot.
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


_TITLES = {NicMode: "NIC mode", SecurityModel: "security model", ConsoleType: "console type"}
_METHODS: dict[type, tuple[str, ...]] = {
    NicMode: ("check", "check_host", "plan"),
    SecurityModel: ("check", "check_host", "plan"),
    ConsoleType: ("check", "check_host", "plan", "endpoint"),
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 64


def collect(hook: Any) -> Families:
    """Ask all family plugins for their records.

    Raises:
        LoadError: everything that is wrong with them, each with the distribution it comes from: a name offered twice,
            a record of another kind, one that lacks something, an exception.
    """
    findings: list[Finding] = []
    families = Families(
        nic_modes=_by_name(hook.kvm_nic_modes, NicMode, findings),
        security_models=_by_name(hook.kvm_security_models, SecurityModel, findings),
        console_types=_by_name(hook.kvm_console_types, ConsoleType, findings),
    )
    # Their parameters stand side by side in an instance's params.
    for name in sorted({*families.security_models} & {*families.console_types}):
        models, types = families.security_models[name], families.console_types[name]
        if models.parameters is not None and types.parameters is not None:
            message = f"is a security model and a console type, and both have parameters in params.{name}"
            findings.append(Finding(code="duplicate-plugin", path=name, message=message, hint="uninstall one of them"))
    if findings:
        raise LoadError("the family plugins of driver kvm have faults", FindingSet(findings))
    return families


def _by_name(caller: Any, kind: type[Member], findings: list[Finding]) -> dict[str, Member]:
    from hvcore_kvm.family_fault import GuardedBackend, guarded_rule, plugin_label

    title = _TITLES[kind]
    members: dict[str, Member] = {}
    origins: dict[str, str] = {}
    for implementation in caller.get_hookimpls():
        origin = implementation.plugin_name
        for record in _records(implementation, findings):
            name = record.name if isinstance(record, kind) and type(record.name) is str else None
            if name in origins:
                message = f"{title} {name} is offered by {origins[name]} too"
                findings.append(Finding(code="duplicate-plugin", path=origin, message=message))
                continue
            if name is not None:
                origins[name] = origin
            faults = faults_of(record, kind)
            findings += [Finding(code=code, path=origin, message=message) for code, message in faults]
            if faults:
                continue
            label = plugin_label(title, record.name, origin)
            guarded: Any = GuardedBackend(record.backend, label)
            rules = tuple(guarded_rule(rule, label) for rule in record.rules)
            own = None if record.parameters is None else _own_class(record.parameters)
            members[record.name] = attrs.evolve(record, backend=guarded, rules=rules, parameters=own)
    return dict(sorted(members.items()))


def _own_class(parameters: type) -> type:
    """A class of parameters that no other plugin has: what was read is found again by it."""
    namespace = {"__doc__": parameters.__doc__, "__module__": parameters.__module__}
    made: type = attrs.frozen(kw_only=True)(type(parameters.__name__, (parameters,), namespace))
    return made


def _records(implementation: Any, findings: list[Finding]) -> list[Any]:
    try:
        return list(implementation.function())
    except Exception as error:
        # Whatever it is, it must not keep the faults of the others from being told.
        message = f"{implementation.function.__name__} raised {type(error).__name__}: {error}"
        hint = "repair or uninstall the plugin"
        findings.append(Finding(code="broken-plugin", path=implementation.plugin_name, message=message, hint=hint))
        return []


def faults_of(record: Any, kind: type) -> list[tuple[str, str]]:
    """What is wrong with a record that a plugin yields: codes and messages, all at once."""
    if not isinstance(record, kind):
        return [("wrong-record", f"yields {type(record).__name__}, not {kind.__name__}")]
    known: Any = record
    title = _TITLES[kind]
    if type(known.name) is not str or len(known.name) > _LONGEST_NAME or not _NAME.fullmatch(known.name):
        message = f"{str(known.name)[:60]!r} is no name for a {title}: lower-case letters, digits, single hyphens"
        return [("wrong-record", message)]
    found = []
    label = f"{title} {known.name}"
    if type(known.summary) is not str or not known.summary.strip() or "\n" in known.summary:
        found.append(("wrong-record", f"{label} has no summary of one sentence"))
    missing = [name for name in _METHODS[kind] if not callable(getattr(known.backend, name, None))]
    if missing:
        found.append(("missing-method", f"{label} has a backend without {' and '.join(missing)}"))
    if known.parameters is not None and not (isinstance(known.parameters, type) and attrs.has(known.parameters)):
        found.append(("wrong-record", f"{label} has parameters that are no attrs class"))
    return found


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
