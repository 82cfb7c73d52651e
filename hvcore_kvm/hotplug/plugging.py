"""Adding, removing and changing disks and NICs of a running instance."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import attrs

from hvcore import (
    Deadline,
    Device,
    Disk,
    Finding,
    FindingSet,
    HotplugResult,
    HotplugSupport,
    HypervisorError,
    Instance,
    InvalidParameters,
    Journal,
    LiveParameters,
    Medium,
    Nic,
    OutcomeUnknown,
    Processors,
    RecordError,
    Step,
    WrongState,
    device_clashes,
    find_device,
    with_device,
    with_other_device,
)
from hvcore_kvm.definition import read
from hvcore_kvm.directory import QUERY, InstanceDirectory
from hvcore_kvm.families import Families, InterfaceEvent, NicPlan
from hvcore_kvm.hotplug.addition import Addition
from hvcore_kvm.hotplug.connection import can_move, move
from hvcore_kvm.hotplug.device_plan import DevicePlan
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.live_parameters import ParameterChange
from hvcore_kvm.hotplug.medium import change_medium, plan_medium
from hvcore_kvm.hotplug.modification import FIXED_BUSES, Modification, all_limits, modification_of
from hvcore_kvm.hotplug.monitor import Monitor, connect
from hvcore_kvm.hotplug.processors import change_processors, check_processors
from hvcore_kvm.hotplug.removal import Removal
from hvcore_kvm.hotplug.single_plan import PlannedDevice
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.observation import Observed
from hvcore_kvm.placement import PCI_ROOT, family_of
from hvcore_kvm.release import connection_of
from hvcore_kvm.runtime import PROCESS, SCHEMA, Change, ProcessRecord, RuntimeRecord

_NO_ADDITION = "the device cannot be added"
_NO_CHANGE = "the device cannot be changed"
_BACK_PATIENCE = 10.0
_ANSWER_PATIENCE = 10.0

Replan = Callable[[Instance], LaunchPlan]
"""Plans a running instance anew, on the places and with the machine it has; raises `InvalidParameters`."""

PlanDevice = Callable[[Instance, str], PlannedDevice]
"""Plans the device with this uuid of a running instance; raises `InvalidParameters`."""


class Plugging:
    """Changes of the devices of one running instance. The caller holds its lock.

    Args:
        directory: the instance's directory.
        record: what it runs with.
        replan: plans a changed definition.
        plan_device: plans one device of a changed definition.
        families: the family plugins.
        announce: told of network interfaces that come up and go down.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        record: RuntimeRecord,
        replan: Replan,
        plan_device: PlanDevice,
        families: Families,
        announce: Callable[[InterfaceEvent], None],
    ) -> None:
        self._directory = directory
        self._machine = record.machine
        self._ledger = Ledger(directory, record)
        self._replan = replan
        self._plan_device = plan_device
        self._families = families
        self._announce = announce

    def add(self, device: Disk | Nic, deadline: Deadline) -> HotplugResult:
        """Add a device whose uuid is known; on failure everything is as before.

        Raises:
            InvalidParameters: it is wrong, it is there already, or there is no place for it.
            HypervisorRefused: QEMU's own words.
            OutcomeUnknown: QEMU took a command and did not answer; the next operation finds out what it has.
        """
        uuid = device.uuid or ""
        unknown: OutcomeUnknown | None = None
        with connect(self._directory, deadline) as monitor:
            self._settle(monitor)
            self._refuse_known(uuid)
            after = with_device(self._ledger.instance, device)
            wanted, placement = self._plan_with(after, device, _NO_ADDITION)
            _refuse_bus(wanted, monitor, _NO_ADDITION)
            addition = Addition(self._directory, self._ledger, monitor, wanted, placement, self._announce)
            with Journal(None, f"adding {uuid}") as journal:
                try:
                    addition.run(journal, after)
                except OutcomeUnknown as error:
                    # Nothing is undone: whether it is there is for QEMU to say.
                    unknown = error
        if unknown is not None:
            raise unknown
        self._ledger.end(uuid)
        return HotplugResult(device=uuid, done=True, detail=f"added as {wanted.ident}")

    def remove(self, uuid: str, force: bool, deadline: Deadline) -> HotplugResult:
        """Ask the guest to let go of a device, and take away what is behind it once it has.

        Args:
            uuid: its identity.
            force: take a NIC's connection away at once, whether the guest lets go of the NIC or not.
            deadline: how long to wait for the guest.

        Raises:
            InvalidParameters: there is no such device.
            HypervisorRefused: QEMU cannot, or the guest would not.
        """
        with connect(self._directory, _for_answers(deadline)) as monitor:
            removal = self._removal(monitor)
            gone = next(
                (r for r in self._settle(monitor) if r.device == uuid and r.done and r.detail == "removed"), None
            )
            return gone or removal.run(uuid, force, deadline)

    def modify(self, device: Disk | Nic, deadline: Deadline) -> HotplugResult:
        """Change a device to a new description of the same identity.

        Without unplugging it where that is possible; else it is removed and added again, at the same place.

        Raises:
            InvalidParameters: there is no such device, or the new description is wrong.
        """
        uuid = device.uuid or ""
        old, device = self._old_and_new(device)
        after = with_other_device(self._ledger.instance, device)
        wanted, _ = self._plan_with(after, device, _NO_CHANGE)
        how = modification_of(old, device)
        connected = self._connection(uuid) if how.connection else None
        if connected is not None and wanted.nic is not None:
            how = attrs.evolve(how, replug=not can_move(connected, wanted.nic[1], other_mode=how.mode))
        if how.replug:
            with connect(self._directory, _for_answers(deadline)) as monitor:
                # Before the guest is asked to let go of the device that it has.
                _refuse_seat(device, wanted, monitor, _NO_CHANGE)
            return self._plug_again(old, device, deadline)
        with connect(self._directory, deadline) as monitor:
            self._settle(monitor)
            if self._ledger.changes.of(uuid) is not None:
                raise WrongState("the device is being removed")
            with Journal(None, f"changing {uuid}") as journal:
                if connected is not None and wanted.nic is not None:
                    self._move(journal, connected, wanted.nic[1], device)
                self._change(journal, monitor, how, wanted)
                self._ledger.write(after)
        self._ledger.end(uuid)
        return HotplugResult(device=uuid, done=True, detail="changed; the guest kept its device")

    def put_in(self, medium: Medium, deadline: Deadline) -> HotplugResult:
        """Change what is in a removable drive; see `change_medium`."""
        with connect(self._directory, deadline) as monitor:
            self._settle(monitor)
            return change_medium(self._ledger, monitor, medium, self._replan)

    def count_processors(self, wanted: Processors, deadline: Deadline) -> HotplugResult:
        """Change how many virtual CPUs there are; see `change_processors`."""
        with connect(self._directory, _for_answers(deadline)) as monitor:
            self._settle(monitor)
            return change_processors(self._ledger, monitor, wanted, deadline)

    def set_parameters(self, wanted: LiveParameters, deadline: Deadline) -> HotplugResult:
        """Change parameters of the instance as a whole; see `ParameterChange`.

        Raises:
            RecordError: there is no record of its process.
        """
        with connect(self._directory, _for_answers(deadline)) as monitor:
            self._settle(monitor)
            return self._parameters(monitor).change(wanted, self._replan, deadline)

    def settle(self, deadline: Deadline, patience: float = 0.0) -> tuple[HotplugResult, ...]:
        """Complete or take back what is under way, by what QEMU has; returns what became of each.

        Args:
            deadline: by when to be done.
            patience: seconds to wait for a guest that is about to let go.
        """
        if not self._ledger.changes.pending:
            return ()
        with connect(self._directory, deadline) as monitor:
            return self._settle(monitor, patience)

    def verify(self, action: str, device: Device, deadline: Deadline) -> HotplugSupport:
        """Whether one device can be changed, and everything that is known to stand against it; touches nothing.

        Args:
            action: ``add``, ``remove`` or ``modify``.
            device: the device.
            deadline: by when to be done.
        """
        reasons: list[str] = []
        try:
            # Whoever asks does not hold the lock, and an operation may have the other monitor.
            with Monitor.connected(self._directory, deadline, name=QUERY) as monitor:
                if isinstance(device, Disk | Nic):
                    self._object(monitor, action, device)
                elif isinstance(device, Medium):
                    plan_medium(self._ledger, device, self._replan)
                elif isinstance(device, Processors):
                    check_processors(monitor, device)
                else:
                    self._parameters(monitor).check(device, self._replan)
        except InvalidParameters as error:
            reasons += [str(finding) for finding in error.findings]
        except HypervisorError as error:
            reasons.append(error.message)
        if isinstance(device, Disk | Nic):
            reasons += self._fixed(action, device)
        return HotplugSupport(supported=not reasons, reasons=tuple(reasons))

    def _object(self, monitor: Monitor, action: str, device: Disk | Nic) -> None:
        """Raise what would be raised before anything is done."""
        if action == "add":
            self._refuse_known(device.uuid or "")
            wanted, _ = self._plan_with(with_device(self._ledger.instance, device), device, _NO_ADDITION)
            _refuse_bus(wanted, monitor, _NO_ADDITION)
        elif action == "modify":
            old, device = self._old_and_new(device)
            wanted, _ = self._plan_with(with_other_device(self._ledger.instance, device), device, _NO_CHANGE)
            if modification_of(old, device).replug:
                _refuse_seat(device, wanted, monitor, _NO_CHANGE)
        else:
            find_device(self._ledger.instance, device.uuid or "")

    def _fixed(self, action: str, device: Disk | Nic) -> Iterator[str]:
        """Why a device cannot go, or could not have come, by where it is."""
        known: tuple[Disk | Nic, ...] = (*self._ledger.instance.disks, *self._ledger.instance.nics)
        old = next((each for each in known if each.uuid == device.uuid), None)
        if action == "modify" and (old is None or not modification_of(old, device).replug):
            return
        seat = device if action == "add" or old is None else old
        bus = seat.params.get("bus") if isinstance(seat, Disk) else None
        if bus in FIXED_BUSES:
            yield f"a disk on bus {bus} stays as long as the guest runs; use virtio-blk or scsi"
        places = self._ledger.placement
        at = (places.addresses if places is not None else {}).get(device.uuid or "", "").partition("/")[0]
        if action != "add" and at == PCI_ROOT["q35"] and family_of(self._machine) in ("q35", "virt"):
            yield f"it is on bus {at}, which is fixed; params.hotplug_ports above 0 puts it behind a port"

    def _old_and_new(self, device: Disk | Nic) -> tuple[Disk | Nic, Disk | Nic]:
        """A device as it is and as it is to be, which keeps its hardware address unless it is to have another one.

        Raises:
            InvalidParameters: there is no such device, or it is of another kind.
        """
        old = find_device(self._ledger.instance, device.uuid or "")
        if type(old) is not type(device):
            message = f"is that of a {type(old).__name__.lower()}, and a {type(device).__name__.lower()} is described"
            finding = Finding(code="wrong-type", path="device.uuid", message=message)
            raise InvalidParameters(_NO_CHANGE, FindingSet([finding]))
        if isinstance(device, Nic) and isinstance(old, Nic) and device.mac is None:
            device = attrs.evolve(device, mac=old.mac)
        return old, device

    def _plan_with(self, after: Instance, device: Disk | Nic, refusal: str) -> PlannedDevice:
        """Plan a device in its definition; what is wrong with it is said of the device, wherever it would stand."""
        own: tuple[Disk | Nic, ...] = after.disks if isinstance(device, Disk) else after.nics
        index = next(index for index, each in enumerate(own) if each.uuid == device.uuid)
        place = f"{'disks' if isinstance(device, Disk) else 'nics'}[{index}]"
        findings = device_clashes(after, device)
        try:
            planned = self._plan_device(after, device.uuid or "")
        except InvalidParameters as error:
            known = {(finding.code, finding.path) for finding in findings}
            found = [_said_of_device(finding, place) for finding in error.findings]
            findings += [finding for finding in found if (finding.code, finding.path) not in known]
            raise InvalidParameters(refusal, FindingSet(findings)) from error
        if findings:
            raise InvalidParameters(refusal, FindingSet(findings))
        return planned

    def _settle(self, monitor: Monitor, patience: float = 0.0) -> tuple[HotplugResult, ...]:
        pending = [change for change in self._ledger.changes.pending if change.kind == "params"]
        settled = [self._parameters(monitor).settle(change) for change in pending]
        return (*settled, *self._removal(monitor).settle(patience))

    def _parameters(self, monitor: Monitor) -> ParameterChange:
        process = self._directory.read(PROCESS, ProcessRecord, schema=SCHEMA)
        if process is None:
            raise RecordError("there is no record of its process", hint="restart it")
        return ParameterChange(
            directory=self._directory,
            ledger=self._ledger,
            monitor=monitor,
            families=self._families,
            machine=self._machine,
            pid=process.identity.pid,
        )

    def _removal(self, monitor: Monitor) -> Removal:
        return Removal(self._directory, self._ledger, monitor, self._families, self._announce)

    def _connection(self, uuid: str) -> NicPlan:
        definition, _ = read(self._ledger.instance, self._families)
        return connection_of(definition, next(nic for nic in definition.nics if nic.nic.uuid == uuid))

    def _move(self, journal: Journal, old: NicPlan, new: NicPlan, device: Disk | Nic) -> None:
        if not isinstance(device, Nic):
            return
        uuid = device.uuid or ""
        change = Change(action="change", kind="nic", uuid=uuid, since=time.time(), into=device)
        done = functools.partial(self._ledger.end, uuid)
        journal.run(Step(name="record", do=functools.partial(self._ledger.begin, change), undo=done))
        move(journal, old, new)

    def _change(self, journal: Journal, monitor: Monitor, how: Modification, wanted: DevicePlan) -> None:
        if how.link is not None:
            states = [{"name": wanted.ident, "up": up} for up in (how.link, not how.link)]
            do = functools.partial(monitor.execute, "set_link", states[0])
            undo = functools.partial(monitor.take_back, "set_link", states[1])
            journal.run(Step(name="link", do=do, undo=undo))
        if how.throttle:
            group = next(values for values in wanted.objects if values["qom-type"] == "throttle-group")
            where = {"path": f"/objects/{group['id']}", "property": "limits"}
            before = monitor.execute("qom-get", where)
            do = functools.partial(monitor.execute, "qom-set", {**where, "value": all_limits(group["limits"])})
            undo = functools.partial(monitor.take_back, "qom-set", {**where, "value": before})
            journal.run(Step(name="limits", do=do, undo=undo))

    def _plug_again(self, old: Disk | Nic, device: Disk | Nic, deadline: Deadline) -> HotplugResult:
        removed = self.remove(old.uuid or "", False, deadline)
        if not removed.done:
            detail = "the old one stays: the guest has been asked and has not let go of it yet"
            return attrs.evolve(removed, detail=detail)
        try:
            return self.add(device, deadline)
        except HypervisorError as error:
            try:
                self.add(old, Deadline.after(_BACK_PATIENCE))
            except HypervisorError as second:
                error.add_note(f"nor could the old one be added again: {second}")
            else:
                error.add_note("the old one is back")
            raise

    def _refuse_known(self, uuid: str) -> None:
        known = {
            *(disk.uuid for disk in self._ledger.instance.disks),
            *(nic.uuid for nic in self._ledger.instance.nics),
        }
        if uuid in known:
            pending = self._ledger.changes.of(uuid) is not None
            message = "its removal is under way" if pending else "the instance has it already"
            finding = Finding(code="already-there", path="device.uuid", message=message)
            raise InvalidParameters("the device cannot be added", FindingSet([finding]))


def support_of(seen: Observed) -> HotplugSupport:
    """Whether devices of an instance can be changed at all, by what is to be seen of it."""
    if not seen.started or seen.record is None:
        return HotplugSupport(supported=False, reasons=("it is not running",))
    if family_of(seen.record.machine) == "microvm":
        reason = "machine type microvm has no bus that a device can be plugged to; use q35 or pc"
        return HotplugSupport(supported=False, reasons=(reason,))
    return HotplugSupport(supported=True)


def _for_answers(guest: Deadline) -> Deadline:
    """A deadline for QEMU, which answers at once or hardly ever, where the one that was given is for the guest."""
    return Deadline.after(max(guest.timeout(), _ANSWER_PATIENCE))


def _refuse_bus(wanted: DevicePlan, monitor: Monitor, refusal: str) -> None:
    """Refuse a device that needs what only a start brings: an option, or the controller that it sits on.

    Raises:
        InvalidParameters: it does.
    """
    finding = None
    if wanted.foreign:
        message = f"it needs QEMU's option {wanted.foreign[0]}, which a running QEMU does not take"
        finding = Finding(code="not-possible", path="device", message=message, hint="add it at the next start")
    controller = str(wanted.device.get("bus", "")).partition(".")[0]
    # Other buses belong to the machine, or are chosen among those that are there.
    if controller.startswith(("scsi", "usb")) and controller not in monitor.present():
        message = f"it sits on the controller {controller}, which a device of its kind brings along at a start"
        hint = "add it at the next start, or use another bus or model"
        finding = Finding(code="not-possible", path="device", message=message, hint=hint)
    if finding is not None:
        raise InvalidParameters(refusal, FindingSet([finding]))


def _refuse_seat(device: Disk | Nic, wanted: DevicePlan, monitor: Monitor, refusal: str) -> None:
    """Refuse a device that is to go and come again where it could not come.

    Raises:
        InvalidParameters: it could not.
    """
    _refuse_bus(wanted, monitor, refusal)
    bus = device.params.get("bus")
    if isinstance(device, Disk) and bus in FIXED_BUSES:
        message = f"nothing can be plugged to bus {bus} while the guest runs"
        finding = Finding(code="not-possible", path="device.params.bus", message=message, hint="use virtio-blk or scsi")
        raise InvalidParameters(refusal, FindingSet([finding]))


def _said_of_device(finding: Finding, place: str) -> Finding:
    if finding.code == "bus-full":
        hint = "remove one, put a disk on bus scsi where it has that, or start it with more params.hotplug_ports"
        return attrs.evolve(finding, path="device", hint=hint)
    return attrs.evolve(finding, path=finding.path.replace(place, "device", 1))
