"""Parameters of NICs and the defaults for them take effect."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from kvm_effect import Effect, Probe, Question, needs, nic, of, proves, rows, type_of

from hvcore_kvm import tap

pytestmark = pytest.mark.qemu


def _nic(shows: dict[str, tuple[Question, Any]], **given: Any) -> Effect:
    named = {f"nics[].params.{name}": fact for name, fact in shows.items()}
    return Effect(given={"nics": [nic(0, **given)]}, base={"nics": [nic(0)]}, shows=named)


def _place(probe: Probe) -> tuple[str, str]:
    return str(probe.get("nic0", "type")), probe.bus("nic0")


NICS = [
    *(
        _nic({"model": (type_of("nic0"), model)}, model=model)
        for model in ("e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "ne2k_pci", "i82551", "i82557b", "i82559er")
    ),
    _nic({"model": (_place, ("usb-net", "usb0.0"))}, model="usb-net"),
    _nic(
        {
            "rx_queue_size": (of("nic0", "rx_queue_size"), 512),
            "packed": (of("nic0", "packed"), True),
            "mtu": (of("nic0", "host_mtu"), 1400),
            "acpi_index": (of("nic0", "acpi-index"), 7),
            "offloads": (lambda probe: (probe.get("nic0", "guest_tso6"), probe.get("nic0", "csum")), (False, True)),
        },
        rx_queue_size=512,
        packed=True,
        mtu=1400,
        acpi_index=7,
        offloads={"guest_tso6": False, "csum": True},
    ),
]


def _through_defaults(effect: Effect) -> Effect:
    """The same, with what the NIC says about itself said for all NICs of the instance."""
    (only,) = effect.given["nics"]
    shows = {name.replace("nics[].params.", "params.nic."): fact for name, fact in effect.shows.items()}
    return attrs.evolve(
        effect, given={"nics": [{**only, "params": {}}], "params": {"nic": only["params"]}}, shows=shows
    )


DEFAULTS = [_through_defaults(effect) for effect in NICS]
EFFECTS = [*NICS, *DEFAULTS]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU says that the value holds, and that another one holds without it."""
    prove(effect)


def test_a_nic_overrides_the_defaults(begin: Any) -> None:
    """What a NIC says about itself goes before what is said for all."""
    given = {"nics": [nic(0, model="e1000"), nic(1)], "params": {"nic": {"model": "rtl8139"}}}
    with begin(given) as probe:
        assert [probe.get(name, "type") for name in ("nic0", "nic1")] == ["e1000", "rtl8139"]


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge of this test alone."""
    name = f"hvt{os.getpid()}"
    subprocess.run(["ip", "link", "add", "name", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


def _tun_flags(probe: Probe) -> int:
    """What the kernel says of the NIC's tap (``IFF_...`` of ``linux/if_tun.h``)."""
    for entry in Path(f"/proc/{probe.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed while we looked
            for line in entry.read_text().splitlines():
                if line.startswith("iff:"):
                    return int(Path(f"/sys/class/net/{line.split()[1]}/tun_flags").read_text(), 16)
    raise AssertionError("QEMU has no tap")


_VNET_HDR, _MULTI_QUEUE = 0x4000, 0x0100


def _on(bridge: str, where: str, given: dict[str, Any]) -> dict[str, Any]:
    own, params = (given, {}) if where == "nic" else ({}, {"nic": given})
    return {"nics": [{**nic(0, **own), "mode": "bridged", "link": bridge}], "params": params}


@pytest.mark.skipif(bool(needs("bridge")), reason="this user cannot make a bridge")
@proves("nics[].params.queues", "nics[].params.rss", "nics[].params.vnet_hdr")
@proves("params.nic.queues", "params.nic.rss", "params.nic.vnet_hdr")
@pytest.mark.parametrize("where", ["nic", "defaults"])
def test_a_tap(begin: Any, bridge: str, where: str) -> None:
    """A NIC has as many queues as its tap, spreads packets over them, and late checksums only where they are on."""
    with begin(_on(bridge, where, {"queues": 3, "rss": True}), "many") as probe:
        assert (probe.get("nic0", "mq"), probe.get("nic0", "rss")) == (True, True)
        assert (probe.descriptors("/dev/net/tun"), len(_backends(probe))) == (3, 3)
        # Two vectors a queue, one for the control queue, one for changes of configuration.
        assert probe.get("nic0", "vectors") == 8
        assert _tun_flags(probe) & (_VNET_HDR | _MULTI_QUEUE) == _VNET_HDR | _MULTI_QUEUE
    with begin(_on(bridge, where, {"vnet_hdr": False}), "plain") as probe:
        assert (probe.get("nic0", "mq"), probe.get("nic0", "rss")) == (False, False)
        assert (probe.descriptors("/dev/net/tun"), len(_backends(probe))) == (1, 1)
        assert _tun_flags(probe) & (_VNET_HDR | _MULTI_QUEUE) == 0


def _backends(probe: Probe) -> set[str]:
    """The queues of the NIC's backend, as QEMU lists them."""
    return {line.strip() for line in probe.monitor("info network").splitlines() if "type=tap" in line}


@pytest.mark.skipif(bool(needs("bridge")), reason="this user cannot make a bridge")
@proves("nics[].params.vhost", "params.nic.vhost")
def test_vhost(host: Any, resolve: Any, bridge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets go through the host's kernel where it can, and where it is told to and cannot, that is found."""
    monkeypatch.setattr(tap, "VHOST_NET", "/dev/no-such-node")
    findings = host.driver.validate_parameters(resolve(_on(bridge, "nic", {"vhost": True})))
    assert [(finding.code, finding.path) for finding in findings] == [("no-device", "nics[0].params.vhost")]
    monkeypatch.setattr(tap, "VHOST_NET", "/dev/null")
    for where in ("nic", "defaults"):
        for wanted, backends in ((True, 2), (None, 2), (False, 0)):
            given = {"queues": 2} if wanted is None else {"queues": 2, "vhost": wanted}
            plan = host.driver.plan_start(resolve(_on(bridge, where, given)))
            netdev = next(option.value for option in plan.options if option.name == "netdev")
            assert len([number for number in netdev.get("vhostfds", "").split(":") if number]) == backends
