"""What goes through a tap on a bridge: a guest's packets, none that are spoofed, and no more than the limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import packet_filter, tap_name

_SBIN = "/usr/sbin:/sbin"
needs_nft = pytest.mark.skipif(shutil.which("nft", path=_SBIN) is None, reason="nftables is not installed")
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make taps"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="there is no /dev/net/tun"),
]

MAC = "52:54:00:00:00:07"
OTHER_MAC = "52:54:00:00:00:08"


@pytest.fixture
def bridge(network: Any) -> str:
    return str(network.link("type", "bridge"))


@pytest.fixture
def far(network: Any, bridge: str) -> str:
    """A namespace on the bridge, with addresses."""
    name = str(network.namespace())
    cable = network.cable(name, f"{network.ip4(1)}/28", f"{network.ip6(1)}/64")
    subprocess.run(["ip", "link", "set", cable, "master", bridge], check=True)
    return name


def _nic(bridge: str, **changes: Any) -> Nic:
    return Nic(mode="bridged", link=bridge, **{"uuid": str(uuid.uuid4()), "mac": MAC, **changes})


def _dropped(nic: Nic, family: str) -> int:
    """Packets that a NIC's rules have dropped."""
    name = tap_name(nic.uuid or "")
    command = ["/usr/sbin/nft", "-j", "list", "table", family, name]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["nftables"]
    words = [word for row in rows if "rule" in row for word in row["rule"]["expr"]]
    return sum(word["counter"]["packets"] for word in words if "counter" in word)


@pytest.mark.linux
def test_a_guest_on_a_bridge(host: Any, network: Any, bridge: str, far: str, boot: Callable[..., Any]) -> None:
    """It reaches who is there, with IPv4 and IPv6; without a filter by other addresses than its own, too."""
    guest = boot([_nic(bridge)], f"hv.ip={network.ip4(7)}/28")
    assert guest.reaches(network.ip4(1))
    guest.add_ip6(f"{network.ip6(7)}/64")
    assert guest.reaches(network.ip6(1))
    guest.ok(f"ip address flush dev eth0; ip address add {network.ip4(8)}/28 dev eth0")
    assert guest.reaches(network.ip4(1))
    guest.ok(f"ip link set eth0 down; ip link set eth0 address {OTHER_MAC}; ip link set eth0 up")
    assert guest.reaches(network.ip4(1))
    host.driver.stop_instance("web1", force=True)
    assert len(os.listdir(f"/sys/class/net/{bridge}/brif")) == 1, "the cable"


@needs_nft
@pytest.mark.linux
def test_a_guest_sends_as_itself(
    host: Any, network: Any, bridge: str, far: str, boot: Callable[..., Any], tables: Any
) -> None:
    """With the filter its own addresses work, the hardware address of another does not, nor do other addresses."""
    params = {"anti_spoof": True, "addresses": [network.ip4(9), network.ip6(7)]}
    nic = _nic(bridge, ip=network.ip4(7), params=params)
    guest = boot([nic], f"hv.ip={network.ip4(7)}/28")
    assert guest.reaches(network.ip4(1))
    guest.add_ip6(f"{network.ip6(7)}/64")
    assert guest.reaches(network.ip6(1))
    guest.ok(f"ip address add {network.ip4(9)}/28 dev eth0")
    assert guest.reaches(network.ip4(1), source=network.ip4(9))
    before = _dropped(nic, "bridge")
    guest.ok(f"ip address add {network.ip4(8)}/28 dev eth0")
    assert guest.silent(network.ip4(1), source=network.ip4(8))
    assert _dropped(nic, "bridge") > before
    guest.add_ip6(f"{network.ip6(8)}/64")
    assert guest.silent(network.ip6(1), source=network.ip6(8))
    # Its neighbours never hear of the address that is not its own, however they ask.
    for address in (network.ip4(8), network.ip6(8)):
        done = subprocess.run(["ip", "-n", far, "-j", "neighbour", "show", address], capture_output=True, check=True)
        assert not any("lladdr" in row for row in json.loads(done.stdout or b"[]"))
    guest.ok(f"ip link set eth0 down; ip link set eth0 address {OTHER_MAC}; ip link set eth0 up")
    assert guest.silent(network.ip4(1))
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []


@needs_nft
@pytest.mark.linux
def test_only_the_hardware_address(network: Any, bridge: str, far: str, boot: Callable[..., Any]) -> None:
    """Without an ip the filter is for the hardware address alone."""
    guest = boot([_nic(bridge, params={"anti_spoof": True})], f"hv.ip={network.ip4(8)}/28")
    assert guest.reaches(network.ip4(1))
    guest.ok(f"ip link set eth0 down; ip link set eth0 address {OTHER_MAC}; ip link set eth0 up")
    assert guest.silent(network.ip4(1))


@needs_nft
@pytest.mark.linux
def test_the_limit_limits(
    host: Any, network: Any, bridge: str, far: str, boot: Callable[..., Any], tables: Any
) -> None:
    """In each direction a flood loses packets, and what is little gets through."""
    nic = _nic(bridge, params={"bandwidth_limit": 2000})
    guest = boot([nic], f"hv.ip={network.ip4(7)}/28")
    assert guest.reaches(network.ip4(1))
    before = _dropped(nic, "netdev")
    guest.run(f"ping -c 150 -s 1400 -i 0.01 -W 1 {network.ip4(1)}")
    assert _dropped(nic, "netdev") > before
    flood = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
    for _ in range(300):
        try:
            flood.sendto(bytes(1400), ({network.ip4(7)!r}, 9))
        except ConnectionRefusedError:
            pass
"""
    subprocess.run(["ip", "netns", "exec", far, "/usr/bin/python3", "-c", flood], check=True)
    command = ["tc", "-s", "-j", "qdisc", "show", "dev", tap_name(nic.uuid or "")]
    (queue, *_) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (queue["kind"], queue["options"]["rate"]) == ("tbf", 2000)
    assert queue["drops"] > 0
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []


@needs_nft
@pytest.mark.parametrize("params", [{"anti_spoof": True}, {"bandwidth_limit": 1000000}], ids=str)
def test_rules_go_when_the_instance_goes(host: Any, bridge: str, params: dict[str, Any], tables: Any) -> None:
    """After a crash, after a start that fails, and after one that finds rules of an earlier life."""
    nic = _nic(bridge, params=params)
    for _ in range(2):
        host.driver.start_instance(host.instance(nics=[nic]))
        assert tables(nic) == ["bridge" if "anti_spoof" in params else "netdev"]
        os.kill(host.pid(), signal.SIGKILL)
        host.wait_end()
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[nic]))
    assert tables(nic) == []


def test_no_program(findings: Any, bridge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nft and tc it is found, all at once."""
    monkeypatch.setattr(packet_filter, "_NFT", ())
    monkeypatch.setattr(packet_filter, "_TC", ())
    params = {"anti_spoof": True, "bandwidth_limit": 10**6}
    assert sorted(findings(_nic(bridge, params=params))) == [
        ("no-program", "nics[0].params.anti_spoof"),
        ("no-program", "nics[0].params.bandwidth_limit"),
        ("no-program", "nics[0].params.bandwidth_limit"),
    ]


@needs_nft
def test_a_kernel_that_cannot(findings: Any, bridge: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """What the kernel does not take is found before anything is made."""
    refuses = tmp_path / "nft"
    refuses.write_text("#!/bin/sh\necho Operation not supported; exit 1\n")
    refuses.chmod(0o755)
    monkeypatch.setattr(packet_filter, "_NFT", (str(refuses),))
    assert findings(_nic(bridge, params={"anti_spoof": True})) == [("no-packet-filter", "nics[0].params.anti_spoof")]
