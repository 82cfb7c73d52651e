"""Adding and removing devices of a running instance, each operation a transaction on the modelled world."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs

from hvcore import (
    Device,
    Disk,
    Finding,
    FindingSet,
    HotplugResult,
    HotplugSupport,
    HypervisorRefused,
    Instance,
    InstanceState,
    InvalidParameters,
    Nic,
    NotRunning,
    OutcomeUnknown,
    RecordError,
    WrongState,
    device_clashes,
    find_device,
    with_device,
    with_identities,
)
from hvcore_fake.account import look, record_key
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.ledger import begin, settle_devices, take_back
from hvcore_fake.parameters import check_syntax
from hvcore_fake.plugging import as_attached, as_backend, devices_of
from hvcore_fake.record import Attached, Change, Process, RuntimeRecord
from hvcore_fake.recovery import settle
from hvcore_fake.transaction import Call, Transaction, transaction
from hvcore_fake.world import World

_MOVING = (InstanceState.INCOMING, InstanceState.MIGRATING, InstanceState.POSTMIGRATE)

PENDING = "the guest has been asked and has not let go of it yet; it is finished when it does"


def add(call: Call, name: str, device: Device, foreign: bool) -> HotplugResult:
    """Add a device; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        record, _ = running(call, name)
        known = identified(record.instance, pluggable(device))
        refuse(check_addition(world, record.instance, known, foreign), "the device cannot be added")
        change = Change(ident=known.uuid or "", kind=_kind(known), action="add")
        with transaction(call, name) as effects:
            call.in_time()
            note(world, name, effects, (change,), with_device(record.instance, known))
            close = functools.partial(world.close_backend, name, change.ident)
            effects.effect("backend", lambda: world.open_backend(name, as_backend(known)), undo=close)
            plug(world, name, effects, (as_attached(known),))
            call.in_time()
    return HotplugResult(device=change.ident, done=True, detail="added")


def remove(call: Call, name: str, ident: str) -> HotplugResult:
    """Remove a device; see the hook of the same name. What force is for, a modelled NIC has not got."""
    world, ident = call.world, ident.lower()
    with world.store.locked(call.deadline):
        settled: list[str] = []
        record, _ = running(call, name, settled)
        if f"{ident} removed" in settled:
            return HotplugResult(device=ident, done=True, detail="the guest has let go of it")
        change = Change(ident=ident, kind=_kind(find_device(record.instance, ident)), action="remove")
        with transaction(call, name) as effects:
            done = unplug(call, effects, name, (change,))
    return HotplugResult(device=ident, done=done, detail="the guest has let go of it" if done else PENDING)


def support(world: World, name: str) -> HotplugSupport:
    """Whether devices can be changed; see the hook of the same name."""
    account = look(world, name)
    process = None if account is None else account.process
    if process is None:
        return HotplugSupport(supported=False, reasons=("it is not running",))
    if process.state in _MOVING or account is None or account.record is None:
        return HotplugSupport(supported=False, reasons=(f"it is in state {process.state}",))
    return HotplugSupport(supported=True)


def support_for(world: World, name: str, action: str, device: Device, foreign: bool) -> HotplugSupport:
    """Whether one device can be changed; see the hook of the same name."""
    general, account = support(world, name), look(world, name)
    if not general.supported or account is None or account.record is None:
        return general
    if not isinstance(device, Disk | Nic):
        reason = "it is there already and can only be modified"
        return general if action == "modify" else HotplugSupport(supported=False, reasons=(reason,))
    known = identified(account.record.instance, device)
    if action == "add":
        found = check_addition(world, account.record.instance, known, foreign)
        return HotplugSupport(supported=not found, reasons=tuple(str(finding) for finding in found))
    process = account.process
    if process is None or process.device(known.uuid or "") is None:
        return HotplugSupport(supported=False, reasons=(f"it has no device {known.uuid}",))
    return general


def running(call: Call, name: str, settled: list[str] | None = None) -> tuple[RuntimeRecord, Process]:
    """A running instance whose devices can be changed, with what was under way settled.

    Args:
        call: the operation. The caller holds the world's lock.
        name: the instance.
        settled: gets what was settled.

    Raises:
        NotRunning: it is not running.
        RecordError: what it runs with is not known.
        WrongState: it is moving between two hosts.
        OutcomeUnknown: its process does not answer.
    """
    world = call.world
    settle(world, name)
    account = look(world, name)
    if account is None or account.process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    if account.record is None:
        raise RecordError("what it runs with is not known", instance=name, code="record-missing", hint="restart it")
    if account.process.state in _MOVING or account.process.sending is not None:
        hint = "finish the migration first, or cancel it"
        raise WrongState("it is moving between two hosts", instance=name, hint=hint)
    if not account.process.answering:
        world.advance(call.deadline.timeout())
        raise OutcomeUnknown("its process took the request and did not answer", instance=name, hint="look at it")
    said = settle_devices(world, name)
    if settled is not None:
        settled += said
    record, process = world.store.read(record_key(name), RuntimeRecord), world.process(name)
    if record is None or process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    return record, process


def note(
    world: World, name: str, effects: Transaction, changes: tuple[Change, ...], after: Instance | None = None
) -> None:
    """Write down what is under way, before it is."""
    undo = functools.partial(take_back, world, name)
    effects.effect("record", lambda: begin(world, name, changes, after), undo=undo)


def plug(world: World, name: str, effects: Transaction, devices: tuple[Attached, ...]) -> None:
    """Give the guest devices whose addition is written down, and write down that it has them."""

    def take_away() -> None:
        for device in devices:
            world.pull(name, device.ident)

    def give() -> None:
        for device in devices:
            world.plug(name, device)

    effects.effect("device", give, undo=take_away)
    effects.effect("settle", lambda: settle_devices(world, name), files=(record_key(name),))


def unplug(call: Call, effects: Transaction, name: str, changes: tuple[Change, ...]) -> bool:
    """Ask the guest to let go of devices, wait for it, and take away what is behind them.

    Returns:
        It has let go of all of them; else their removal stays written down.

    Raises:
        HypervisorRefused: it refused.
    """
    world = call.world
    note(world, name, effects, changes)

    def ask() -> None:
        for change in changes:
            world.ask_for(name, change.ident)

    def wait() -> None:
        for change in changes:
            world.wait_for_leave(name, change.ident, call.deadline.timeout())

    # What the guest has been asked for it may let go of later: only what it has tells what to undo.
    undo = functools.partial(take_back, world, name)
    effects.effect("request", ask, undo=undo)
    effects.effect("wait", wait, undo=undo)
    process = world.process(name)
    left = [] if process is None else [d for d in process.attached if d.ident in {c.ident for c in changes}]
    if any(device.refused for device in left):
        raise HypervisorRefused("unplug", "DEVICE_UNPLUG_GUEST_ERROR", "the guest does not let go of the device")
    if not left or call.lying:
        effects.effect("backend", lambda: _close(world, name, changes), undo=undo)
        effects.effect("settle", lambda: settle_devices(world, name), undo=undo)
    return not left or call.lying


def identified(instance: Instance, device: Disk | Nic) -> Disk | Nic:
    """A device with the identity it would have as the last of a definition, another one where that is taken."""
    known = with_identities(with_device(instance, device), "")
    return known.disks[-1] if isinstance(device, Disk) else known.nics[-1]


def pluggable(device: Device) -> Disk | Nic:
    """A device that can be plugged.

    Raises:
        InvalidParameters: it is of another kind.
    """
    if isinstance(device, Disk | Nic):
        return device
    message = "media, virtual CPUs and parameters are there already and can only be modified"
    finding = Finding(code="not-possible", path="device", message=message)
    raise InvalidParameters("the device cannot be added", FindingSet([finding]))


def check_addition(world: World, instance: Instance, device: Disk | Nic, foreign: bool) -> list[Finding]:
    """Everything that stands against adding a device."""
    findings = device_clashes(instance, device)
    if device.uuid in {known.uuid for known in devices_of(instance)}:
        findings.append(Finding(code="already-there", path="device.uuid", message="the instance has it already"))
    return findings + list(check_device(world, instance, device, foreign))


def check_device(world: World, instance: Instance, device: Disk | Nic, foreign: bool) -> Iterator[Finding]:
    """Everything that is wrong with a device, taken by itself."""
    alone = with_device(attrs.evolve(instance, disks=(), nics=(), params={}), device)
    for finding in [*check_syntax(alone, foreign).errors, *check_disks(alone), *check_use(world, alone)]:
        path = finding.path.replace("disks[0]", "device").replace("nics[0]", "device")
        yield attrs.evolve(finding, path=path)


def refuse(findings: list[Finding], message: str) -> None:
    """Refuse what has findings.

    Raises:
        InvalidParameters: there are some.
    """
    if findings:
        raise InvalidParameters(message, FindingSet(findings))


def _close(world: World, name: str, changes: tuple[Change, ...]) -> None:
    for change in changes:
        world.close_backend(name, change.ident)


def _kind(device: Disk | Nic) -> str:
    return "disk" if isinstance(device, Disk) else "nic"
