"""NICs: the backend that the mode plans, and the device the guest sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from hvcore_kvm.command_line import json_option
from hvcore_kvm.families import NicContext, NicPlan
from hvcore_kvm.hardware import devices as hardware
from hvcore_kvm.hardware.builder import Builder, device_id
from hvcore_kvm.hardware.storage import boot_indexes
from hvcore_kvm.parameters.nic import NIC_DEVICES

if TYPE_CHECKING:
    from hvcore_kvm.definition import NicDefinition


def add_nics(builder: Builder) -> tuple[tuple[NicDefinition, NicPlan], ...]:
    """Add all NICs, and return how each is connected."""
    order = boot_indexes(builder.definition)
    return tuple((nic, add_nic(builder, nic, order.get(nic.origin))) for nic in builder.definition.nics)


def add_nic(builder: Builder, nic: NicDefinition, bootindex: int | None) -> NicPlan:
    """Add one NIC, with its place in the order of booting; returns how it is connected."""
    uuid = nic.nic.uuid or ""
    ident, netdev = device_id("nic", uuid), device_id("net", uuid)
    given = nic.parameters
    context = NicContext(
        instance=builder.definition.instance,
        nic=nic.nic,
        parameters=nic.mode_parameters,
        device=given,
        netdev_id=netdev,
        fd=builder.fd,
        arriving=builder.decisions.arriving,
    )
    plan = nic.mode.backend.plan(context)
    builder.companions += plan.companions
    builder.add(*(attrs.evolve(option, origin=nic.origin) for option in plan.options))
    builder.add(json_option("netdev", plan.netdev, origin=nic.origin))
    values: dict[str, Any] = {"netdev": netdev, "mac": nic.nic.mac, "bootindex": bootindex}
    if bootindex is None and builder.family != "microvm" and given.model != "usb-net":
        # Without an option ROM: nothing boots from it, and a ROM of another size breaks a migration.
        values["romfile"] = ""
    if given.acpi_index is not None:
        values["acpi-index"] = given.acpi_index
    if given.model == "usb-net":
        values.pop("bootindex")
        bus = builder.usb_bus(nic.origin)
        builder.add(json_option("device", {"driver": "usb-net", "id": ident, "bus": bus, **values}, origin=nic.origin))
    elif given.model == "virtio-net":
        if given.queues > 1:
            # A vector for each queue's two directions, for control and for changes of configuration.
            values |= {"mq": True, "vectors": 2 * given.queues + 2}
        values |= {
            "rx_queue_size": given.rx_queue_size,
            "packed": given.packed or None,
            "rss": given.rss or None,
            "host_mtu": given.mtu,
            "failover": True if given.failover is not None else None,
            **dict(sorted(given.offloads.items())),
        }
        builder.virtio("net", ident, values, uuid=uuid, origin=nic.origin)
        if given.failover is not None:
            hardware.add_failover_partner(builder, given.failover, ident)
    else:
        builder.device(NIC_DEVICES[given.model], ident, values, uuid=uuid, origin=nic.origin)
    return plan
