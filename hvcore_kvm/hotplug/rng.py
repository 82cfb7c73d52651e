"""Plugging the source of randomness, and asking the guest to let go of it.

It is a parameter of the instance and a device on PCI: it comes and goes as a NIC does, under a name of its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import Deadline, Finding, HotplugResult, HypervisorRefused, Instance, Journal, Step
from hvcore_kvm.hardware.builder import RNG_PLACE
from hvcore_kvm.hardware.devices import RNG, RNG_SOURCE
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.placement import PCI_ROOT, family_of
from hvcore_kvm.runtime import Change, Placement

RNG_PARAMETERS = frozenset(("rng", "rng_source", "rng_rate"))
"""Parameters that another one is plugged for."""


def rng_stays(machine: str, places: Placement | None) -> bool:
    """Whether the source of randomness that is there cannot be unplugged: it is on a bus that is fixed.

    Args:
        machine: versioned machine type.
        places: where each device sits.
    """
    at = (places.addresses if places is not None else {}).get(RNG_PLACE, "").partition("/")[0]
    family = family_of(machine)
    return family == "microvm" or (family in ("q35", "virt") and at == PCI_ROOT[family])


_FIXED = (PCI_ROOT["q35"], "virtio-mmio-bus")
"""What the names of buses begin with that nothing can be plugged to."""


@attrs.frozen
class RngChange:
    """A change of the source of randomness of a running instance.

    Attributes:
        ledger: the instance's records.
        monitor: its monitor.
        machine: its versioned machine type.
        after: its definition with the change.
        plan: the plan of that.
    """

    ledger: Ledger
    monitor: Monitor
    machine: str
    after: Instance
    plan: LaunchPlan

    @property
    def _had(self) -> bool:
        return self.ledger.instance.params.get("rng", True) is not False

    @property
    def _wanted(self) -> bool:
        return self.plan.decisions.definition.devices.rng

    def findings(self) -> Iterator[Finding]:
        """What stands against it."""
        hint = "start it again with it"
        if self._had and rng_stays(self.machine, self.ledger.placement):
            message = "the one that is there from the start is on a bus that is fixed, and stays"
            yield Finding(code="not-possible", path="params.rng", message=message, hint=hint)
        elif self._wanted and str(self._device.get("bus")).startswith(_FIXED):
            message = "the machine has no bus that it can be plugged to"
            more = "; on q35 and virt set params.hotplug_ports above 0"
            yield Finding(code="not-possible", path="params.rng", message=message, hint=f"{hint}{more}")

    def run(self, journal: Journal, guest: Deadline, replan: Callable[[Instance], LaunchPlan]) -> bool:
        """Ask the guest to let go of the one that is there, and plug the one that is wanted.

        Args:
            journal: takes back what was done, when something fails.
            guest: how long to wait for the guest.
            replan: plans a changed definition.

        Returns:
            False when the guest has not let go of the old one in time; nothing was plugged then.

        Raises:
            HypervisorRefused: QEMU's own words, or the guest keeps the old one.
        """
        if self._had:
            old = self.ledger.instance
            back = attrs.evolve(self, after=old, plan=replan(old)) if self._wanted else None
            if not self._unplug(guest):
                return False
            if back is not None:
                journal.run(Step(name="the old source of randomness", do=_nothing, undo=back._plug_back))
        if self._wanted:
            self._plug(journal)
        return True

    @property
    def _options(self) -> dict[str, Mapping[str, Any]]:
        found = {(o.value.get("id"), o.name): o.value for o in self.plan.options if o.name in ("device", "object")}
        return {"device": found[(RNG, "device")], "object": found[(RNG_SOURCE, "object")]} if self._wanted else {}

    @property
    def _device(self) -> Mapping[str, Any]:
        return self._options["device"]

    def _unplug(self, guest: Deadline) -> bool:
        ledger, monitor = self.ledger, self.monitor
        if RNG in monitor.present():
            new = ledger.changes.of(RNG) is None
            if new:
                ledger.begin(Change(action="remove", kind="rng", uuid=RNG, since=time.time()))
            try:
                _ask(monitor, new)
                gone = monitor.wait_unplugged(RNG, guest)
            except HypervisorRefused:
                ledger.end(RNG)
                raise
            if not gone:
                return False
        finish_rng(ledger, monitor)
        return True

    def _plug(self, journal: Journal) -> None:
        ledger, monitor = self.ledger, self.monitor
        before, places = ledger.instance, ledger.placement

        def write_down() -> None:
            ledger.begin(Change(action="add", kind="rng", uuid=RNG, since=time.time()))
            ledger.write(with_rng_of(before, self.after))
            if places is None or dict(places.addresses) != dict(self.plan.placement.addresses):
                ledger.place(self.plan.placement)

        def undo() -> None:
            ledger.write(before)
            if places is not None and places != ledger.placement:
                ledger.place(places)
            ledger.end(RNG)

        journal.run(Step(name="record", do=write_down, undo=undo))
        add = functools.partial(monitor.execute, "object-add", dict(self._options["object"]))
        remove = functools.partial(monitor.take_back, "object-del", {"id": RNG_SOURCE})
        journal.run(Step(name=f"object {RNG_SOURCE}", do=add, undo=remove))
        device = dict(self._device)
        journal.run(Step(name=f"device {RNG}", do=lambda: monitor.execute("device_add", device)))

    def _plug_back(self) -> None:
        with Journal(None, "plugging the old source of randomness") as journal:
            self._plug(journal)
        self.ledger.end(RNG)


def with_rng_of(instance: Instance, other: Instance | None) -> Instance:
    """A definition with the source of randomness of another one; ``None`` for none."""
    params = {key: value for key, value in instance.params.items() if key not in RNG_PARAMETERS}
    given = {"rng": False} if other is None else {k: v for k, v in other.params.items() if k in RNG_PARAMETERS}
    return attrs.evolve(instance, params={**params, **given})


def finish_rng(ledger: Ledger, monitor: Monitor) -> None:
    """Take away what fed the source of randomness, which is gone, and write that down."""
    monitor.take_back("object-del", {"id": RNG_SOURCE})
    ledger.write(with_rng_of(ledger.instance, None))
    ledger.end(RNG)


def settle_rng(
    ledger: Ledger, monitor: Monitor, change: Change, present: frozenset[str], refused: Mapping[str, float]
) -> HotplugResult:
    """Say what became of a change that is under way, by what QEMU has, and write it down.

    Args:
        ledger: the instance's records.
        monitor: its monitor.
        change: what is under way.
        present: the devices QEMU has.
        refused: when a guest last kept a device, by its id.
    """
    if RNG not in present:
        finish_rng(ledger, monitor)
        detail = "removed" if change.action == "remove" else "not added: its addition was interrupted"
    elif change.action == "add":
        ledger.end(RNG)
        detail = "added"
    elif refused.get(RNG, 0.0) >= change.since:
        ledger.end(RNG)
        detail = "the guest kept it"
    else:
        # Who wrote it down may have been killed before the guest was asked.
        monitor.attempt("device_del", {"id": RNG})
        return HotplugResult(device=RNG, done=False, detail="the guest has not let go of it yet")
    return HotplugResult(device=RNG, done=True, detail=detail)


def _ask(monitor: Monitor, new: bool) -> None:
    try:
        monitor.execute("device_del", {"id": RNG})
    except HypervisorRefused as error:
        if new or "in the process of unplug" not in str(error):
            raise


def _nothing() -> None:
    """What a step does that is there for its undo."""
