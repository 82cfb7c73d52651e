"""Changing parameters of an instance as a whole while its guest runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    HotplugResult,
    HypervisorError,
    Instance,
    InvalidParameters,
    Journal,
    LiveParameters,
    OutcomeUnknown,
    Step,
    format_size,
)
from hvcore_kvm.affinity import pin_running
from hvcore_kvm.definition import Definition, is_same, read
from hvcore_kvm.device_checks import check_pinning
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.families import Families
from hvcore_kvm.hardware.devices import RNG, usb_ids
from hvcore_kvm.hardware.storage import throttle_limits
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.modification import all_limits
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.hotplug.parameter_values import with_values
from hvcore_kvm.hotplug.rng import RNG_PARAMETERS, RngChange, with_rng_of
from hvcore_kvm.hotplug.usb import plug_usb, pull_out_usb, usb_findings
from hvcore_kvm.hotplug.virtio_serial import VirtioPorts
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.parameters.cpu import CpuParameters
from hvcore_kvm.runtime import Change

_PINS = frozenset(("cpu_pin", "emulator_pin", "iothread_pin"))
_ACTIONS = {"on_reboot": "reboot", "on_panic": "panic", "watchdog_action": "watchdog"}
_ONLY_WORDS = frozenset(("memory_min",))
_PLUGGED = RNG_PARAMETERS | {"usb", "virtio_ports"}
_FOLLOWED = ("memory_plugged", "balloon_target")
_LIVE = _PINS | _ACTIONS.keys() | _ONLY_WORDS | {"balloon_stats_interval", *_FOLLOWED, "throttle_groups"} | _PLUGGED
_PARAMS = "params"
_VIRTIO_MEM = "/machine/peripheral/virtio-mem0"
_LOOK = 0.25
"""QEMU reports at most one change of the memory a second; in between it is asked."""

Replan = Callable[[Instance], LaunchPlan]


@attrs.frozen(kw_only=True)
class ParameterChange:
    """Changes of the parameters of one running instance.

    That the definition is written down decides: up to there everything is taken back, from there on it is completed,
    also by whoever comes after one that was killed.

    Attributes:
        directory: the instance's directory.
        ledger: its records.
        monitor: its monitor.
        families: the family plugins.
        machine: its versioned machine type.
        pid: its process.
    """

    directory: InstanceDirectory
    ledger: Ledger
    monitor: Monitor
    families: Families
    machine: str
    pid: int

    def change(self, wanted: LiveParameters, replan: Replan, guest: Deadline) -> HotplugResult:
        """Give parameters new values; on failure all are as before.

        Args:
            wanted: the new values.
            replan: plans a changed definition.
            guest: how long to wait for the guest, where it has to follow.

        Raises:
            InvalidParameters: a value is wrong, or one that differs needs another start; nothing was changed.
            HypervisorRefused: QEMU's own words, or the guest keeps a device.
            HostError: the kernel does not pin the threads so.
            OutcomeUnknown: QEMU took a command and did not answer; the next operation finds out what it has.
        """
        changed, names, old, new, plan = self.check(wanted, replan)
        asked = ", ".join(name for name in names if name in changed) or "nothing"
        let_go, unknown = True, None
        with Journal(None, f"changing {asked}") as journal:
            try:
                let_go = self._change(journal, changed, old, new, plan, replan, guest)
            except OutcomeUnknown as error:
                # Nothing is undone: what QEMU has is for QEMU to say.
                unknown = error
        if unknown is not None:
            raise unknown
        if changed:
            self._pull_out(changed, new)
            self.ledger.end(_PARAMS)
        if not let_go:
            detail = "the guest has been asked to let go of rng0 and has not yet; everything else is changed"
            return HotplugResult(device=_PARAMS, done=False, detail=detail)
        followed = self._follow(changed, new, guest)
        if followed is None:
            return HotplugResult(device=_PARAMS, done=True, detail=f"changed: {asked}")
        others = ", ".join(name for name in names if name in changed and name not in _FOLLOWED)
        detail = f"changed: {others}; {followed.detail}" if others else followed.detail
        return attrs.evolve(followed, detail=detail)

    def check(
        self, wanted: LiveParameters, replan: Replan
    ) -> tuple[set[str], list[str], Definition, Definition, LaunchPlan | None]:
        """Find what is wrong with new values; touches nothing.

        Args:
            wanted: the new values.
            replan: plans a changed definition.

        Returns:
            The names of those that differ, all that were given in their order, the definition as it is and as it is
            to be, and its plan where something has to be plugged.

        Raises:
            InvalidParameters: a value is wrong, or one that differs needs another start.
        """
        before = self.ledger.instance
        after, names = with_values(before, wanted)
        old, _ = read(before, self.families)
        new, findings = read(after, self.families)
        changed = {name for name in names if not is_same(before.params.get(name), after.params.get(name))}
        if all(getattr(old.devices, name) == getattr(new.devices, name) for name in RNG_PARAMETERS):
            # Said in other words: nothing has to be plugged.
            changed -= RNG_PARAMETERS
        findings = findings or list(_findings([name for name in names if name in changed], old, new))
        _refuse(findings)
        plan = replan(after) if changed & _PLUGGED else None
        if plan is not None:
            _refuse(list(self._plug_findings(changed, old, plan)))
        return changed, list(names), old, new, plan

    def settle(self, change: Change) -> HotplugResult:
        """Bring QEMU to what is written down, after a change that was interrupted.

        Args:
            change: what was under way.
        """
        definition, _ = read(self.ledger.instance, self.families)
        names = ", ".join(change.names)
        try:
            for step in self._steps(set(change.names), definition, definition):
                step.do()
            self._pull_out(set(change.names), definition)
        except HypervisorError as error:
            return HotplugResult(device=_PARAMS, done=False, detail=f"cannot put in order {names}: {error}")
        self.ledger.end(_PARAMS)
        return HotplugResult(device=_PARAMS, done=True, detail=f"as they are written down again: {names}")

    def _plug_findings(self, changed: set[str], old: Definition, plan: LaunchPlan) -> Iterator[Finding]:
        if "usb" in changed:
            yield from usb_findings(self.monitor, plan)
        if "virtio_ports" in changed:
            ports = {port.name: port.console for port in old.devices.virtio_ports}
            yield from VirtioPorts(self.directory, self.monitor).findings(plan, ports)
        if changed & RNG_PARAMETERS:
            yield from self._rng(plan).findings()

    def _rng(self, plan: LaunchPlan) -> RngChange:
        return RngChange(self.ledger, self.monitor, self.machine, plan.decisions.definition.given, plan)

    def _change(
        self,
        journal: Journal,
        changed: set[str],
        old: Definition,
        new: Definition,
        plan: LaunchPlan | None,
        replan: Replan,
        guest: Deadline,
    ) -> bool:
        """Do what can be taken back, and write it down; false when the guest has not let go of a device in time."""
        if not changed:
            return True
        ledger = self.ledger
        began = Change(action="change", kind="params", uuid=_PARAMS, since=time.time(), names=tuple(sorted(changed)))
        done = functools.partial(ledger.end, _PARAMS)
        journal.run(Step(name="record", do=functools.partial(ledger.begin, began), undo=done))
        for step in self._steps(changed, old, new):
            journal.run(step)
        let_go, after = True, new.given
        if plan is not None:
            if "usb" in changed:
                plug_usb(journal, self.monitor, plan)
            if "virtio_ports" in changed:
                VirtioPorts(self.directory, self.monitor).plug(journal, plan)
                self._place(journal, plan)
            if changed & RNG_PARAMETERS:
                # Last: it is the guest that decides.
                let_go = self._rng(plan).run(journal, guest, replan)
                after = after if let_go else with_rng_of(after, old.given)
        ledger.write(after)
        if changed & RNG_PARAMETERS and let_go:
            ledger.end(RNG)
        return let_go

    def _place(self, journal: Journal, plan: LaunchPlan) -> None:
        before = self.ledger.placement
        if before is None or dict(before.addresses) != dict(plan.placement.addresses):
            undo = None if before is None else functools.partial(self.ledger.place, before)
            do = functools.partial(self.ledger.place, plan.placement)
            journal.run(Step(name="places", do=do, undo=undo))

    def _pull_out(self, changed: set[str], definition: Definition) -> None:
        if "usb" in changed:
            pull_out_usb(self.monitor, usb_ids(definition.devices.usb))
        if "virtio_ports" in changed:
            names = [port.name for port in definition.devices.virtio_ports]
            VirtioPorts(self.directory, self.monitor).pull_out(names)

    def _steps(self, changed: set[str], old: Definition, new: Definition) -> Iterator[Step]:
        if changed & _PINS:
            do, undo = (functools.partial(self._pin, definition.cpu) for definition in (new, old))
            yield Step(name="pinning", do=do, undo=undo)
        actions = sorted(changed & _ACTIONS.keys())
        if actions:
            values = [{_ACTIONS[n]: _action(d, n) for n in actions} for d in (new, old)]
            yield self._command("set-action", *values)
        if "balloon_stats_interval" in changed:
            where = ("/machine/peripheral/balloon0", "guest-stats-polling-interval")
            yield self._property(*where, *(int(d.memory.balloon_stats_interval) for d in (new, old)))
        if "throttle_groups" in changed:
            for name, limits in sorted(new.storage.throttle_groups.items()):
                pair = [all_limits(throttle_limits(one)) for one in (limits, old.storage.throttle_groups[name])]
                yield self._property(f"/objects/group-{name}", "limits", *pair)
        if "memory_plugged" in changed:
            yield self._property(_VIRTIO_MEM, "requested-size", *(d.memory.memory_plugged for d in (new, old)))
        if "balloon_target" in changed:
            yield self._command("balloon", *({"value": _target(d)} for d in (new, old)))

    def _command(self, command: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Step:
        undo: Callable[[], None] = functools.partial(self.monitor.take_back, command, old)
        return Step(name=command, do=functools.partial(self.monitor.execute, command, new), undo=undo)

    def _property(self, path: str, name: str, new: Any, old: Any) -> Step:
        values = [{"path": path, "property": name, "value": value} for value in (new, old)]
        return attrs.evolve(self._command("qom-set", *values), name=f"{name} of {path}")

    def _pin(self, cpu: CpuParameters) -> None:
        whole = cpu.cpu_pin or "all"
        # Threads that the new masks do not name run anywhere again; one mask for the whole process names them all.
        rest = "all" if ":" in whole else None
        masks = {"cpu": whole, "emulator": cpu.emulator_pin or rest, "iothread": cpu.iothread_pin or rest}
        pin_running(self.pid, self.monitor.execute, **masks)

    def _follow(self, changed: set[str], new: Definition, guest: Deadline) -> HotplugResult | None:
        """Wait until the guest has taken or given back memory, which it does block by block and page by page."""
        wanted = {"memory_plugged": new.memory.memory_plugged, "balloon_target": _target(new)}
        titles = {"memory_plugged": "of memory_plugged", "balloon_target": "of memory"}
        found = [(name, self._reach(name, wanted[name], guest)) for name in _FOLLOWED if name in changed]
        if not found:
            return None
        done = all(has == wanted[name] for name, has in found)
        details = [
            f"the guest has {format_size(has)} {titles[name]}"
            + ("" if has == wanted[name] else f", was asked for {format_size(wanted[name])}, and may still follow")
            for name, has in found
        ]
        return HotplugResult(device=_PARAMS, done=done, detail="; ".join(details))

    def _reach(self, name: str, wanted: int, guest: Deadline) -> int:
        event = "BALLOON_CHANGE" if name == "balloon_target" else "MEMORY_DEVICE_SIZE_CHANGE"
        while (has := self._memory(name)) != wanted and not guest.expired:
            self.monitor.wait_event(lambda message: message["event"] == event, guest.sooner(_LOOK))
        return has

    def _memory(self, name: str) -> int:
        """How much memory the guest has now: of the virtio-mem device, or by the balloon."""
        if name == "balloon_target":
            size = self.monitor.execute("query-balloon").get("actual")
        else:
            size = self.monitor.execute("qom-get", {"path": _VIRTIO_MEM, "property": "size"})
        if type(size) is not int:
            raise OutcomeUnknown("QEMU does not say how much memory the guest has")
        return size


def _refuse(findings: list[Finding]) -> None:
    if findings:
        raise InvalidParameters("the parameters cannot be changed", FindingSet(findings))


def _findings(changed: list[str], old: Definition, new: Definition) -> Iterator[Finding]:
    hint = "start it again with it"
    for name in changed:
        if name not in _LIVE:
            message = "does not change while the guest runs"
            yield Finding(code="not-possible", path=f"params.{name}", message=message, hint=hint)
    if old.storage.throttle_groups.keys() != new.storage.throttle_groups.keys():
        message = "groups neither come nor go while the guest runs; their limits change"
        yield Finding(code="not-possible", path="params.throttle_groups", message=message, hint=hint)
    yield from check_pinning(new)


def _action(definition: Definition, name: str) -> Any:
    return getattr(definition.devices if name == "watchdog_action" else definition.machine, name)


def _target(definition: Definition) -> int:
    return definition.memory.balloon_target or definition.instance.memory
