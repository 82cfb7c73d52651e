"""The part of a plan that belongs to one device, and the same as commands for a running QEMU.

A device is planned as for a start, as part of the whole instance, so that it is the same device whether it was there
from the beginning or was added. What a start passes on as inherited descriptors is sent over the monitor instead.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from hvcore_kvm import process
from hvcore_kvm.command_line import Option
from hvcore_kvm.definition import Definition, NicDefinition
from hvcore_kvm.families import FdRequest, NicPlan
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.hardware.devices import usb_ids
from hvcore_kvm.launch_plan import LaunchPlan

_FDSET = re.compile(r"/dev/fdset/([0-9]+)")
_OWN_FD = re.compile(r"/proc/self/fd/([0-9]+)")
_NUMBERS = ("fd", "fds", "vhostfd", "vhostfds")
_HOT_OPTIONS = ("object", "blockdev", "netdev", "device", "add-fd")


@attrs.frozen(kw_only=True)
class DevicePlan:
    """Everything that makes one device.

    Attributes:
        uuid: its identity.
        kind: ``disk``, ``nic`` or ``usb``.
        ident: its id in QEMU.
        objects: objects it needs: throttle groups, secrets.
        images: descriptors of files by the number of their set in the plan.
        nodes: its block nodes.
        netdev: the backend of a NIC.
        device: the device itself, on its place.
        fds: descriptors by their number in the plan.
        nic: a NIC, and how it is connected.
        foreign: options it needs that cannot be given to a running QEMU.
    """

    uuid: str
    kind: str
    ident: str
    objects: tuple[Mapping[str, Any], ...] = ()
    images: Mapping[int, FdRequest] = attrs.field(factory=dict)
    nodes: tuple[Mapping[str, Any], ...] = ()
    netdev: Mapping[str, Any] | None = None
    device: Mapping[str, Any] = attrs.field(factory=dict)
    fds: Mapping[int, FdRequest] = attrs.field(factory=dict)
    nic: tuple[NicDefinition, NicPlan] | None = None
    foreign: tuple[str, ...] = ()


def plan_of(plan: LaunchPlan, uuid: str) -> DevicePlan:
    """Cut the part of one disk or NIC out of the plan of its whole instance."""
    return cut(plan.decisions.definition, plan.nics, plan.options, plan.fds, uuid)


def cut(
    definition: Definition,
    nics: Sequence[tuple[NicDefinition, NicPlan]],
    planned: Sequence[Option],
    requests: Sequence[FdRequest],
    uuid: str,
) -> DevicePlan:
    """Cut the part of one disk or NIC out of a plan.

    Args:
        definition: the instance.
        nics: how its NICs are connected.
        planned: options, every device on its place.
        requests: the descriptors they name.
        uuid: the device.
    """
    disk = next((disk for disk in definition.disks if disk.disk.uuid == uuid), None)
    nic = next(((nic, how) for nic, how in nics if nic.nic.uuid == uuid), None)
    origin = disk.origin if disk is not None else nic[0].origin if nic is not None else ""
    kind = "disk" if disk is not None else "nic"
    options = [o for o in planned if o.origin == origin or o.origin.startswith(f"{origin}.")]
    fds = {process.FIRST_FD + index: request for index, request in enumerate(requests)}
    images = {int(o.value["set"]): fds[int(o.value["fd"])] for o in options if o.name == "add-fd"}
    ident = device_id(kind, uuid)
    # A controller that it would bring along at a start is there, or QEMU says that it is not.
    device = next((values for values in _values(options, "device") if values.get("id") == ident), {})
    return DevicePlan(
        uuid=uuid,
        kind=kind,
        ident=ident,
        objects=_values(options, "object"),
        images=images,
        nodes=_values(options, "blockdev"),
        netdev=next(iter(_values(options, "netdev")), None),
        # The order of booting was told at the start, and its numbers are given out.
        device={key: value for key, value in device.items() if key != "bootindex"},
        fds=fds,
        nic=nic,
        foreign=tuple(o.name for o in options if o.name not in _HOT_OPTIONS),
    )


def medium_of(plan: LaunchPlan, origin: str) -> DevicePlan:
    """Cut what is in a removable drive out of the plan of its whole instance.

    Args:
        plan: the plan.
        origin: the drive's place in the definition, such as ``params.cdroms[0]``.
    """
    options = [option for option in plan.options if option.origin == origin]
    fds = {process.FIRST_FD + index: request for index, request in enumerate(plan.fds)}
    drives = [option.value for option in options if option.name == "device" and "drive" in option.value]
    device: Mapping[str, Any] = drives[0] if drives else {}
    return DevicePlan(
        uuid="",
        kind="disk",
        ident=str(device.get("id", "")),
        images={int(o.value["set"]): fds[int(o.value["fd"])] for o in options if o.name == "add-fd"},
        nodes=_values(options, "blockdev"),
        device=device,
        fds=fds,
    )


def usb_device_of(plan: LaunchPlan, index: int) -> DevicePlan:
    """Cut a USB device of the instance's list out of the plan of its whole instance."""
    options = [option for option in plan.options if option.origin == f"params.usb[{index}]"]
    fds = {process.FIRST_FD + number: request for number, request in enumerate(plan.fds)}
    ident = usb_ids(plan.decisions.definition.devices.usb)[index]
    return DevicePlan(
        uuid="",
        kind="usb",
        ident=ident,
        images={int(o.value["set"]): fds[int(o.value["fd"])] for o in options if o.name == "add-fd"},
        nodes=_values(options, "blockdev"),
        device=next(values for values in _values(options, "device") if values.get("id") == ident),
        fds=fds,
        foreign=tuple(o.name for o in options if o.name not in _HOT_OPTIONS),
    )


def _values(options: list[Option], name: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(option.value for option in options if option.name == name)


def with_sets(value: Any, sets: Mapping[int, int]) -> Any:
    """A block node with the paths of its descriptor sets changed to other numbers."""
    if isinstance(value, Mapping):
        return {key: with_sets(item, sets) for key, item in value.items()}
    found = _FDSET.fullmatch(value) if isinstance(value, str) else None
    return f"/dev/fdset/{sets[int(found[1])]}" if found else value


def secret_object(values: Mapping[str, Any], fds: Mapping[int, FdRequest]) -> dict[str, Any]:
    """A secret object that holds its data; it reaches QEMU by its monitor, which nobody else reads."""
    found = _OWN_FD.fullmatch(str(values.get("file", "")))
    if values.get("qom-type") != "secret" or found is None:
        return dict(values)
    fd = fds[int(found[1])].open()
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    rest = {key: value for key, value in values.items() if key != "file"}
    return {**rest, "data": base64.b64encode(data).decode(), "format": "base64"}


def netdev_numbers(netdev: Mapping[str, Any]) -> tuple[int, ...]:
    """The descriptors that a network backend is given, by their number in the plan."""
    numbers = [int(number) for key in _NUMBERS for number in str(netdev.get(key) or "").split(":") if number]
    address = netdev.get("addr")
    if isinstance(address, Mapping) and address.get("type") == "fd":
        numbers.append(int(address["str"]))
    return tuple(numbers)


def with_names(netdev: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """A network backend with its descriptors called by names instead of numbers."""
    changed = dict(netdev)
    for key in _NUMBERS:
        if netdev.get(key):
            changed[key] = ":".join(names[int(number)] for number in str(netdev[key]).split(":"))
    address = netdev.get("addr")
    if isinstance(address, Mapping) and address.get("type") == "fd":
        changed["addr"] = {**address, "str": names[int(address["str"])]}
    return changed
