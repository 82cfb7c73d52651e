"""The instance as its owner describes it: what to run, on which disks and networks.

The host application owns this definition. These records accept text for sizes (``"512MiB"``) and hold whatever
else they are given; checking is the business of `hvcore.params`, which reports all problems at once.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from hvcore.model.names import check_instance_name, check_label, check_mac, check_tag, check_uuid
from hvcore.model.units import Size, parse_size
from hvcore.params.checks import absolute_path, at_least, between, no_control_characters
from hvcore.params.declare import param

_NAMESPACE = uuids.UUID("5f1a4e0c-1d0e-5c9b-9d0a-6b1f2f5d7c11")
_MIB = 2**20


def _size(value: Any) -> Any:
    """Text that is a size becomes bytes; anything else stays for the check to report."""
    if isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError:
            return value
    return value


def _params(value: Any) -> Any:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _sequence(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else value


@attrs.frozen(kw_only=True)
class Disk:
    """One disk of an instance."""

    path: str | None = param(
        default=None,
        checks=(absolute_path,),
        summary="Image file or block device on the host, as an absolute path; a disk has this or uri.",
    )
    uri: str | None = param(
        default=None,
        checks=(no_control_characters,),
        summary="Image on a storage server, such as nbd://host/export, where the driver reaches it by itself.",
    )
    format: str = param(
        choices=("raw", "qcow2"),
        summary="Format of the image. Never guessed: a guest could write a header that lies.",
    )
    read_only: bool = param(default=False, summary="The guest may only read it.")
    uuid: str | None = param(
        default=None,
        checks=(check_uuid,),
        summary="Identity of the disk; decides its device id and keeps its place. Derived from the instance "
        "and the disk's name or position when not given.",
    )
    name: str | None = param(
        default=None, checks=(check_label,), summary="Name of the disk, unique within the instance."
    )
    params: Mapping[str, Any] = param(
        factory=dict, converter=_params, summary="Parameters of the driver for this disk."
    )


@attrs.frozen(kw_only=True)
class Nic:
    """One network interface of an instance."""

    mode: str = param(default="user", checks=(check_label,), summary="NIC mode: how it is connected on the host.")
    link: str | None = param(
        default=None,
        checks=(no_control_characters,),
        summary="What the mode connects it to, for example a bridge.",
    )
    mac: str | None = param(
        default=None,
        checks=(check_mac,),
        summary="Hardware address, six colon-separated octets. Derived from the uuid when not given.",
    )
    ip: str | None = param(
        default=None, checks=(no_control_characters,), summary="Address of the guest, for modes that need it."
    )
    uuid: str | None = param(
        default=None,
        checks=(check_uuid,),
        summary="Identity of the NIC; decides its device id and keeps its place. Derived from the instance "
        "and the NIC's name or position when not given.",
    )
    name: str | None = param(
        default=None, checks=(check_label,), summary="Name of the NIC, unique within the instance."
    )
    params: Mapping[str, Any] = param(
        factory=dict, converter=_params, summary="Parameters of the NIC mode and of the driver for this NIC."
    )


@attrs.frozen(kw_only=True)
class Instance:
    """One instance: the whole definition a driver needs to run it."""

    name: str = param(
        checks=(check_instance_name,),
        summary="Name of the instance: letters, digits, dots, hyphens and underscores, 63 characters at most.",
    )
    uuid: str | None = param(
        default=None,
        checks=(check_uuid,),
        summary="Identity of the instance, seen by the guest as its system UUID. Derived from the host and the "
        "name when not given.",
    )
    memory: Size = param(
        default=Size(128 * _MIB),
        unit="bytes",
        converter=_size,
        checks=(at_least(_MIB, "sizes are bytes; with a unit: 512MiB"),),
        summary="Memory of the guest.",
    )
    vcpus: int = param(default=1, checks=(between(1, 4096),), summary="Virtual CPUs of the guest.")
    security_model: str | None = param(
        default=None,
        checks=(check_label,),
        summary="How the hypervisor process is confined; the driver's own default when not given.",
    )
    consoles: tuple[str, ...] = param(
        default=("serial",),
        converter=_sequence,
        item_checks=(check_label,),
        summary="Console types the instance offers.",
    )
    tags: tuple[str, ...] = param(
        default=(),
        converter=_sequence,
        item_checks=(check_tag,),
        summary="Free words, handed on to NIC scripts.",
    )
    params: Mapping[str, Any] = param(
        factory=dict, converter=_params, summary="Parameters of the driver for this instance."
    )
    disks: tuple[Disk, ...] = param(default=(), converter=_sequence, summary="Disks, in order.")
    nics: tuple[Nic, ...] = param(default=(), converter=_sequence, summary="Network interfaces, in order.")


def with_identities(instance: Instance, host_id: str) -> Instance:
    """The instance with every missing uuid and hardware address derived, the same each time on the same host.

    All of them are in lower case, and no derived uuid is one that another device of the instance has.

    Args:
        instance: a definition whose given uuids are valid.
        host_id: what tells this host from others, so that two hosts never derive the same hardware address.
    """
    own = (instance.uuid or str(uuids.uuid5(_NAMESPACE, f"{host_id}/{instance.name}"))).lower()
    base = uuids.UUID(own)
    # Devices are looked up by their uuids, and a uuid may be written in either case.
    devices: tuple[Disk | Nic, ...] = (*instance.disks, *instance.nics)
    given = {device.uuid.lower() for device in devices if device.uuid}

    def derived(kind: str, index: int, device: Disk | Nic) -> str:
        if device.uuid:
            return device.uuid.lower()
        uuid = str(uuids.uuid5(base, f"{kind}/{device.name or index}"))
        while uuid in given:
            # A device that is named by its uuid has kept the one of this position.
            index += 1
            uuid = str(uuids.uuid5(base, f"{kind}/{index}"))
        given.add(uuid)
        return uuid

    disks = tuple(attrs.evolve(d, uuid=derived("disk", i, d)) for i, d in enumerate(instance.disks))
    nics = tuple(
        attrs.evolve(n, uuid=(nic_uuid := derived("nic", i, n)), mac=(n.mac or _derived_mac(nic_uuid)).lower())
        for i, n in enumerate(instance.nics)
    )
    return attrs.evolve(instance, uuid=own, disks=disks, nics=nics)


def _derived_mac(nic_uuid: str) -> str:
    # QEMU's own prefix, then 24 bits of the uuid.
    tail = uuids.UUID(nic_uuid).bytes[-3:]
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in tail)
