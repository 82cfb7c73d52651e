"""Removing a device: the guest is asked, and what is behind the device goes only once the guest has let go of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from hvcore import (
    Deadline,
    Disk,
    Finding,
    FindingSet,
    HotplugResult,
    HypervisorRefused,
    InvalidParameters,
    find_device,
    with_other_device,
    without_device,
)
from hvcore_kvm.block_nodes import node_names
from hvcore_kvm.definition import read
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.events import read_events
from hvcore_kvm.families import Families, InterfaceEvent
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.hardware.storage import layer_prefix
from hvcore_kvm.hotplug.connection import moves
from hvcore_kvm.hotplug.ledger import Ledger, kind_of
from hvcore_kvm.hotplug.monitor import UNPLUG_REFUSED, Monitor
from hvcore_kvm.hotplug.processors import settle_processor
from hvcore_kvm.hotplug.rng import settle_rng
from hvcore_kvm.release import connection_of
from hvcore_kvm.runtime import Change

_MOST_DESCRIPTORS = 64
_NODE_PATIENCE = 10.0
_LETTING_GO = ("in use", "not owned")
"""What QEMU says of a block node that may be gone in a moment."""


class Removal:
    """Removals from one running instance.

    Args:
        directory: the instance's directory.
        ledger: its records.
        monitor: its monitor.
        families: the family plugins.
        announce: told of network interfaces that have gone down.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        ledger: Ledger,
        monitor: Monitor,
        families: Families,
        announce: Callable[[InterfaceEvent], None],
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._monitor = monitor
        self._families = families
        self._announce = announce

    def run(self, uuid: str, force: bool, guest: Deadline) -> HotplugResult:
        """Ask for a device and wait for the guest.

        Args:
            uuid: its identity.
            force: take a NIC's connection away at once, whether the guest lets go of the NIC or not.
            guest: how long to wait for the guest.
        """
        device = find_device(self._ledger.instance, uuid)
        kind = kind_of(device)
        ident = device_id(kind, uuid)
        if force and kind == "disk":
            message = "a disk stays until the guest lets go of it; a reset of the guest completes its removal"
            finding = Finding(code="not-possible", path="force", message=message)
            raise InvalidParameters("it cannot be removed by force", FindingSet([finding]))
        if ident not in self._monitor.present():
            self.finish(uuid)
            return HotplugResult(device=uuid, done=True, detail="it was gone already")
        new = self._ledger.changes.of(uuid) is None
        if new:
            self._ledger.begin(Change(action="remove", kind=kind, uuid=uuid, since=time.time()))
        self._request(ident, uuid, new)
        if force:
            self._monitor.take_back("set_link", {"name": ident, "up": False})
            self._monitor.take_back("netdev_del", {"id": device_id("net", uuid)})
        try:
            gone = self._monitor.wait_unplugged(ident, guest)
        except HypervisorRefused:
            self._ledger.end(uuid)
            raise
        if not gone:
            detail = "the guest has been asked and has not let go of it yet; it is finished when it does"
            return HotplugResult(device=uuid, done=False, detail=detail)
        self.finish(uuid)
        return HotplugResult(device=uuid, done=True, detail="the guest has let go of it")

    def _request(self, ident: str, uuid: str, new: bool) -> None:
        try:
            self._monitor.execute("device_del", {"id": ident})
        except HypervisorRefused as error:
            if not new and "in the process of unplug" in str(error):
                return
            if new:
                self._ledger.end(uuid)
            raise

    def settle(self, patience: float = 0.0) -> tuple[HotplugResult, ...]:
        """Complete or take back what is under way, by what QEMU has.

        Args:
            patience: seconds to wait for a guest that is about to let go, for all together.

        Returns:
            What became of each device; parameters that are being changed are left alone.
        """
        pending = [change for change in self._ledger.changes.pending if change.kind != "params"]
        if not pending:
            return ()
        waiting = Deadline.after(patience)
        for change in pending:
            ident = change.uuid if change.kind == "rng" else device_id(change.kind, change.uuid)
            # A virtual CPU goes without an event.
            if change.action == "remove" and change.kind != "vcpu" and ident in self._monitor.present():
                # One that refuses has said so in the events, too.
                with contextlib.suppress(HypervisorRefused):
                    self._monitor.wait_unplugged(ident, waiting)
        present = self._monitor.present()
        events = read_events(self._directory)
        refused = {str(event.data.get("device")): event.time for event in events if event.name in UNPLUG_REFUSED}
        results = []
        for change in pending:
            if change.kind == "vcpu":
                results.append(settle_processor(self._ledger, self._monitor, change, events))
            elif change.kind == "rng":
                results.append(settle_rng(self._ledger, self._monitor, change, present, refused))
            else:
                results.append(self._settle(change, present, refused))
        return tuple(results)

    def _settle(self, change: Change, present: frozenset[str], refused: Mapping[str, float]) -> HotplugResult:
        ident = device_id(change.kind, change.uuid)
        if ident not in present:
            self.finish(change.uuid)
            detail = "removed" if change.action == "remove" else "not added: its addition was interrupted"
        elif change.action == "add":
            self._ledger.end(change.uuid)
            detail = "added"
        elif change.action == "change":
            self._connect_again(change)
            self._ledger.end(change.uuid)
            detail = "connected as it is written down"
        elif refused.get(ident, 0.0) >= change.since:
            self._ledger.end(change.uuid)
            detail = "the guest kept it"
        else:
            return HotplugResult(device=change.uuid, done=False, detail="the guest has not let go of it yet")
        return HotplugResult(device=change.uuid, done=True, detail=detail)

    def _connect_again(self, change: Change) -> None:
        """Connect a NIC as its definition says, wherever a change that was interrupted has left it."""
        plans = []
        known = self._ledger.instance
        for instance in (known, known if change.into is None else with_other_device(known, change.into)):
            definition, _ = read(instance, self._families)
            nic = next(nic for nic in definition.nics if nic.nic.uuid == change.uuid)
            plans.append((connection_of(definition, nic), nic))
        (now, nic), (left, _) = plans
        for step in moves(left, now):
            step.do()
        self._monitor.attempt("set_link", {"name": device_id("nic", change.uuid), "up": nic.parameters.link_up})

    def finish(self, uuid: str) -> None:
        """Take away what is behind a device that QEMU has not any more, and forget the device."""
        device = find_device(self._ledger.instance, uuid)
        if isinstance(device, Disk):
            self._take_disk(uuid)
        else:
            self._take_nic(uuid)
        self._ledger.write(without_device(self._ledger.instance, uuid))
        self._ledger.end(uuid)

    def _take_disk(self, uuid: str) -> None:
        monitor, ident = self._monitor, device_id("disk", uuid)
        # A disk with external snapshots is not removed on request, but a guest can let go of what it wants.
        layers = [name for name in node_names(monitor) if name.startswith(layer_prefix(uuid))]
        self._delete_nodes(frozenset((ident, *layers)))
        objects = {row["name"] for row in monitor.execute("qom-list", {"path": "/objects"})}
        for kind in ("throttle", "secret"):
            if device_id(kind, uuid) in objects:
                monitor.execute("object-del", {"id": device_id(kind, uuid)})
        for row in monitor.execute("query-fdsets"):
            if any(fd.get("opaque") in (ident, *layers) for fd in row["fds"]):
                monitor.take_back("remove-fd", {"fdset-id": row["fdset-id"]})

    def _delete_nodes(self, idents: frozenset[str]) -> None:
        """Delete block nodes, each before what it is upon; QEMU may still be letting go of them."""
        patience = Deadline.after(_NODE_PATIENCE)
        while left := idents & node_names(self._monitor):
            refused = []
            for ident in left:
                try:
                    self._monitor.execute("blockdev-del", {"node-name": ident})
                except HypervisorRefused as error:
                    refused.append(error)
            if len(refused) == len(left):
                # One that is within another goes with that.
                if patience.expired or not any(words in error.text for error in refused for words in _LETTING_GO):
                    raise refused[0]
                self._monitor.pause()

    def _take_nic(self, uuid: str) -> None:
        monitor = self._monitor
        monitor.take_back("netdev_del", {"id": device_id("net", uuid)})
        for index in range(_MOST_DESCRIPTORS):
            with contextlib.suppress(HypervisorRefused):
                # Those that no backend has taken: of an addition that was interrupted.
                monitor.execute("closefd", {"fdname": f"{device_id('nic', uuid)}-{index}"})
                continue
            break
        definition, _ = read(self._ledger.instance, self._families)
        nic = next(nic for nic in definition.nics if nic.nic.uuid == uuid)
        plan = connection_of(definition, nic)
        for step in plan.down:
            step.do()
        if plan.interface:
            name = self._ledger.instance.name
            self._announce(InterfaceEvent(instance=name, nic=nic.nic, interface=plan.interface, change="down"))
