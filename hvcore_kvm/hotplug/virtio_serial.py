"""Plugging ports of the virtio-serial controller and pulling them out; the guest is told, and not asked."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hvcore import Finding, Journal, Step
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.hardware.builder import VIRTIO_SERIAL
from hvcore_kvm.hardware.virtio_serial import PORT_PREFIX, port_id
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.launch_plan import LaunchPlan


class VirtioPorts:
    """The ports of one running instance.

    Args:
        directory: the instance's directory, where their sockets are.
        monitor: its monitor.
    """

    def __init__(self, directory: InstanceDirectory, monitor: Monitor) -> None:
        self._directory = directory
        self._monitor = monitor

    def findings(self, plan: LaunchPlan, before: Mapping[str, bool]) -> Iterator[Finding]:
        """What stands against the ports of a plan.

        Args:
            plan: the plan of the instance with the new ports.
            before: for each port by its name, whether it is a console.
        """
        has_controller = VIRTIO_SERIAL in self._monitor.present()
        for index, port in enumerate(plan.decisions.definition.devices.virtio_ports):
            path = f"params.virtio_ports[{index}]"
            if before.get(port.name, port.console) is not port.console:
                message = f"{port.name} cannot become another kind of port while the guest has it"
                hint = "give the new one another name, or start it again with it"
                yield Finding(code="not-possible", path=f"{path}.console", message=message, hint=hint)
            elif port.name not in before and not has_controller:
                message = "it was started without a virtio-serial controller"
                hint = "start it again with it; it then has one"
                yield Finding(code="not-possible", path=path, message=message, hint=hint)

    def plug(self, journal: Journal, plan: LaunchPlan) -> None:
        """Plug what a plan has and QEMU has not.

        Args:
            journal: takes it back, when something fails.
            plan: the plan of the instance with the new ports.

        Raises:
            HypervisorRefused: QEMU's own words.
        """
        present = self._monitor.present()
        for port in plan.decisions.definition.devices.virtio_ports:
            ident = port_id(port.name)
            if ident not in present:
                values = [o.value for o in plan.options if o.name == "device" and o.value["id"] == ident]
                self._plug(journal, ident, values[0])

    def pull_out(self, keep: Collection[str]) -> None:
        """Pull out every port whose name is not one of these, and take away what one that is not there has left.

        Raises:
            DeadlineExceeded: QEMU does not let go of one.
        """
        monitor = self._monitor
        wanted = {port_id(name) for name in keep}
        there = {ident for ident in monitor.present() if ident.startswith(PORT_PREFIX)}
        for ident in sorted(there - wanted):
            monitor.take_back("device_del", {"id": ident})
            monitor.wait_gone(ident)
        left = {row["label"] for row in monitor.execute("query-chardev") if row["label"].startswith(PORT_PREFIX)}
        left |= {name for name in os.listdir(self._directory.path) if name.startswith(PORT_PREFIX)}
        for ident in sorted(left - wanted):
            self._take_socket(ident)

    def _plug(self, journal: Journal, ident: str, device: Mapping[str, Any]) -> None:
        monitor = self._monitor
        # What an addition that was interrupted has left.
        self._take_socket(ident)
        undo = functools.partial(self._take_socket, ident)
        journal.run(Step(name=f"socket {ident}", do=functools.partial(self._listen, ident), undo=undo))

        def unplug() -> None:
            monitor.take_back("device_del", {"id": ident})
            monitor.wait_gone(ident)

        add = functools.partial(monitor.execute, "device_add", dict(device))
        journal.run(Step(name=f"plug {ident}", do=add, undo=unplug))

    def _listen(self, ident: str) -> None:
        fd = self._directory.listen(ident)
        try:
            self._monitor.execute("getfd", {"fdname": ident}, fds=(fd,))
        finally:
            os.close(fd)
        address = {"type": "fd", "data": {"str": ident}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        self._monitor.execute("chardev-add", {"id": ident, "backend": backend})

    def _take_socket(self, ident: str) -> None:
        self._monitor.take_when_free("chardev-remove", {"id": ident}, "is busy")
        # One that no character device has taken.
        self._monitor.take_back("closefd", {"fdname": ident})
        self._directory.remove(ident)
