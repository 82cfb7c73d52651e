"""What of a changed disk or NIC can be changed while the guest keeps its device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Device, Disk, Finding, FindingSet, InvalidParameters, Nic
from hvcore_kvm.parameters.nic import NicParameters

_DEVICE = frozenset(field.name for field in attrs.fields(NicParameters)) - {"link_up"}
FIXED_BUSES = ("ide", "sata")
"""Buses of disks that nothing can be plugged to."""

_ONLY_WORDS = frozenset(("name", "network"))
_LIMITS = tuple(
    f"{kind}-{which}{peak}" for kind in ("iops", "bps") for which in ("total", "read", "write") for peak in ("", "-max")
)


def pluggable(device: Disk | Nic) -> bool:
    """Whether QEMU can plug a device while the guest runs."""
    return isinstance(device, Nic) or device.params.get("bus") not in FIXED_BUSES


def pluggable_kind(device: Device) -> Disk | Nic:
    """A device that can be plugged.

    Raises:
        InvalidParameters: it is of another kind.
    """
    if isinstance(device, Disk | Nic):
        return device
    message = "media, virtual CPUs and parameters are there already and can only be modified"
    raise InvalidParameters(
        "the device cannot be added", FindingSet([Finding(code="not-possible", path="device", message=message)])
    )


@attrs.frozen(kw_only=True)
class Modification:
    """How a device becomes another one of the same identity.

    Attributes:
        link: the state its link is to get.
        throttle: its limits change.
        connection: how it is connected on the host changes.
        mode: so does the mode that connects it.
        replug: it has to be unplugged and plugged again.
    """

    link: bool | None = None
    throttle: bool = False
    connection: bool = False
    mode: bool = False
    replug: bool = False


def modification_of(before: Disk | Nic, after: Disk | Nic) -> Modification:
    """Compare two descriptions of one device."""
    if isinstance(before, Disk) and isinstance(after, Disk):
        return _of_disk(before, after)
    if isinstance(before, Nic) and isinstance(after, Nic):
        return _of_nic(before, after)
    return Modification(replug=True)


def _of_disk(before: Disk, after: Disk) -> Modification:
    old, new = before.params.get("throttle"), after.params.get("throttle")
    rest = [{key: value for key, value in disk.params.items() if key != "throttle"} for disk in (before, after)]
    same = attrs.evolve(before, params={}, name=None) == attrs.evolve(after, params={}, name=None)
    same = same and rest[0] == rest[1]
    # A disk without limits has no place for them.
    if not same or (old is None) != (new is None):
        return Modification(replug=True)
    return Modification(throttle=old != new)


def _of_nic(before: Nic, after: Nic) -> Modification:
    fields = {
        field.name
        for field in attrs.fields(Nic)
        if field.name != "params" and getattr(before, field.name) != getattr(after, field.name)
    }
    params = {key for key in {*before.params, *after.params} if before.params.get(key) != after.params.get(key)}
    if "mac" in fields or params & _DEVICE:
        return Modification(replug=True)
    link = bool(after.params.get("link_up", True)) if "link_up" in params else None
    connection = bool(fields - _ONLY_WORDS or params - {"link_up"})
    return Modification(link=link, connection=connection, mode="mode" in fields)


def all_limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Limits of a throttle group with those that are not named at 0: QEMU keeps what it is not told."""
    return {**dict.fromkeys(_LIMITS, 0), **limits}
