"""The table of all names: what Ganeti calls it, where it stands here, and how values translate."""

from __future__ import annotations

from hvcore_kvm.ganeti.table import BACKEND, HOST_APPLICATION, HYPERVISOR

_MODES = "bridged, routed and openvswitch are the same, ext is script. auto is bridged, Ganeti's default."

_NIC = {
    "mode": ("nics[].mode", _MODES),
    "link": ("nics[].link", "The same bridge, switch or routing table."),
    "vlan": ("nics[].params.vlan", "The same text, with the dot in front of a single number."),
    "mac": ("nics[].mac", "The same address in lower case; derived from the uuid when auto or generate."),
    "ip": ("nics[].ip", "The same address. auto and pool are refused: the address they led to is needed."),
    "network": (HOST_APPLICATION, "The NIC's mode and link are what the driver needs of a network."),
    "netinfo": (HOST_APPLICATION, "The network's name, subnets and tags."),
    "name": ("nics[].name", "The same name, if it is one word."),
    "uuid": ("nics[].uuid", "The same uuid."),
    "bridge": ("nics[].link", "The old name of link in mode bridged."),
}

_DISK = {
    "size": (HOST_APPLICATION, "The image has its size."),
    "mode": ("disks[].read_only", "rw is false, ro is true; Ganeti starts no instance with the latter."),
    "name": ("disks[].name", "The same name, if it is one word."),
    "uuid": ("disks[].uuid", "The same uuid."),
    "dev_type": (HOST_APPLICATION, "Decides the cache mode, see disk_cache. Disks are raw."),
    "path": ("disks[].path", "The local device or file; link is another name for it."),
    "link": ("disks[].path", "The local device or file; path is another name for it, and wins."),
    "uri": ("disks[].uri", "With access userspace, and then instead of the path."),
    "access": ("disks[].uri", "userspace takes the uri, if there is one; kernelspace takes the path."),
    "provider": (HOST_APPLICATION, "Of template ext."),
    "spindles": (HOST_APPLICATION, "About placement."),
    "vg": (HOST_APPLICATION, "Where the disk is made."),
    "metavg": (HOST_APPLICATION, "Where the disk is made."),
    "adopt": (HOST_APPLICATION, "Where the disk comes from."),
    "params": (HOST_APPLICATION, "Parameters of the template: pool, user-id, host, port, volume, stripes, and others."),
}

PARITY: dict[str, tuple[str, str]] = {
    **{f"hvparams.{known.name}": (known.place, known.how) for known in HYPERVISOR.values()},
    **{f"beparams.{known.name}": (known.place, known.how) for known in BACKEND.values()},
    **{f"nics[].{name}": row for name, row in _NIC.items()},
    **{f"disks[].{name}": row for name, row in _DISK.items()},
}
"""Place and explanation for every name of Ganeti's."""


def parity_rows() -> tuple[tuple[str, str, str], ...]:
    """The table: Ganeti's name, the place here, how values translate."""
    return tuple((name, place, how) for name, (place, how) in PARITY.items())


def parity_markdown() -> str:
    """The table for the documentation."""
    lines = ["| Ganeti | here | values |", "|---|---|---|"]
    for name, place, how in parity_rows():
        where = place if place == HOST_APPLICATION else f"`{place}`"
        lines.append(f"| `{name}` | {where} | {how} |")
    return "\n".join(lines) + "\n"
