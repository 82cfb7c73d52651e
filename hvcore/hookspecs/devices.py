"""Changing a running instance. The facade holds the instance's lock around every hook but the two questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.model.devices import BalloonResult, Device, HotplugResult, HotplugSupport, ResizeResult


@hookspec(firstresult=True)
def hv_hotplug_supported(name: str, deadline: Deadline) -> HotplugSupport:
    """Say whether devices of an instance can be changed while it runs.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        Whether, and why not.

    Errors: `InstanceNotFound`.

    Capability: ``hotplug``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_verify_hotplug_support(name: str, action: str, device: Device, deadline: Deadline) -> HotplugSupport:
    """Say whether one device can be changed now: its type, its place, what the hypervisor can do.

    Args:
        name: name of the instance.
        action: ``add``, ``remove`` or ``modify``.
        device: the disk or NIC.
        deadline: by when to be done.

    Returns:
        Whether, and why not.

    Errors: `InstanceNotFound`.

    Capability: ``hotplug``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_hot_add_device(name: str, device: Device, deadline: Deadline) -> HotplugResult:
    """Add a disk or NIC to a running instance; on failure everything is as before.

    Args:
        name: name of the instance.
        device: the disk or NIC, its uuid filled in.
        deadline: by when to be done.

    Returns:
        What became of it.

    Errors: `NotRunning`; `InvalidParameters`; `HypervisorRefused`; `OperationFailed`; `OutcomeUnknown`.

    Capability: ``hotplug``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_hot_del_device(name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
    """Remove a device from a running instance; its backend goes only after the guest has let go of it.

    Args:
        name: name of the instance.
        device: uuid of the device.
        force: take it away from a guest that does not let go, where that is possible.
        deadline: how long to wait for the guest; after it the removal is pending, recorded and finished later.

    Returns:
        Done or pending.

    Errors: `NotRunning`; `InvalidParameters` when there is no such device; `HypervisorRefused` when the guest
    refused.

    Capability: ``hotplug``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_hot_mod_device(name: str, device: Device, deadline: Deadline) -> HotplugResult:
    """Change a device of a running instance to a new description with the same uuid, without unplugging if possible.

    Args:
        name: name of the instance.
        device: the new description.
        deadline: by when to be done.

    Returns:
        What became of it.

    Errors: as `hv_hot_add_device` and `hv_hot_del_device`.

    Capability: ``hotplug``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_resize_disk(name: str, device: str, size: int, deadline: Deadline) -> ResizeResult:
    """Grow a disk of a running instance; one that has the size already is no error.

    Args:
        name: name of the instance.
        device: uuid of the disk.
        size: new size in bytes. The facade refuses what is no such number.
        deadline: by when to be done.

    Returns:
        Size before and after, in bytes.

    Errors: `NotRunning`; `InvalidParameters`, also for shrinking; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``resize-disk``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_balloon_instance_memory(name: str, memory: int, deadline: Deadline) -> BalloonResult:
    """Ask the guest to give memory back or take more, and wait for it.

    Args:
        name: name of the instance.
        memory: bytes the guest should have.
        deadline: how long to wait for the guest; one that has not obeyed by then is no error, and may do so later.

    Returns:
        What was asked for and what was reached.

    Errors: `NotRunning`; `InvalidParameters` outside the instance's limits; `UnsupportedOperation` when there is no
    balloon; `HypervisorRefused`; `OutcomeUnknown`.

    Capability: ``balloon``. Since: 0.1.
    """
