"""Places of devices: decided once per device uuid and kept, so that a guest finds its devices where they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Finding
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.command_line import PlaceRequest
from hvcore_kvm.runtime import Placement

FAMILIES = ("pc", "q35", "microvm", "virt")
"""Families of machine types the driver knows."""

ROOT_PORT = "port"
"""What the names of PCI Express root ports begin with; a number follows."""

SERIAL_PORTS = "virtio-serial"
"""The space of the ports of the virtio-serial controller."""

PCI_ROOT = {"pc": "pci.0", "q35": "pcie.0", "virt": "pcie.0"}
"""Name of the PCI root bus, by machine family; microvm has none."""

_PREFIXES = (("pc-i440fx", "pc"), ("pc-q35", "q35"), ("microvm", "microvm"), ("virt-", "virt"))
# q35: 31 is the south bridge.
_LAST_SLOT = {"pc": 31, "q35": 30, "virt": 31}
_VIRTIO_MMIO_BUSES = 24
_SATA_PORTS = 6
_FIRST_SERIAL_PORT, _LAST_SERIAL_PORT = 8, 30
"""Ports of the virtio-serial controller that are given out; QEMU gives those before them to what asks for none."""
SCSI_TARGETS = {"virtio-scsi": 64, "lsi": 7, "megasas": 64, "am53c974": 7, "pvscsi": 64}
"""Targets of each kind of SCSI controller; those of the old ones include the controller itself as the eighth."""


def family_of(machine: str) -> str | None:
    """The family of a machine type; ``None`` for one the driver does not know."""
    if machine in FAMILIES:
        return machine
    return next((family for prefix, family in _PREFIXES if machine.startswith(prefix)), None)


def resolve_machine(wanted: str, capabilities: QemuCapabilities, kept: Placement | None) -> str:
    """The versioned machine type of a name: for an alias the one the instance has had before, if QEMU still has it."""
    found = capabilities.machine(wanted)
    if found is None or found.name == wanted:
        return wanted
    before = capabilities.machine(kept.machine) if kept is not None else None
    return before.name if before is not None and family_of(before.name) == family_of(found.name) else found.name


@attrs.frozen(kw_only=True)
class Place:
    """A place on a bus.

    Attributes:
        bus: name of the bus.
        index: slot, unit or target on it.
        kind: how a device is told of it: ``pci``, ``mmio``, ``ide``, ``scsi`` or ``serial``.
    """

    bus: str
    index: int
    kind: str = "pci"

    @property
    def properties(self) -> dict[str, Any]:
        """The device properties that put it there."""
        if self.kind == "pci":
            # In JSON a number would be the devfn, text is the slot.
            return {"bus": self.bus, "addr": f"{self.index:#x}"}
        if self.kind == "ide":
            return {"bus": self.bus, "unit": self.index}
        if self.kind == "serial":
            return {"bus": self.bus, "nr": self.index}
        if self.kind == "scsi":
            return {"bus": self.bus, "channel": 0, "scsi-id": self.index, "lun": 0}
        return {"bus": self.bus}

    def __str__(self) -> str:
        return f"{self.bus}/{self.index}"


@attrs.frozen(kw_only=True)
class Board:
    """What decides which places a machine has.

    Attributes:
        family: its family.
        reservations: slots of the root bus, counted from 0, that are not given out.
        sata_controllers: SATA controllers besides the built-in one of q35.
        scsi: kind of the SCSI controllers.
        ports: PCI Express root ports.
    """

    family: str
    reservations: int
    sata_controllers: int = 0
    scsi: str = "virtio-scsi"
    ports: int = 0

    def places(self, space: str) -> list[Place]:
        """Every place of a space, in the order in which they are given out.

        Args:
            space: ``pci``, ``virtio`` (the bus of virtio devices: PCI, or virtio-mmio on microvm), ``ide``, ``sata``
                ``port`` (behind a PCI Express root port, where a device can be plugged and unplugged),
                ``virtio-serial`` (the ports of that controller), or ``scsiN`` for SCSI controller N.
        """
        if space == SERIAL_PORTS:
            ports = range(_FIRST_SERIAL_PORT, _LAST_SERIAL_PORT + 1)
            return [Place(bus=f"{SERIAL_PORTS}0.0", index=number, kind="serial") for number in ports]
        if space == "port":
            return [Place(bus=root_port(index), index=0) for index in range(self.ports)]
        if space.startswith("scsi"):
            return [Place(bus=f"{space}.0", index=i, kind="scsi") for i in range(SCSI_TARGETS[self.scsi])]
        if space == "ide":
            return [Place(bus=f"ide.{i // 2}", index=i % 2, kind="ide") for i in range(4)]
        if space == "sata":
            own = [f"ide.{i}" for i in range(_SATA_PORTS)] if self.family == "q35" else []
            more = [f"sata{c}.{i}" for c in range(self.sata_controllers) for i in range(_SATA_PORTS)]
            return [Place(bus=bus, index=0, kind="ide") for bus in (*own, *more)]
        if self.family == "microvm":
            if space != "virtio":
                return []
            buses = [f"virtio-mmio-bus.{i}" for i in range(_VIRTIO_MMIO_BUSES)]
            return [Place(bus=bus, index=0, kind="mmio") for bus in buses]
        last = _LAST_SLOT[self.family]
        return [Place(bus=PCI_ROOT[self.family], index=slot) for slot in range(self.reservations, last + 1)]


def root_port(index: int) -> str:
    """Name of a PCI Express root port and of its bus."""
    return f"{ROOT_PORT}{index}"


def root_ports(kept: Placement | None, devices: Iterable[str], spare: int) -> int:
    """How many root ports a machine needs: one for each device, those it had before included, and the spare ones."""
    uuids = list(devices)
    if not spare:
        return 0
    had = [kept.addresses.get(uuid, "").partition("/")[0].removeprefix(ROOT_PORT) for uuid in uuids] if kept else []
    highest = max((int(number) for number in had if number.isdecimal()), default=-1)
    return max(len(uuids) + spare, highest + 1)


def sata_controllers(family: str, devices: int) -> int:
    """SATA controllers to add for a number of devices."""
    beyond = devices - (_SATA_PORTS if family == "q35" else 0)
    return max(0, -(-beyond // _SATA_PORTS))


def place_devices(
    board: Board,
    machine: str,
    requests: Sequence[PlaceRequest],
    kept: Placement | None,
    occupied: Iterable[str] = (),
) -> tuple[dict[str, Place], list[Finding]]:
    """Give every device a place: the one it had, else the first free one, in order.

    Args:
        board: what places there are.
        machine: versioned machine type.
        requests: what the devices want, in the order of the definition.
        kept: where they sat before; of no use for a machine of another family.
        occupied: places of devices that are there, whether they ask for one or not.

    Returns:
        The places by uuid, and findings for spaces that are too small.
    """
    old = kept.addresses if kept is not None and family_of(kept.machine) == board.family else {}
    known: dict[str, dict[str, Place]] = {}
    for request in requests:
        if request.space not in known:
            known[request.space] = {str(place): place for place in board.places(request.space)}
    places: dict[str, Place] = {}
    taken = set(occupied) - {old[request.uuid] for request in requests if request.uuid in old}
    for request in requests:
        before = old.get(request.uuid, "")
        if request.uuid not in places and before in known[request.space] and before not in taken:
            places[request.uuid] = known[request.space][before]
            taken.add(before)
    # Places of devices that are not there now stay theirs as long as there are others.
    reserved = set(old.values())
    lacking: dict[str, int] = {}
    for request in requests:
        if request.uuid in places:
            continue
        free = [at for at in known[request.space] if at not in taken]
        if not free:
            lacking[request.space] = lacking.get(request.space, 0) + 1
            continue
        chosen = next((at for at in free if at not in reserved), free[0])
        places[request.uuid] = known[request.space][chosen]
        taken.add(chosen)
    return places, [_full(space, count, len(known[space])) for space, count in lacking.items()]


_TITLES = {
    "pci": "PCI slots",
    "virtio": "slots",
    "port": "PCI Express root ports",
    "ide": "IDE units",
    "sata": "SATA ports",
    SERIAL_PORTS: "ports of the virtio-serial controller",
}


def _full(space: str, lacking: int, places: int) -> Finding:
    where = _TITLES.get(space, f"targets of {space}")
    message = f"{lacking} devices too many: there are {places} {where}"
    if not places:
        message = f"the machine has no {where}"
    path = "params.scsi_controller" if space.startswith("scsi") else "params.machine"
    path = "params.virtio_ports" if space == SERIAL_PORTS else path
    return Finding(code="bus-full", path=path, message=message, hint="use fewer devices, or another bus or controller")


def placement(machine: str, places: Mapping[str, Place], kept: Placement | None) -> Placement:
    """The record of all places, those of devices that are not there now included."""
    taken = {str(place) for place in places.values()}
    others = {}
    if kept is not None and family_of(kept.machine) == family_of(machine):
        others = {uuid: at for uuid, at in kept.addresses.items() if uuid not in places and at not in taken}
    return Placement(machine=machine, addresses={**others, **{uuid: str(place) for uuid, place in places.items()}})
