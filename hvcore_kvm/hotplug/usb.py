"""Plugging the USB devices of an instance's list, and pulling them out: as with a real plug, nobody asks the guest."""

from __future__ import annotations

import functools

from hvcore import DeadlineExceeded, Finding, FindingSet, HypervisorRefused, InvalidParameters, Journal, Step
from hvcore_kvm.hardware.builder import USB
from hvcore_kvm.hardware.devices import USB_PREFIX
from hvcore_kvm.hotplug.addition import pass_images
from hvcore_kvm.hotplug.device_plan import DevicePlan, usb_device_of, with_sets
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.launch_plan import LaunchPlan


def change_usb(journal: Journal, monitor: Monitor, plan: LaunchPlan) -> None:
    """Plug what the list of a plan has and QEMU has not, then pull out what QEMU has and the list has not.

    What QEMU has decides, so it also completes a change that was interrupted.

    Args:
        journal: takes back what was plugged, when something fails.
        monitor: the instance's monitor.
        plan: the plan of the instance with the new list.

    Raises:
        InvalidParameters: one cannot be plugged while the guest runs; nothing was touched.
        HypervisorRefused: QEMU's own words.
    """
    present = monitor.present()
    wanted = [usb_device_of(plan, index) for index in range(len(plan.decisions.definition.devices.usb))]
    new = [device for device in wanted if device.ident not in present]
    _refuse_impossible(plan, new, wanted, present)
    for device in new:
        _plug(journal, monitor, device)
    for ident in sorted(present - {device.ident for device in wanted}):
        if ident.startswith(USB_PREFIX):
            _pull_out(monitor, ident)


def _refuse_impossible(
    plan: LaunchPlan, new: list[DevicePlan], wanted: list[DevicePlan], present: frozenset[str]
) -> None:
    findings = []
    seen_host = any(one.ident in present and one.device["driver"] == "usb-host" for one in wanted)
    for device in new:
        message = None
        if USB not in present:
            message = "it was started without a USB controller"
        elif device.foreign:
            message = f"it needs QEMU's option {device.foreign[0]}, which a running QEMU does not take"
        elif device.device["driver"] == "usb-host" and plan.security.root is not None and not seen_host:
            message = "its QEMU does not see the host's USB devices"
        if message is not None:
            path = f"params.usb[{wanted.index(device)}]"
            findings.append(Finding(code="not-possible", path=path, message=message, hint="start it again with it"))
    if findings:
        raise InvalidParameters("the USB devices cannot be changed", FindingSet(findings))


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


def _pull_out(monitor: Monitor, ident: str) -> None:
    _remove(monitor, ident)
    _take_backend(monitor, ident)


def _remove(monitor: Monitor, ident: str) -> None:
    monitor.take_back("device_del", {"id": ident})
    while ident in monitor.present():
        if monitor.deadline.expired:
            raise DeadlineExceeded(f"QEMU does not let go of the USB device {ident}")
        monitor.pause()


def _take_backend(monitor: Monitor, ident: str) -> None:
    while True:
        try:
            monitor.execute("blockdev-del", {"node-name": ident})
        except HypervisorRefused as error:
            # It may still be let go of when the device is not seen any more.
            if "is in use" not in str(error) or monitor.deadline.expired:
                break
            monitor.pause()
    for row in monitor.execute("query-fdsets"):
        if any(fd.get("opaque") == ident for fd in row["fds"]):
            monitor.take_back("remove-fd", {"fdset-id": row["fdset-id"]})
