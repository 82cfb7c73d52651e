"""NIC mode bridged: the tap as the kernel sees it, while the instance runs and after; what is refused."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, Nic
from hvcore_kvm import NetworkInterface, parse_vlan, tap, tap_name
from hvcore_kvm.nic.bridged import BridgedNetwork, BridgedParameters, _join, vlan_commands
from hvcore_kvm.parameters.nic import NicParameters
from hvcore_kvm.qmp import QmpClient

PATIENCE = 30.0


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root may make bridges and taps"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    name = f"hvt{uuid.uuid4().hex[:8]}"
    done = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"bridges cannot be made: {done.stderr.strip()}"
    subprocess.run(["ip", "link", "del", name], check=True)
    return ""


WHY_NOT = _why_not()
needs_bridges = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
pytestmark = [pytest.mark.qemu, needs_bridges]


@pytest.fixture
def make_bridge() -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(mtu: int = 1500) -> str:
        name = f"hvt{uuid.uuid4().hex[:8]}"
        subprocess.run(["ip", "link", "add", name, "mtu", str(mtu), "type", "bridge"], check=True)
        made.append(name)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        return name

    yield make
    for name in made:
        subprocess.run(["ip", "link", "del", name], check=True)


@pytest.fixture
def bridge(make_bridge: Callable[..., str], host: Any) -> Iterator[str]:
    name = make_bridge()
    yield name
    for row in host.driver.list_instances().instances:
        host.driver.stop_instance(row.name, force=True)
    assert _ports(name) == []


def _ports(bridge: str) -> list[str]:
    return os.listdir(f"/sys/class/net/{bridge}/brif")


def _nic(bridge: str, **changes: Any) -> Nic:
    """A NIC of its own: its tap's name follows from its uuid, and other tests have an instance web1 too."""
    return Nic(mode="bridged", link=bridge, **{"uuid": str(uuid.uuid4()), **changes})


def _link(name: str) -> dict[str, Any]:
    shown = subprocess.run(["ip", "-d", "-j", "link", "show", name], capture_output=True, check=True)
    (found,) = json.loads(shown.stdout)
    return dict(found)


def _start(host: Any, bridge: str, **params: Any) -> str:
    """Start an instance with one NIC; returns the name of its tap."""
    host.driver.start_instance(host.instance(nics=[_nic(bridge, params=params)]))
    (tap,) = _ports(bridge)
    return tap


def _ask(host: Any, command: str, **arguments: Any) -> Any:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), Deadline.after(PATIENCE)) as client:
        return client.execute(command, arguments, deadline=Deadline.after(PATIENCE))


def test_a_tap_on_the_bridge(host: Any, bridge: str) -> None:
    """While the instance runs there is a tap on the bridge; it is gone with it."""
    tap = _start(host, bridge)
    found = _link(tap)
    assert found["master"] == bridge
    assert {"UP", "LOWER_UP"} <= set(found["flags"])
    assert found["address"].startswith("fe:")
    data = found["linkinfo"]["info_data"]
    assert (data["type"], data["pi"], data["vnet_hdr"], data["persist"]) == ("tap", False, True, False)
    host.driver.stop_instance("web1", force=True)
    assert not os.path.exists(f"/sys/class/net/{tap}")
    assert _ports(bridge) == []


def test_its_name_follows_from_the_nic(host: Any, bridge: str) -> None:
    """The name is the same at every start, fits into the kernel's 15 characters, and is what observers are told."""
    ident = str(uuid.uuid4())
    instance = host.instance(nics=[_nic(bridge, uuid=ident)])
    for _ in range(2):
        host.driver.start_instance(instance)
        assert _ports(bridge) == [tap_name(ident)] == [tap_name(ident.upper())]
        host.driver.stop_instance("web1", force=True)
    assert len(tap_name(ident)) <= 15
    assert tap_name(ident) != tap_name(str(uuid.uuid4()))


def test_the_guest_has_the_nic(host: Any, bridge: str) -> None:
    """The NIC in front of the tap has the address it was given."""
    instance = host.instance(nics=[_nic(bridge, mac="52:54:00:ab:cd:ef")])
    host.driver.start_instance(instance)
    (nic,) = _ask(host, "query-rx-filter")
    assert nic["main-mac"] == "52:54:00:ab:cd:ef"


@pytest.mark.skipif(not os.path.exists("/usr/lib/ipxe/qemu/efi-virtio.rom"), reason="ipxe-qemu is not installed")
@pytest.mark.parametrize("nic", [{}, {"vnet_hdr": False}, {"queues": 2}], ids=str)
def test_packets_of_the_guest_reach_the_bridge(host: Any, bridge: str, nic: dict[str, Any]) -> None:
    """A guest that boots from the network asks for an address, and the bridge has its packet."""
    params = {"machine": "pc", "accel": "tcg", "boot": ["nics"], "user": {"name": "23456"}}
    mac = "52:54:00:ab:cd:ef"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:  # ETH_P_ALL
        wire.bind((bridge, 0))
        wire.settimeout(PATIENCE)
        nics = [_nic(bridge, mac=mac, params=nic)]
        host.driver.start_instance(hvcore.Instance(name="web1", security_model="user", params=params, nics=nics))
        while (packet := wire.recv(2048))[6:12] != bytes.fromhex(mac.replace(":", "")):
            pass
    assert packet[12:14] == b"\x08\x00", "IPv4"
    assert packet[23] == 17, "UDP"
    assert struct.unpack(">HH", packet[34:38]) == (68, 67), "DHCP"


FLAGS = [
    # parameters, vnet_hdr, queues
    ({}, True, 1),
    ({"vnet_hdr": False}, False, 1),
    ({"model": "e1000"}, False, 1),
    ({"model": "rtl8139"}, False, 1),
    ({"queues": 4}, True, 4),
    ({"queues": 2, "vnet_hdr": False}, False, 2),
    ({"vhost": False}, True, 1),
]


@pytest.mark.parametrize(("params", "vnet_hdr", "queues"), FLAGS)
def test_the_kind_of_tap(host: Any, bridge: str, params: dict[str, Any], vnet_hdr: bool, queues: int) -> None:
    """The tap has the header and the queues that the device in front of it can use."""
    data = _link(_start(host, bridge, **params))["linkinfo"]["info_data"]
    assert data["vnet_hdr"] is vnet_hdr
    assert data["multi_queue"] is (queues > 1)
    if queues > 1:
        # A guest without a driver has switched on the first only.
        assert data["numqueues"] + data["numdisabled"] == queues


def test_the_mtu_of_the_bridge(host: Any, make_bridge: Any, bridge: str) -> None:
    """The tap has the bridge's MTU, larger or smaller than usual, and leaves that as it is."""
    for mtu in (9000, 1400):
        other = make_bridge(mtu)
        tap = _start(host, other)
        assert _link(tap)["mtu"] == _link(other)["mtu"] == mtu
        host.driver.stop_instance("web1", force=True)


def test_a_crash_leaves_nothing(host: Any, bridge: str) -> None:
    """A killed QEMU takes its tap with it, before anybody cleans up."""
    tap = _start(host, bridge)
    os.kill(host.pid(), signal.SIGKILL)
    host.wait_end()
    assert not os.path.exists(f"/sys/class/net/{tap}")
    host.driver.stop_instance("web1", force=True)


def test_a_failed_start_leaves_nothing(host: Any, bridge: str) -> None:
    """A start that fails after the tap was made leaves none."""
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[_nic(bridge)]))
    assert _ports(bridge) == []
    assert host.files() == set()


def test_a_tap_of_a_qemu_without_capabilities(host: Any, bridge: str) -> None:
    """A QEMU that runs as somebody else works on the tap that it is given."""
    params = {"machine": "pc", "accel": "tcg", "user": {"name": "23456"}}
    nics = [_nic(bridge, params={"queues": 2}), _nic(bridge, params={"model": "e1000"})]
    host.driver.start_instance(hvcore.Instance(name="web1", security_model="user", params=params, nics=nics))
    assert len(_ports(bridge)) == 2
    assert all(_link(tap)["operstate"] in ("UP", "UNKNOWN") for tap in _ports(bridge))


def test_several_nics_and_instances(host: Any, bridge: str) -> None:
    """Every NIC of every instance has a tap of its own."""
    nics = [_nic(bridge), _nic(bridge, params={"queues": 2})]
    for name in ("web1", "web2"):
        host.driver.start_instance(host.instance(name, nics=[attrs.evolve(n, uuid=str(uuid.uuid4())) for n in nics]))
    assert len(_ports(bridge)) == 4
    host.driver.stop_instance("web1", force=True)
    assert len(_ports(bridge)) == 2


def test_a_name_that_is_taken(host: Any, bridge: str) -> None:
    """A tap of the same name that somebody else has is not touched; the start is refused with the kernel's words."""
    ident = str(uuid.uuid4())
    subprocess.run(["ip", "tuntap", "add", tap_name(ident), "mode", "tap"], check=True)
    try:
        with pytest.raises(hvcore.HostError, match="resource busy") as caught:
            host.driver.start_instance(host.instance(nics=[_nic(bridge, uuid=ident)]))
        assert caught.value.code == "tap-refused"
        assert "master" not in _link(tap_name(ident))
    finally:
        subprocess.run(["ip", "tuntap", "del", tap_name(ident), "mode", "tap"], check=True)
    assert host.files() == set()


def test_a_bridge_that_goes_away(host: Any, bridge: str) -> None:
    """A bridge that vanished after the check: the kernel's words, and no tap."""
    name = tap_name(str(uuid.uuid4()))
    with pytest.raises(hvcore.HostError, match="No such device"):
        join = functools.partial(_join, NetworkInterface("hvt-none"), _nic("hvt-none"), BridgedParameters())
        tap._make_tap(NetworkInterface(name), join, None, None, tap._IFF_TAP | tap._IFF_NO_PI)
    assert not os.path.exists(f"/sys/class/net/{name}")


def _findings(host: Any, nic: Nic) -> list[tuple[str, str]]:
    return [(f.code, f.path) for f in host.driver.validate_parameters(host.instance(nics=[nic]))]


BAD = [
    (Nic(mode="bridged"), [("missing-parameter", "nics[0].link")]),
    (Nic(mode="bridged", link="../../etc"), [("invalid-value", "nics[0].link")]),
    (Nic(mode="bridged", link="a-name-too-long-for-it"), [("invalid-value", "nics[0].link")]),
    (Nic(mode="bridged", link=".."), [("invalid-value", "nics[0].link")]),
    (Nic(mode="bridged", link="hvt-none"), [("no-such-bridge", "nics[0].link")]),
    (Nic(mode="bridged", link="lo"), [("no-such-bridge", "nics[0].link")]),
    (Nic(mode="bridged", link="lo", params={"vlan": 10}), [("wrong-type", "nics[0].params.vlan")]),
    (Nic(mode="bridged", link="lo", params={"vlan": "0"}), [("invalid-value", "nics[0].params.vlan")]),
    (
        Nic(mode="bridged", link="lo", params={"bandwidth_limit": 1}),
        [("invalid-value", "nics[0].params.bandwidth_limit")],
    ),
    (
        Nic(mode="bridged", link="lo", params={"addresses": ["192.0.2.1"]}),
        [("contradiction", "nics[0].params.addresses")],
    ),
    (
        Nic(mode="bridged", link="lo", params={"anti_spoof": True, "addresses": ["192.0.2.1"]}),
        [("contradiction", "nics[0].params.addresses")],
    ),
    (Nic(mode="bridged", link="lo", ip="x", params={"anti_spoof": True}), [("invalid-value", "nics[0].ip")]),
    (Nic(mode="bridged", link="lo", params={"forward": []}), [("unknown-parameter", "nics[0].params.forward")]),
]


@pytest.mark.parametrize(("nic", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, nic: Nic, expected: list[tuple[str, str]]) -> None:
    """What is wrong is found before QEMU is started."""
    assert _findings(host, nic) == expected
    assert host.files() == set()


def test_vlans_need_a_bridge_that_filters(host: Any, bridge: str) -> None:
    """On a bridge without VLAN filtering they would be ignored; that is refused."""
    assert _findings(host, _nic(bridge, params={"vlan": "10"})) == [("no-vlan-filtering", "nics[0].params.vlan")]


def test_an_mtu_that_the_bridge_does_not_take(host: Any, bridge: str) -> None:
    """The guest must not be told of packets that the bridge drops."""
    found = _findings(host, _nic(bridge, params={"mtu": 1501}))
    assert found == [("mtu-too-large", "nics[0].params.mtu")]
    assert _findings(host, _nic(bridge, params={"mtu": 1500})) == []


def test_vhost_that_is_not_there(host: Any, bridge: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked for and not there: refused; not asked for: done without."""
    monkeypatch.setattr(tap, "VHOST_NET", str(tmp_path / "none"))
    asked = _nic(bridge, params={"vhost": True})
    assert _findings(host, asked) == [("no-device", "nics[0].params.vhost")]
    _start(host, bridge)


def test_others_may_not_make_taps(host: Any, bridge: str) -> None:
    """Without the capability it is refused, and the way out is said."""
    nic = _nic(bridge)
    os.seteuid(65534)
    try:
        found = list(BridgedNetwork().check_host(nic, BridgedParameters()))
    finally:
        os.seteuid(0)
    assert [(f.code, f.path) for f in found] == [("needs-root", "mode")]


@attrs.define
class Numbers:
    """Gives descriptors numbers and remembers what was asked for."""

    asked: list[str] = attrs.field(factory=list)

    def __call__(self, request: Any) -> int:
        self.asked.append(request.name)
        return 10 + len(self.asked) - 1


def _plan(tmp_path: Path, device: NicParameters) -> tuple[dict[str, Any], list[str]]:
    from hvcore_kvm import NicContext

    numbers = Numbers()
    nic = Nic(mode="bridged", link="br0", uuid="0a0a0a0a-0000-4000-8000-000000000000", mac="52:54:00:00:00:01")
    context = NicContext(
        instance=hvcore.Instance(name="web1"),
        nic=nic,
        parameters=BridgedParameters(),
        device=device,
        netdev_id="n0",
        fd=numbers,
    )
    return dict(BridgedNetwork().plan(context).netdev), numbers.asked


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (NicParameters(), {"fd": "10", "vhost": True, "vhostfd": "11"}),
        (NicParameters(vhost=True), {"fd": "10", "vhost": True, "vhostfd": "11"}),
        (NicParameters(vhost=False), {"fd": "10"}),
        (NicParameters(queues=2), {"fds": "10:11", "vhost": True, "vhostfds": "12:13"}),
        (NicParameters(model="e1000"), {"fd": "10"}),
    ],
)
def test_plans_with_vhost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: NicParameters, expected: dict[str, Any]
) -> None:
    """Where the host has vhost-net, virtio devices get it, a descriptor for each queue."""
    (tmp_path / "vhost-net").touch()
    monkeypatch.setattr(tap, "VHOST_NET", str(tmp_path / "vhost-net"))
    netdev, asked = _plan(tmp_path, device)
    assert netdev == {"type": "tap", "id": "n0", **expected}
    assert len(asked) == len(":".join(v for v in expected.values() if isinstance(v, str)).split(":"))


VLANS = [
    # text, native, tagged
    ("10", 10, ()),
    (".10", 10, ()),
    (".4094", 4094, ()),
    (":10", None, (10,)),
    (":10:20", None, (10, 20)),
    (".10:20", 10, (20,)),
    (".10:20:30", 10, (20, 30)),
]


@pytest.mark.parametrize(("text", "native", "tagged"), VLANS)
def test_vlans(text: str, native: int | None, tagged: tuple[int, ...]) -> None:
    """The three forms."""
    vlans = parse_vlan(text)
    assert (vlans.native, vlans.tagged) == (native, tagged)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ":",
        "10:20",
        ".10:",
        ":10:",
        "::10",
        "0",
        "4095",
        "10000",
        "+10",
        " 10",
        "a",
        "1_0",
        "\u0661\u0660",
        ".10:10",
        "-1",
    ],
)
def test_what_is_no_vlan(text: str) -> None:
    """Signs, blanks, empty items, other digits, repetitions, numbers outside 1 to 4094."""
    with pytest.raises(ValueError):
        parse_vlan(text)


def test_vlan_commands_are_understood(bridge: str) -> None:
    """The port has its VLANs and no other; iproute2 reads the commands, whatever this kernel says to them."""
    commands = vlan_commands(bridge, parse_vlan(".10:20:30"))
    assert [command[2:3] + command[5:] for command in commands] == [
        ["del", "vid", "1-4094"],
        ["add", "vid", "10", "pvid", "untagged"],
        ["add", "vid", "20"],
        ["add", "vid", "30"],
    ]
    for command in commands:
        done = subprocess.run([*command, "self"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "RTNETLINK answers: Operation not supported" in done.stderr
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["bridge", "vlan", "show", "dev", bridge], check=True, capture_output=True)
