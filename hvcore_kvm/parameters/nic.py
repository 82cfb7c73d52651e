"""Parameters of NICs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, checks, param
from hvcore_kvm.parameters.syntax import pci_address, power_of_two

NIC_DEVICES = {
    "virtio-net": "virtio-net-pci",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "rtl8139": "rtl8139",
    "vmxnet3": "vmxnet3",
    "pcnet": "pcnet",
    "ne2k_pci": "ne2k_pci",
    "i82551": "i82551",
    "i82557b": "i82557b",
    "i82559er": "i82559er",
    "usb-net": "usb-net",
}
"""QEMU's device for each model."""


OFFLOADS = (
    "csum",
    "guest_csum",
    "gso",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_ufo",
    "mrg_rxbuf",
)
"""Offloads of virtio-net, by QEMU's names."""


@attrs.frozen(kw_only=True)
class NicParameters:
    """One NIC, as the guest sees it."""

    model: str = param(
        default="virtio-net",
        choices=tuple(NIC_DEVICES),
        aliases=("nic_type",),
        summary="Device the guest sees.",
    )
    queues: int = param(
        default=1,
        checks=(checks.between(1, 32),),
        aliases=("virtio_net_queues",),
        summary="Queue pairs (virtio-net on a tap).",
    )
    vhost: bool | None = param(
        default=None,
        aliases=("vhost_net",),
        summary="Move packets in the host's kernel (virtio-net on a tap); where the host can when not given.",
    )
    vnet_hdr: bool = param(
        default=True,
        aliases=("vnet_hdr",),
        summary="Let checksums and segmentation be done late or not at all (virtio-net on a tap).",
    )
    rx_queue_size: int | None = param(
        default=None, checks=(power_of_two(256, 1024),), summary="Packets the receive queue holds (virtio-net)."
    )
    packed: bool = param(default=False, summary="Use the packed virtqueue layout (virtio-net).")
    rss: bool = param(default=False, summary="Spread received packets over the queues by hash (virtio-net).")
    mtu: int | None = param(
        default=None,
        checks=(checks.between(68, 65535),),
        unit="bytes",
        summary="MTU the guest is told of (virtio-net).",
    )
    offloads: Mapping[str, bool] = param(
        factory=dict,
        summary="Work the guest may leave to the host or take from it, switched on or off: "
        + ", ".join(OFFLOADS)
        + " (virtio-net).",
    )
    link_up: bool = param(default=True, changes="live", summary="Whether the cable is plugged in.")
    acpi_index: int | None = param(
        default=None,
        checks=(checks.between(1, 16383),),
        summary="Number by which guests name the NIC (eno1), unique within the instance.",
    )
    failover: str | None = param(
        default=None,
        checks=(pci_address,),
        summary="Address of the one of params.pci_passthrough that the guest uses instead, as long as it is there "
        "(virtio-net; q35, virt). Both must have the same hardware address.",
    )


def nic_rules(nic: NicParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    if nic.model != "virtio-net":
        for name, unset in (
            ("queues", 1),
            ("vhost", None),
            ("rx_queue_size", None),
            ("packed", False),
            ("rss", False),
            ("mtu", None),
            ("offloads", {}),
            ("failover", None),
        ):
            value = getattr(nic, name)
            if value != unset and value is not False:
                message = f"goes with model virtio-net, and it is {nic.model}"
                yield Finding(code="contradiction", path=name, message=message)
    for name in nic.offloads:
        if name not in OFFLOADS:
            message = f"{name[:40]!r} is none of {', '.join(OFFLOADS)}"
            yield Finding(code="invalid-value", path="offloads", message=message)
    if nic.rss and nic.queues < 2:
        yield Finding(code="contradiction", path="rss", message="needs at least two queues")
    if nic.acpi_index is not None and nic.model == "usb-net":
        yield Finding(code="contradiction", path="acpi_index", message="is of PCI devices, and the model is usb-net")
