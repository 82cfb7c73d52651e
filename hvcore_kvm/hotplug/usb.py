"""Plugging the USB devices of an instance's list, and pulling them out: as with a real plug, nobody asks the guest."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator

from hvcore import Finding, Journal, Step
from hvcore_kvm.hardware.builder import USB
from hvcore_kvm.hardware.devices import USB_PREFIX
from hvcore_kvm.hotplug.addition import pass_images
from hvcore_kvm.hotplug.device_plan import DevicePlan, usb_device_of, with_sets
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.launch_plan import LaunchPlan


def usb_findings(monitor: Monitor, plan: LaunchPlan) -> Iterator[Finding]:
    """What stands against plugging what the list of a plan has and QEMU has not."""
    present = monitor.present()
    wanted = _wanted(plan)
    seen_host = any(one.ident in present and one.device["driver"] == "usb-host" for one in wanted)
    for index, device in enumerate(wanted):
        if device.ident in present:
            continue
        message = None
        if USB not in present:
            message = "it was started without a USB controller"
        elif device.foreign:
            message = f"it needs QEMU's option {device.foreign[0]}, which a running QEMU does not take"
        elif device.device["driver"] == "usb-host" and plan.security.root is not None and not seen_host:
            message = "its QEMU does not see the host's USB devices"
        if message is not None:
            hint = "start it again with it"
            yield Finding(code="not-possible", path=f"params.usb[{index}]", message=message, hint=hint)


def plug_usb(journal: Journal, monitor: Monitor, plan: LaunchPlan) -> None:
    """Plug what the list of a plan has and QEMU has not.

    Args:
        journal: takes back what was plugged, when something fails.
        monitor: the instance's monitor.
        plan: the plan of the instance with the new list.

    Raises:
        HypervisorRefused: QEMU's own words.
    """
    present = monitor.present()
    for device in _wanted(plan):
        if device.ident not in present:
            _plug(journal, monitor, device)


def pull_out_usb(monitor: Monitor, keep: Collection[str]) -> None:
    """Pull out every device of the list but these, and take away what one that is not there has left behind.

    Args:
        monitor: the instance's monitor.
        keep: ids of those that stay.

    Raises:
        DeadlineExceeded: QEMU does not let go of one.
    """
    there = {ident for ident in monitor.present() if ident.startswith(USB_PREFIX)}
    for ident in sorted(there - set(keep)):
        _remove(monitor, ident)
    nodes = {row["node-name"] for row in monitor.execute("query-named-block-nodes", {"flat": True})}
    left = {name for name in nodes if name.startswith(USB_PREFIX)}
    left |= {str(fd.get("opaque")) for row in monitor.execute("query-fdsets") for fd in row["fds"]}
    for ident in sorted(left - set(keep)):
        if ident.startswith(USB_PREFIX):
            _take_backend(monitor, ident)


def _wanted(plan: LaunchPlan) -> list[DevicePlan]:
    return [usb_device_of(plan, index) for index in range(len(plan.decisions.definition.devices.usb))]


def _plug(journal: Journal, monitor: Monitor, device: DevicePlan) -> None:
    # What an addition that was interrupted has left.
    _take_backend(monitor, device.ident)
    sets = pass_images(journal, monitor, device)
    for node in device.nodes:
        add = functools.partial(monitor.execute, "blockdev-add", with_sets(node, sets))
        undo = functools.partial(_take_backend, monitor, device.ident)
        journal.run(Step(name=f"block node {node['node-name']}", do=add, undo=undo))
    do = functools.partial(monitor.execute, "device_add", dict(device.device))
    journal.run(Step(name=f"plug {device.ident}", do=do, undo=functools.partial(_remove, monitor, device.ident)))


def _remove(monitor: Monitor, ident: str) -> None:
    monitor.take_back("device_del", {"id": ident})
    monitor.wait_gone(ident)


def _take_backend(monitor: Monitor, ident: str) -> None:
    monitor.take_when_free("blockdev-del", {"node-name": ident}, "is in use")
    for row in monitor.execute("query-fdsets"):
        if any(fd.get("opaque") == ident for fd in row["fds"]):
            monitor.take_back("remove-fd", {"fdset-id": row["fdset-id"]})
