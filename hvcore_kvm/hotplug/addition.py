"""Adding one device: a row of steps, each with what takes it back."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from hvcore import Instance, Journal, Step
from hvcore_kvm.companions import start_companion
from hvcore_kvm.directory import COMPANIONS_OUTPUT, InstanceDirectory
from hvcore_kvm.families import InterfaceEvent
from hvcore_kvm.hotplug.device_plan import DevicePlan, netdev_numbers, secret_object, with_names, with_sets
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.runtime import Change, DeviceKind, Placement

_FIRST_SET = 1_000
"""Number of the first descriptor set of a device that was added; those of a start begin with 1."""
_LAST_SET = 100_000


class Addition:
    """The addition of one device to a running instance. Use it once.

    Args:
        directory: the instance's directory.
        ledger: its records.
        monitor: its monitor.
        wanted: what makes the device.
        placement: the places of all devices, this one included.
        announce: told of a network interface that has come up.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        ledger: Ledger,
        monitor: Monitor,
        wanted: DevicePlan,
        placement: Placement,
        announce: Callable[[InterfaceEvent], None],
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._monitor = monitor
        self._wanted = wanted
        self._placement = placement
        self._announce = announce

    def run(self, journal: Journal, after: Instance) -> None:
        """Do the steps, the device itself last.

        Args:
            journal: undoes them on failure.
            after: the definition with the device.
        """
        wanted, monitor = self._wanted, self._monitor
        self._write_down(journal, after)
        for values in wanted.objects:
            self._object(journal, values)
        sets = pass_images(journal, monitor, wanted)
        for node in wanted.nodes:
            name = node["node-name"]
            add = functools.partial(monitor.execute, "blockdev-add", with_sets(node, sets))
            remove = functools.partial(monitor.take_back, "blockdev-del", {"node-name": name})
            journal.run(Step(name=f"block node {name}", do=add, undo=remove))
        self._connect(journal)
        device = dict(wanted.device)
        journal.run(Step(name=f"device {wanted.ident}", do=lambda: monitor.execute("device_add", device)))
        if wanted.nic is not None and not wanted.nic[0].parameters.link_up:
            monitor.execute("set_link", {"name": wanted.ident, "up": False})

    def _write_down(self, journal: Journal, after: Instance) -> None:
        wanted, ledger = self._wanted, self._ledger
        before, places = ledger.instance, ledger.placement
        kind: DeviceKind = "disk" if wanted.kind == "disk" else "nic"

        def do() -> None:
            ledger.begin(Change(action="add", kind=kind, uuid=wanted.uuid, since=time.time()))
            ledger.write(after)
            if places is None or dict(places.addresses) != dict(self._placement.addresses):
                # Written down to outlast a crash of the host, which takes time.
                ledger.place(self._placement)

        def undo() -> None:
            ledger.write(before)
            if places is not None and places != ledger.placement:
                ledger.place(places)
            ledger.end(wanted.uuid)

        journal.run(Step(name="record", do=do, undo=undo))

    def _object(self, journal: Journal, values: Mapping[str, Any]) -> None:
        def do() -> None:
            self._monitor.execute("object-add", secret_object(values, self._wanted.fds))

        undo = functools.partial(self._monitor.take_back, "object-del", {"id": values["id"]})
        journal.run(Step(name=f"object {values['id']}", do=do, undo=undo))

    def _connect(self, journal: Journal) -> None:
        """Bring up a NIC's connection on the host, and hand it to QEMU."""
        wanted, monitor = self._wanted, self._monitor
        if wanted.nic is None or wanted.netdev is None:
            return
        nic, plan = wanted.nic
        for step in plan.down:
            journal.run(Step(name=f"{nic.origin}: prepare", do=_nothing, undo=step.do))
        for step in plan.up:
            journal.run(step)
        try:
            for companion in plan.companions:
                output = self._directory.append_only(COMPANIONS_OUTPUT)
                try:
                    start_companion(companion, output)
                finally:
                    os.close(output)
            names: dict[int, str] = {}
            for number in netdev_numbers(wanted.netdev):
                names[number] = name = f"{wanted.ident}-{len(names)}"
                pass_on = functools.partial(_pass, monitor, wanted.fds[number].open, "getfd", {"fdname": name})
                # A name survives the connection that passed it, until a backend takes it.
                remove = functools.partial(monitor.take_back, "closefd", {"fdname": name})
                journal.run(Step(name=f"descriptor {name}", do=pass_on, undo=remove))
        finally:
            # Its end goes with QEMU's; nobody else keeps it.
            for companion in plan.companions:
                companion.let_go()
        ident = wanted.netdev["id"]
        add = functools.partial(monitor.execute, "netdev_add", with_names(wanted.netdev, names))
        remove = functools.partial(monitor.take_back, "netdev_del", {"id": ident})
        journal.run(Step(name=f"backend {ident}", do=add, undo=remove))
        if plan.interface:
            name = self._ledger.instance.name
            self._announce(InterfaceEvent(instance=name, nic=nic.nic, interface=plan.interface, change="up"))


def pass_images(journal: Journal, monitor: Monitor, wanted: DevicePlan) -> dict[int, int]:
    """Pass on the descriptors of images; returns the number of each set by its number in the plan."""
    taken = [row["fdset-id"] for row in monitor.execute("query-fdsets")] if wanted.images else []
    number = max([_FIRST_SET, *(one + 1 for one in taken if one < _LAST_SET)])
    sets = {}
    for planned, request in wanted.images.items():
        sets[planned] = number
        arguments = {"fdset-id": number, "opaque": wanted.ident}
        do = functools.partial(_pass, monitor, request.open, "add-fd", arguments)
        undo = functools.partial(monitor.take_back, "remove-fd", {"fdset-id": number})
        journal.run(Step(name=f"descriptor of {request.name}", do=do, undo=undo))
        number += 1
    return sets


def _pass(monitor: Monitor, open_it: Callable[[], int], command: str, arguments: Mapping[str, Any]) -> None:
    fd = open_it()
    try:
        monitor.execute(command, arguments, fds=(fd,))
    finally:
        os.close(fd)


def _nothing() -> None:
    """What a step does that is there for its undo."""
