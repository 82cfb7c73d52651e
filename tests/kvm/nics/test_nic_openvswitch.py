"""NIC mode openvswitch: packets through a private Open vSwitch, its VLANs, and no port left in its database."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import run_command, tap_name
from hvcore_kvm.nic import openvswitch
from hvcore_kvm.nic.openvswitch import port_settings

PATIENCE = 30.0
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_SBIN = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root may make taps"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    if shutil.which("ovs-vswitchd", path=_SBIN) is None or not os.path.exists(_SCHEMA):
        return "openvswitch-switch is not installed"
    return ""


pytestmark = [pytest.mark.qemu, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]


@attrs.define
class Switch:
    """An Open vSwitch of the test's own, in a directory of its own."""

    directory: Path
    running: dict[str, int] = attrs.field(factory=dict)

    @property
    def database(self) -> str:
        return f"unix:{self.directory}/db"

    def start(self) -> None:
        database = self.directory / "conf.db"
        subprocess.run(["ovsdb-tool", "create", database, _SCHEMA], check=True, capture_output=True)
        self.begin("ovsdb-server", str(database), f"--remote=p{self.database}")
        self.vsctl("--no-wait", "init")
        self.begin("ovs-vswitchd", self.database)

    def begin(self, program: str, *words: str) -> None:
        """Start a server; it is ready when this returns."""
        pid, own = self.directory / f"{program}.pid", [f"--unixctl={self.directory}/{program}.ctl", "--no-chdir"]
        command = [shutil.which(program, path=_SBIN) or program, *words, *own, f"--pidfile={pid}", "--detach"]
        log = f"--log-file={self.directory}/{program}.log"
        environment = {"PATH": _SBIN, "OVS_RUNDIR": str(self.directory)}
        subprocess.run([*command, log], check=True, capture_output=True, env=environment)
        self.running[program] = os.pidfd_open(int(pid.read_text()))

    def end(self, program: str) -> None:
        pidfd = self.running.pop(program)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], PATIENCE)[0], f"{program} does not end"
        os.close(pidfd)

    def stop(self) -> None:
        for program in list(self.running):
            self.end(program)

    def vsctl(self, *words: str) -> str:
        command = ["ovs-vsctl", "--timeout=20", f"--db={self.database}", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def port(self, name: str) -> dict[str, Any]:
        """What the database has of a port."""
        answer = json.loads(
            self.vsctl("--format=json", "--columns=tag,trunks,vlan_mode", "find", "port", f"name={name}")
        )
        (row,) = answer["data"]
        # A set of one is shown as what is in it.
        return {
            key: value[1] if isinstance(value, list) else value
            for key, value in zip(answer["headings"], row, strict=True)
        }


@pytest.fixture
def switch(network: Any) -> Iterator[Switch]:
    # One at a time on this host: each has an interface called ovs-netdev.
    with open(os.path.join(tempfile.gettempdir(), "hvcore-test-openvswitch.lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists("/sys/class/net/ovs-netdev"):
            pytest.skip("this host runs an Open vSwitch with a userspace datapath")
        with tempfile.TemporaryDirectory(prefix="hvt-ovs-") as directory:
            made = Switch(Path(directory))
            try:
                made.start()
                yield made
            finally:
                if "ovs-vswitchd" in made.running:
                    with contextlib.suppress(subprocess.CalledProcessError):
                        for bridge in made.vsctl("list-br").split():
                            made.vsctl("del-br", bridge)
                made.stop()
        assert not os.path.exists("/sys/class/net/ovs-netdev")


@pytest.fixture
def bridge(host: Any, switch: Switch) -> Iterator[str]:
    """A bridge; when the instances are gone, so are their ports."""
    name = f"hvt{uuid.uuid4().hex[:8]}"
    switch.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
    yield name
    for row in host.driver.list_instances().instances:
        host.driver.stop_instance(row.name, force=True)
    assert [port for port in switch.vsctl("list-ports", name).split() if not port.startswith("hvt")] == []


def _nic(switch: Switch, bridge: str, **changes: Any) -> Nic:
    params = {"database": switch.database, **changes.pop("params", {})}
    return Nic(mode="openvswitch", link=bridge, params=params, **{"uuid": str(uuid.uuid4()), **changes})


@pytest.mark.linux
def test_guests_in_their_vlans(host: Any, network: Any, switch: Switch, bridge: str, boot: Any) -> None:
    """A guest reaches who is in the VLAN of its port, and nobody else; a guest of another VLAN the same."""
    for vlan, address in (("10", network.ip4(1)), ("20", network.ip4(2))):
        cable = network.cable(network.namespace(), f"{address}/28")
        switch.vsctl("add-port", bridge, cable, f"tag={vlan}")
    first = boot([_nic(switch, bridge, params={"vlan": "10"})], f"hv.ip={network.ip4(7)}/28")
    second = boot([_nic(switch, bridge, params={"vlan": ".20:30"})], f"hv.ip={network.ip4(8)}/28", name="web2")
    assert first.reaches(network.ip4(1))
    assert first.silent(network.ip4(2))
    assert second.reaches(network.ip4(2))
    assert second.silent(network.ip4(1))
    assert first.silent(network.ip4(8))


@pytest.mark.linux
def test_a_guest_without_vlans(host: Any, network: Any, switch: Switch, bridge: str, boot: Any) -> None:
    """Without VLANs the port is like any other; it is gone from the database and the host at the end."""
    switch.vsctl("add-port", bridge, network.cable(network.namespace(), f"{network.ip4(1)}/28"))
    nic = _nic(switch, bridge, params={"queues": 2})
    tap = tap_name(nic.uuid or "")
    guest = boot([nic], f"hv.ip={network.ip4(7)}/28")
    assert guest.reaches(network.ip4(1))
    assert tap in switch.vsctl("list-ports", bridge).split()
    host.driver.stop_instance("web1", force=True)
    assert tap not in switch.vsctl("list-ports", bridge).split()
    assert not os.path.exists(f"/sys/class/net/{tap}")


VLANS = [
    # text, settings
    (None, {"tag": [], "trunks": [], "vlan_mode": []}),
    ("10", {"tag": 10, "trunks": [], "vlan_mode": "access"}),
    (".10", {"tag": 10, "trunks": [], "vlan_mode": "access"}),
    (":10", {"tag": [], "trunks": 10, "vlan_mode": "trunk"}),
    (":10:20", {"tag": [], "trunks": [10, 20], "vlan_mode": "trunk"}),
    (".10:20:30", {"tag": 10, "trunks": [20, 30], "vlan_mode": "native-untagged"}),
]


def test_vlans_of_the_port(host: Any, switch: Switch, bridge: str) -> None:
    """What the database has of the port, for each form of the parameter."""
    for vlan, expected in VLANS:
        nic = _nic(switch, bridge, params={} if vlan is None else {"vlan": vlan})
        host.driver.start_instance(host.instance(nics=[nic]))
        assert switch.port(tap_name(nic.uuid or "")) == expected
        host.driver.stop_instance("web1", force=True)


def test_a_stale_port(host: Any, switch: Switch, bridge: str) -> None:
    """A port that a crashed host has left is replaced, with its settings, from whatever bridge."""
    other = f"{bridge}o"
    switch.vsctl("add-br", other, "--", "set", "bridge", other, "datapath_type=netdev")
    nic = _nic(switch, bridge, params={"vlan": "10"})
    tap = tap_name(nic.uuid or "")
    switch.vsctl("add-port", other, tap, "tag=77")
    host.driver.start_instance(host.instance(nics=[nic]))
    assert switch.vsctl("port-to-br", tap).strip() == bridge
    assert switch.port(tap)["tag"] == 10
    host.driver.stop_instance("web1", force=True)
    assert switch.vsctl("list-ports", other) == ""


def test_a_crash_leaves_its_port_until_it_is_put_away(host: Any, switch: Switch, bridge: str) -> None:
    """A killed QEMU cannot take its port with it; stopping the dead instance does, and once is enough."""
    nic = _nic(switch, bridge)
    host.driver.start_instance(host.instance(nics=[nic]))
    os.kill(host.pid(), signal.SIGKILL)
    host.wait_end()
    assert switch.vsctl("list-ports", bridge) != ""
    host.driver.stop_instance("web1", force=True)
    assert switch.vsctl("list-ports", bridge) == ""


def test_a_failed_start_leaves_nothing(host: Any, switch: Switch, bridge: str) -> None:
    """QEMU does not start: the port is deleted again."""
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[_nic(switch, bridge)]))
    assert switch.vsctl("list-ports", bridge) == ""
    assert host.files() == set()


def test_a_nic_that_another_instance_has(host: Any, switch: Switch, bridge: str) -> None:
    """A start that fails because the tap is another's leaves that one's port alone."""
    nic = _nic(switch, bridge)
    host.driver.start_instance(host.instance("web1", nics=[nic]))
    with pytest.raises(hvcore.HostError, match="resource busy"):
        host.driver.start_instance(host.instance("web2", nics=[nic]))
    assert switch.vsctl("list-ports", bridge).split() == [tap_name(nic.uuid or "")]


def test_a_bridge_that_is_not_there(host: Any, switch: Switch, bridge: str, findings: Any) -> None:
    """It is found, and the hint names those that are."""
    nic = _nic(switch, "hvt-none")
    assert findings(nic) == [("no-such-bridge", "nics[0].link")]
    (finding,) = host.driver.validate_parameters(host.instance(nics=[nic]))
    assert finding.hint == f"Open vSwitch has the bridges {bridge}"


def test_a_database_that_does_not_answer(switch: Switch, bridge: str, findings: Any, tmp_path: Path) -> None:
    """Nobody listens: it is found, in the words of ovs-vsctl."""
    nic = _nic(switch, bridge, params={"database": f"unix:{tmp_path}/none"})
    assert findings(nic) == [("no-openvswitch", "nics[0].mode")]


def test_a_switch_that_hangs(host: Any, switch: Switch, bridge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database answers, the switch does not: the start fails in time, and the port is gone from the database."""
    monkeypatch.setattr(openvswitch, "_PATIENCE", 1)
    nic = _nic(switch, bridge)
    pidfd = switch.running["ovs-vswitchd"]
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    try:
        with pytest.raises(hvcore.HostError, match="ovs-vsctl"):
            host.driver.start_instance(host.instance(nics=[nic]))
        assert switch.vsctl("--no-wait", "list-ports", bridge) == ""
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    assert host.files() == set()


def test_no_program(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ovs-vsctl it is found, and the package is named."""
    monkeypatch.setattr(openvswitch, "_VSCTL", ())
    assert findings(Nic(mode="openvswitch", link="br0")) == [("no-program", "nics[0].mode")]


def test_a_bandwidth_limit(host: Any, switch: Switch, bridge: str, tables: Any) -> None:
    """The tap has it, and its rules go with the instance."""
    nic = _nic(switch, bridge, params={"bandwidth_limit": 10**6})
    host.driver.start_instance(host.instance(nics=[nic]))
    assert tables(nic) == ["netdev"]
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []


BAD = [
    # link, params, expected
    (None, {}, [("missing-parameter", "link")]),
    ("--help", {"vlan": ":"}, [("invalid-value", "params.vlan")]),
    ("--help", {}, [("invalid-value", "link")]),
    ("a b", {}, [("invalid-value", "link")]),
    ("", {}, [("invalid-value", "link")]),
    ("br0", {"vlan": 10}, [("wrong-type", "params.vlan")]),
    ("br0", {"database": "/run/db.sock"}, [("invalid-value", "params.database")]),
    ("br0", {"database": "unix:"}, [("invalid-value", "params.database")]),
    ("br0", {"forward": []}, [("unknown-parameter", "params.forward")]),
]


@pytest.mark.parametrize(("link", "params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(
    findings: Callable[[Nic], Any], link: str | None, params: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """What is wrong is found before anything is asked of the switch."""
    found = findings(Nic(mode="openvswitch", link=link, params=params))
    assert found == [(code, f"nics[0].{path}") for code, path in expected]


def test_settings_of_ports() -> None:
    """The columns in ovs-vsctl's words."""
    assert port_settings(None) == []
    assert port_settings(".10:20:30") == ["vlan_mode=native-untagged", "tag=10", "trunks=20,30"]


@pytest.mark.timeout(300)
def test_it_keeps_what_a_nic_mode_promises(conformance: Any, switch: Switch, bridge: str) -> None:
    """The conformance suite, on the private switch; no port is left."""
    conformance.passes("nic-mode", "openvswitch", link=bridge, database=switch.database)


_KILLED = """
import json, os, signal, sys
import hvcore
from hvcore_kvm.nic import openvswitch
openvswitch._join = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
driver.hot_mod_device("web1", hvcore.Nic(**json.loads(sys.argv[2])))
"""


def _refuse(*args: Any) -> None:
    raise hvcore.HostError("not today")


@pytest.mark.linux
def test_a_running_nic_moves_between_modes(
    host: Any, network: Any, switch: Switch, bridge: str, boot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest keeps its card and its tap from network to network; what fails or is killed half way is taken back."""
    plain = network.link("type", "bridge")
    run_command(
        ["ip", "link", "set", network.cable(network.namespace(), f"{network.ip4(1)}/28"), "master", plain],
        timeout=PATIENCE,
    )
    switch.vsctl("add-port", bridge, network.cable(network.namespace(), f"{network.ip4(2)}/28"), "tag=10")
    bridged = Nic(uuid=str(uuid.uuid4()), mode="bridged", link=plain)
    guest = boot([bridged], f"hv.ip={network.ip4(7)}/28")
    bridged = attrs.evolve(bridged, mac=guest.ok("cat /sys/class/net/eth0/address").strip()[-17:])
    tap, index = tap_name(bridged.uuid or ""), guest.ok("cat /sys/class/net/eth0/ifindex")
    on_switch = _nic(switch, bridge, uuid=bridged.uuid, mac=bridged.mac, params={"vlan": "10"})
    routed = attrs.evolve(bridged, mode="routed", link=None, ip=network.ip4(7))

    def places() -> tuple[bool, bool, bool]:
        """Whether it is on the bridge, on the switch, and has a route."""
        routes = json.loads(run_command(["ip", "-j", "route", "show", "dev", tap], timeout=PATIENCE) or "[]")
        ports = switch.vsctl("list-ports", bridge).split()
        return os.path.exists(f"/sys/class/net/{plain}/brif/{tap}"), tap in ports, routes != []

    assert guest.reaches(network.ip4(1))
    with monkeypatch.context() as patch, pytest.raises(hvcore.HostError, match="not today"):
        patch.setattr(openvswitch, "_join", _refuse)
        host.driver.hot_mod_device("web1", on_switch)
    assert places() == (True, False, False)
    assert guest.reaches(network.ip4(1))
    given = {**attrs.asdict(on_switch), "params": dict(on_switch.params)}
    words = [json.dumps(host.settings), json.dumps(given)]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *words], timeout=PATIENCE * 2, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert places() == (False, False, False)
    assert [device.state for device in host.driver.get_instance_info("web1").devices] == ["present"]
    (found,) = host.driver.recover("web1").instances
    assert "connected as it is written down" in found.detail
    assert places() == (True, False, False)
    assert guest.reaches(network.ip4(1))
    for nic, where in ((on_switch, (False, True, False)), (routed, (False, False, True))):
        assert "kept its device" in host.driver.hot_mod_device("web1", nic).detail
        assert places() == where
        if nic is on_switch:
            assert guest.reaches(network.ip4(2))
            assert guest.silent(network.ip4(1))
            assert switch.port(tap)["tag"] == 10
            other = attrs.evolve(on_switch, params={**on_switch.params, "vlan": "20"})
            assert "kept its device" in host.driver.hot_mod_device("web1", other).detail
            assert switch.port(tap)["tag"] == 20
    assert "kept its device" in host.driver.hot_mod_device("web1", bridged).detail
    assert places() == (True, False, False)
    assert guest.reaches(network.ip4(1))
    assert guest.ok("cat /sys/class/net/eth0/ifindex") == index
    host.driver.hot_mod_device("web1", on_switch)
    host.driver.stop_instance("web1", force=True)
    assert tap not in switch.vsctl("list-ports", bridge).split(), "its end is that of the mode it has now"
