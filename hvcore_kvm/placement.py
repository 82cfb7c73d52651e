"""PCI places: decided once per device uuid and kept, so that a guest finds its devices where they were."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hvcore import Finding
from hvcore_kvm.capabilities import QemuCapabilities
from hvcore_kvm.runtime import Placement

ROOT_BUS = {"pc": "pci.0", "q35": "pcie.0"}
"""Name of the root bus, by machine family."""

_LAST_SLOT = 31
# i440fx: 0 host bridge, 1 south bridge, 2 display. q35: 0 host bridge, 1 display, 31 south bridge.
_FIRST_SLOT = 3
_Q35_LAST_SLOT = 30


def family_of(machine: str) -> str | None:
    """The family of a versioned machine type; ``None`` for one the driver does not know."""
    if machine.startswith("pc-i440fx") or machine == "pc":
        return "pc"
    if machine.startswith("pc-q35") or machine == "q35":
        return "q35"
    return None


def resolve_machine(wanted: str, capabilities: QemuCapabilities, kept: Placement | None) -> str:
    """The versioned machine type of a name: for an alias the one the instance has had before, if QEMU still has it."""
    found = capabilities.machine(wanted)
    if found is None or found.name == wanted:
        return wanted
    before = capabilities.machine(kept.machine) if kept is not None else None
    return before.name if before is not None and family_of(before.name) == family_of(found.name) else found.name


@attrs.frozen(kw_only=True)
class Place:
    """A place on a bus: its name and the slot."""

    bus: str
    slot: int

    @property
    def properties(self) -> dict[str, str]:
        """The device properties; in JSON a number would be the devfn, text is the slot."""
        return {"bus": self.bus, "addr": f"{self.slot:#x}"}

    def __str__(self) -> str:
        return f"{self.bus}/{self.slot}"


def place_devices(machine: str, uuids: Sequence[str], kept: Placement | None) -> tuple[dict[str, Place], list[Finding]]:
    """Give every device a place: the one it had, else the first free one, in order.

    Args:
        machine: versioned machine type.
        uuids: identities of the devices, in the order of the definition.
        kept: where they sat before; of no use for a machine of another family.

    Returns:
        The places, and a finding if there are not enough.
    """
    family = family_of(machine) or "pc"
    bus = ROOT_BUS[family]
    final = _LAST_SLOT if family == "pc" else _Q35_LAST_SLOT
    places: dict[str, Place] = {}
    if kept is not None and family_of(kept.machine) == family:
        for uuid in uuids:
            place = _parse(kept.addresses.get(uuid, ""), bus, final)
            if place is not None and place not in places.values():
                places[uuid] = place
    # Places of devices that are not there now stay theirs as long as there are others.
    reserved = set(kept.addresses.values()) if kept is not None and family_of(kept.machine) == family else set()
    free = [p for s in range(_FIRST_SLOT, final + 1) if (p := Place(bus=bus, slot=s)) not in places.values()]
    free.sort(key=lambda place: str(place) in reserved)
    missing = [uuid for uuid in uuids if uuid not in places]
    if len(missing) > len(free):
        message = f"{len(uuids)} devices do not fit on {bus}, which has {len(places) + len(free)} free slots"
        return places, [Finding(code="bus-full", path="params.machine", message=message)]
    for uuid in missing:
        places[uuid] = free.pop(0)
    return places, []


def placement(machine: str, places: dict[str, Place], kept: Placement | None) -> Placement:
    """The record of all places, those of devices that are not there now included."""
    taken = {str(place) for place in places.values()}
    others = {}
    if kept is not None and family_of(kept.machine) == family_of(machine):
        others = {uuid: at for uuid, at in kept.addresses.items() if uuid not in places and at not in taken}
    return Placement(machine=machine, addresses={**others, **{uuid: str(place) for uuid, place in places.items()}})


def _parse(text: str, bus: str, final: int) -> Place | None:
    name, _, slot = text.partition("/")
    if name != bus or not slot.isdigit() or not _FIRST_SLOT <= int(slot) <= final:
        return None
    return Place(bus=bus, slot=int(slot))
