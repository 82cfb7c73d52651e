"""Places of devices: first free, kept per uuid, never shared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hvcore import Finding
from hvcore_kvm.command_line import PlaceRequest
from hvcore_kvm.placement import Board, Place, place_devices, placement, sata_controllers
from hvcore_kvm.runtime import Placement

_MACHINES = {"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2", "microvm": "microvm", "virt": "virt-7.2"}


def _board(family: str, *, reservations: int = 3, sata: int = 0, scsi: str = "virtio-scsi") -> Board:
    controllers = sata_controllers(family, sata)
    return Board(family=family, reservations=reservations, sata_controllers=controllers, scsi=scsi)


def _place(
    family: str, uuids: Sequence[str], kept: Placement | None = None, *, space: str = "pci", **board: int | str
) -> tuple[dict[str, Place], list[Finding]]:
    requests = [PlaceRequest(uuid=uuid, space=space) for uuid in uuids]
    return place_devices(_board(family, **board), _MACHINES[family], requests, kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "bus"), [("pc", "pci.0"), ("q35", "pcie.0"), ("virt", "pcie.0")])
def test_devices_take_free_slots_in_order(family: str, bus: str) -> None:
    """Without a past every device gets the next slot behind what the machine itself has."""
    places, findings = _place(family, ["a", "b"])
    assert findings == []
    assert places == {"a": Place(bus=bus, index=3), "b": Place(bus=bus, index=4)}
    assert places["a"].properties == {"bus": bus, "addr": "0x3"}


def test_reserved_slots_are_left_out() -> None:
    """The first slots belong to whoever reserved them."""
    assert [place.index for place in _place("pc", ["a", "b"], reservations=20)[0].values()] == [20, 21]


def test_a_place_is_kept_and_the_place_of_an_absent_device_is_used_last() -> None:
    """A device that went away for one start finds its old place, because others avoid it while they can."""
    machine = _MACHINES["q35"]
    first, _ = _place("q35", ["a", "b"])
    kept = placement(machine, first, None)
    second, _ = _place("q35", ["c"], kept)
    assert second["c"].index == 5
    kept = placement(machine, second, kept)
    assert kept.addresses == {"a": "pcie.0/3", "b": "pcie.0/4", "c": "pcie.0/5"}
    requests = [PlaceRequest(uuid=uuid) for uuid in ("c", "b", "a")]
    third, _ = place_devices(_board("q35"), "pc-q35-8.0", requests, kept)
    assert {uuid: place.index for uuid, place in third.items()} == {"a": 3, "b": 4, "c": 5}


def test_the_place_of_an_absent_device_is_used_when_there_is_no_other() -> None:
    """Who is there goes before who is not, and the record then forgets the absent one."""
    kept = Placement(machine=_MACHINES["pc"], addresses={"absent": "ide.0/1"})
    places, findings = _place("pc", ["a", "b", "c", "d"], kept, space="ide")
    assert findings == []
    assert str(places["d"]) == "ide.0/1"
    assert "absent" not in placement(_MACHINES["pc"], places, kept).addresses


def test_another_family_has_other_buses() -> None:
    """Places on a pc mean nothing on a q35."""
    kept = Placement(machine=_MACHINES["pc"], addresses={"a": "pci.0/9"})
    assert _place("q35", ["a"], kept)[0]["a"] == Place(bus="pcie.0", index=3)
    assert placement(_MACHINES["q35"], {}, kept).addresses == {}


@pytest.mark.parametrize("address", ["", "pci.0", "pci.0/x", "pci.0/0", "pci.0/99", "other/5", "pci.0/-1", "pci.0/03"])
def test_a_damaged_place_is_not_used(address: str) -> None:
    """What is no place on the bus is replaced by a free one."""
    kept = Placement(machine=_MACHINES["pc"], addresses={"a": address})
    assert _place("pc", ["a"], kept)[0]["a"].index == 3


def test_two_devices_never_share_a_place() -> None:
    """A record that gives two devices one place is not followed twice."""
    kept = Placement(machine=_MACHINES["pc"], addresses={"a": "pci.0/7", "b": "pci.0/7"})
    places, findings = _place("pc", ["a", "b"], kept)
    assert findings == []
    assert len({str(place) for place in places.values()}) == 2


def test_a_kept_place_goes_before_a_new_device_that_comes_earlier() -> None:
    """A device without a past does not take the place of one that has it, whatever their order."""
    kept = Placement(machine=_MACHINES["pc"], addresses={"old": "pci.0/3"})
    places, _ = _place("pc", ["new", "old"], kept)
    assert {uuid: place.index for uuid, place in places.items()} == {"old": 3, "new": 4}


@pytest.mark.parametrize(
    ("family", "space", "count", "path"),
    [
        ("pc", "pci", 29, "params.machine"),
        ("q35", "pci", 28, "params.machine"),
        ("virt", "pci", 29, "params.machine"),
        ("microvm", "virtio", 24, "params.machine"),
        ("pc", "ide", 4, "params.machine"),
        ("q35", "sata", 6, "params.machine"),
        ("pc", "scsi0", 64, "params.scsi_controller"),
    ],
)
def test_a_full_space_is_a_finding(family: str, space: str, count: int, path: str) -> None:
    """Every place of a space is used; one device more is told, and how many there are."""
    uuids = [f"device{number}" for number in range(count)]
    places, findings = _place(family, uuids, space=space)
    assert findings == []
    assert len({str(place) for place in places.values()}) == count
    findings = _place(family, [*uuids, "x", "y"], space=space)[1]
    assert [(finding.code, finding.path) for finding in findings] == [("bus-full", path)]
    assert findings[0].message.startswith(f"2 devices too many: there are {count} ")


def test_ide_units() -> None:
    """Two on each of the two channels."""
    places = _place("pc", ["a", "b", "c"], space="ide")[0]
    assert [place.properties for place in places.values()] == [
        {"bus": "ide.0", "unit": 0},
        {"bus": "ide.0", "unit": 1},
        {"bus": "ide.1", "unit": 0},
    ]


def test_sata_ports_of_the_chipset_come_first() -> None:
    """Q35 has six ports of its own; more, and all those of other machines, are on controllers that are added."""
    uuids = [f"disk{number}" for number in range(8)]
    places, findings = _place("q35", uuids, space="sata", sata=8)
    assert findings == []
    assert [str(places[uuid]) for uuid in ("disk0", "disk5", "disk6", "disk7")] == [
        "ide.0/0",
        "ide.5/0",
        "sata0.0/0",
        "sata0.1/0",
    ]
    assert str(_place("pc", ["a"], space="sata", sata=1)[0]["a"]) == "sata0.0/0"


@pytest.mark.parametrize(
    ("family", "devices", "controllers"),
    [
        ("q35", 0, 0),
        ("q35", 6, 0),
        ("q35", 7, 1),
        ("q35", 13, 2),
        ("pc", 0, 0),
        ("pc", 1, 1),
        ("pc", 7, 2),
        ("virt", 6, 1),
    ],
)
def test_sata_controllers(family: str, devices: int, controllers: int) -> None:
    """As many as are needed, and none where the chipset's ports are enough."""
    assert sata_controllers(family, devices) == controllers


@pytest.mark.parametrize(
    ("kind", "targets"), [("virtio-scsi", 64), ("lsi", 7), ("megasas", 64), ("am53c974", 7), ("pvscsi", 64)]
)
def test_scsi_targets(kind: str, targets: int) -> None:
    """Each controller has its own targets, as many as its kind has."""
    uuids = [f"disk{number}" for number in range(targets)]
    places, findings = _place("pc", uuids, space="scsi2", scsi=kind)
    assert findings == []
    assert places[uuids[-1]].properties == {"bus": "scsi2.0", "channel": 0, "scsi-id": targets - 1, "lun": 0}
    assert [finding.code for finding in _place("pc", [*uuids, "x"], space="scsi2", scsi=kind)[1]] == ["bus-full"]


def test_spaces_are_told_apart() -> None:
    """Targets of two controllers and slots do not take each other's places."""
    requests = [PlaceRequest(uuid=f"{space}-disk", space=space) for space in ("scsi0", "scsi1", "pci", "ide")]
    places, findings = place_devices(_board("pc"), _MACHINES["pc"], requests, None)
    assert findings == []
    assert {str(place) for place in places.values()} == {"scsi0.0/0", "scsi1.0/0", "pci.0/3", "ide.0/0"}


def test_microvm_has_no_pci() -> None:
    """Its virtio devices sit on buses of their own, and others find no place."""
    places, findings = _place("microvm", ["a", "b"], space="virtio")
    assert findings == []
    assert [place.properties for place in places.values()] == [
        {"bus": "virtio-mmio-bus.0"},
        {"bus": "virtio-mmio-bus.1"},
    ]
    findings = _place("microvm", ["a"], space="pci")[1]
    assert [(finding.code, finding.message) for finding in findings] == [("bus-full", "the machine has no PCI slots")]
