"""PCI places: first free, kept per uuid, never shared."""

from __future__ import annotations

import pytest

from hvcore_kvm.placement import Place, place_devices, placement
from hvcore_kvm.runtime import Placement


@pytest.mark.parametrize(("machine", "bus"), [("pc-i440fx-7.2", "pci.0"), ("pc-q35-7.2", "pcie.0")])
def test_devices_take_free_slots_in_order(machine: str, bus: str) -> None:
    """Without a past every device gets the next slot behind what the machine itself has."""
    places, findings = place_devices(machine, ["a", "b"], None)
    assert findings == []
    assert places == {"a": Place(bus=bus, slot=3), "b": Place(bus=bus, slot=4)}


def test_a_place_is_kept_and_the_place_of_an_absent_device_is_used_last() -> None:
    """A device that went away for one start finds its old place, because others avoid it while they can."""
    first, _ = place_devices("pc-q35-7.2", ["a", "b"], None)
    kept = placement("pc-q35-7.2", first, None)
    second, _ = place_devices("pc-q35-7.2", ["c"], kept)
    assert second["c"].slot == 5
    kept = placement("pc-q35-7.2", second, kept)
    third, _ = place_devices("pc-q35-8.0", ["c", "b", "a"], kept)
    assert {uuid: place.slot for uuid, place in third.items()} == {"a": 3, "b": 4, "c": 5}


def test_another_family_has_other_buses() -> None:
    """Places on a pc mean nothing on a q35."""
    kept = Placement(machine="pc-i440fx-7.2", addresses={"a": "pci.0/9"})
    assert place_devices("pc-q35-7.2", ["a"], kept)[0]["a"] == Place(bus="pcie.0", slot=3)


@pytest.mark.parametrize("address", ["", "pci.0", "pci.0/x", "pci.0/0", "pci.0/99", "other/5", "pci.0/-1"])
def test_a_damaged_place_is_not_used(address: str) -> None:
    """What is no place on the bus is replaced by a free one."""
    kept = Placement(machine="pc-i440fx-7.2", addresses={"a": address})
    assert place_devices("pc-i440fx-7.2", ["a"], kept)[0]["a"].slot == 3


def test_two_devices_never_share_a_place() -> None:
    """A record that gives two devices one place is not followed twice."""
    kept = Placement(machine="pc-i440fx-7.2", addresses={"a": "pci.0/7", "b": "pci.0/7"})
    places, findings = place_devices("pc-i440fx-7.2", ["a", "b"], kept)
    assert findings == []
    assert places["a"] != places["b"]


def test_a_full_bus_is_a_finding() -> None:
    """There are 29 places on pci.0 behind what the machine has."""
    uuids = [str(number) for number in range(29)]
    assert place_devices("pc-i440fx-7.2", uuids, None)[1] == []
    assert [f.code for f in place_devices("pc-i440fx-7.2", [*uuids, "x"], None)[1]] == ["bus-full"]
