"""NIC mode routed: packets through routes, proxy ARP and NDP, tables and rules, and nothing left of them."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import tap_name
from hvcore_kvm.nic import routed

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make taps"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="there is no /dev/net/tun"),
]


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def _nic(ip: str, **changes: Any) -> Nic:
    return Nic(mode="routed", ip=ip, **{"uuid": str(uuid.uuid4()), **changes})


def _rules(tap: str) -> list[tuple[str, str, str]]:
    """Direction, table and IP version of the rules for a tap."""
    found = []
    for version in ("4", "6"):
        for rule in json.loads(_ip(f"-{version}", "-j", "rule", "show")):
            found += [(key, rule["table"], version) for key in ("iif", "oif") if rule.get(key) == tap]
    return sorted(found)


def _setting(version: int, interface: str, name: str) -> str:
    return Path(f"/proc/sys/net/ipv{version}/conf/{interface}/{name}").read_text().strip()


@pytest.mark.linux
def test_a_guest_behind_its_route(host: Any, network: Any, boot: Callable[..., Any]) -> None:
    """The guest reaches another host through this one, which stands for it by proxy ARP; then all is gone."""
    far = network.namespace()
    cable = network.cable(far, f"{network.ip4(2)}/32")
    _ip("address", "add", network.ip4(1), "dev", cable)
    _ip("route", "add", network.ip4(2), "dev", cable)
    _ip("-n", far, "route", "add", "default", "dev", "eth0")
    for name in ("forwarding", "proxy_arp"):
        Path(f"/proc/sys/net/ipv4/conf/{cable}/{name}").write_text("1")
    nic = _nic(network.ip4(7))
    tap = tap_name(nic.uuid or "")
    guest = boot([nic], f"hv.ip={network.ip4(7)}/32")
    guest.ok("ip route add default dev eth0")
    assert guest.reaches(network.ip4(1)), "the host"
    assert guest.reaches(network.ip4(2)), "a host behind it"
    assert network.ip4(7) in _ip("route", "show", "dev", tap)
    assert (_setting(4, tap, "proxy_arp"), _setting(4, tap, "forwarding")) == ("1", "1")
    host.driver.stop_instance("web1", force=True)
    assert not os.path.exists(f"/sys/class/net/{tap}")
    assert network.ip4(7) not in _ip("route", "show", "table", "all")
    assert _rules(tap) == []


@pytest.mark.linux
def test_without_proxy_arp_nobody_answers(network: Any, boot: Callable[..., Any]) -> None:
    """The host does not stand for others when it is told not to; its own address it has."""
    far = network.namespace()
    cable = network.cable(far, f"{network.ip4(2)}/32")
    _ip("address", "add", network.ip4(1), "dev", cable)
    _ip("route", "add", network.ip4(2), "dev", cable)
    guest = boot([_nic(network.ip4(7), params={"proxy_arp": False})], f"hv.ip={network.ip4(7)}/32")
    guest.ok("ip route add default dev eth0")
    assert guest.reaches(network.ip4(1))
    assert guest.silent(network.ip4(2))


@pytest.mark.linux
def test_both_versions_and_a_table(host: Any, network: Any, boot: Callable[..., Any]) -> None:
    """IPv4 and IPv6 addresses in a routing table of its own, which the rules lead to, for what the guest sends."""
    far = network.namespace()
    cable = network.cable(far, f"{network.ip4(2)}/32", f"{network.ip6(2)}/128")
    table = str(10000 + network.net)
    for version, host_end, far_end, guest_end in (
        ("-4", network.ip4(1), network.ip4(2), network.ip4(7)),
        ("-6", network.ip6(1), network.ip6(2), network.ip6(7)),
    ):
        _ip(version, "address", "add", host_end, "dev", cable, *(["nodad"] if version == "-6" else []))
        _ip(version, "route", "add", far_end, "dev", cable, "table", table)
        _ip(version, "rule", "add", "iif", cable, "table", table)
        _ip(version, "-n", far, "route", "add", host_end, "dev", "eth0")
        _ip(version, "-n", far, "route", "add", guest_end, "via", host_end, "dev", "eth0")
    Path(f"/proc/sys/net/ipv4/conf/{cable}/forwarding").write_text("1")
    # The way back of what it sends is in a table that only the rules lead to.
    strict = Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text().strip() == "1"
    forwards = Path(f"/proc/sys/net/ipv6/conf/{cable}/force_forwarding")
    if forwards.exists():
        forwards.write_text("1")
    nic = _nic(network.ip4(7), link=table, params={"addresses": [network.ip6(7)]})
    tap = tap_name(nic.uuid or "")
    try:
        guest = boot([nic], f"hv.ip={network.ip4(7)}/32")
        assert _rules(tap) == sorted((key, table, version) for key in ("iif", "oif") for version in ("4", "6"))
        assert network.ip4(7) in _ip("route", "show", "table", table, "dev", tap)
        assert network.ip6(7) in _ip("-6", "route", "show", "table", table, "dev", tap)
        assert network.ip4(7) not in _ip("route", "show")
        assert (_setting(6, tap, "proxy_ndp"), _setting(6, tap, "forwarding")) == ("1", "1")
        guest.ok("ip route add default dev eth0")
        assert strict or guest.reaches(network.ip4(2))
        if forwards.exists():
            # Who is to be stood for has to be said.
            _ip("-6", "neighbour", "add", "proxy", network.ip6(2), "dev", tap)
            guest.add_ip6(f"{network.ip6(7)}/128")
            guest.ok("ip -6 route add default dev eth0")
            assert guest.reaches(network.ip6(2))
        host.driver.stop_instance("web1", force=True)
        assert _rules(tap) == []
    finally:
        for version in ("-4", "-6"):
            _ip(version, "rule", "del", "iif", cable, "table", table)


def test_the_table_of_a_killed_host_application(host: Any, network: Any) -> None:
    """Rules that a killed process has left are replaced, not added to."""
    nic = _nic(network.ip4(7), link=str(10000 + network.net))
    tap = tap_name(nic.uuid or "")
    _ip("rule", "add", "iif", tap, "table", "123")
    host.driver.start_instance(host.instance(nics=[nic]))
    assert {table for _, table, _ in _rules(tap)} == {nic.link}
    host.driver.stop_instance("web1", force=True)
    assert _rules(tap) == []


def test_a_named_table(host: Any, network: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A table is found by the name that the administrator has given it."""
    (tmp_path / "rt_tables").write_text("# tables\n0x4d2\tblue # comment\nnonsense\n99999999999 far\n")
    monkeypatch.setattr(routed, "_TABLE_FILES", (str(tmp_path / "rt_*"),))
    nic = _nic(network.ip4(7), link="blue")
    host.driver.start_instance(host.instance(nics=[nic]))
    assert _rules(tap_name(nic.uuid or "")) == [("iif", "1234", "4"), ("oif", "1234", "4")]
    assert network.ip4(7) in _ip("route", "show", "table", "1234")
    # The name has gone; what has it as its own is taken down all the same.
    (tmp_path / "rt_tables").unlink()
    host.driver.stop_instance("web1", force=True)
    assert _rules(tap_name(nic.uuid or "")) == []


def test_a_running_nic_is_led_to_otherwise(host: Any, network: Any) -> None:
    """Other addresses, another table and no table: what led to it goes, the guest keeps its device."""
    table = str(10000 + network.net)
    nic = _nic(network.ip4(7), link=table, params={"addresses": [network.ip6(7)]})
    tap = tap_name(nic.uuid or "")
    host.driver.start_instance(host.instance(nics=[nic]))
    index = Path(f"/sys/class/net/{tap}/ifindex").read_text()
    assert _rules(tap) == sorted((key, table, version) for key in ("iif", "oif") for version in ("4", "6"))
    other = _nic(network.ip4(8), uuid=nic.uuid)
    assert "kept its device" in host.driver.hot_mod_device("web1", other).detail
    assert _rules(tap) == []
    assert network.ip4(8) in _ip("route", "show", "dev", tap)
    everything = _ip("route", "show", "table", "all") + _ip("-6", "route", "show", "table", "all")
    assert network.ip4(7) not in everything
    assert network.ip6(7) not in everything
    assert (_setting(4, tap, "proxy_arp"), _setting(6, tap, "proxy_ndp")) == ("1", "0")
    assert Path(f"/sys/class/net/{tap}/ifindex").read_text() == index
    taken = _nic(network.ip4(8), link=str(20000 + network.net))
    with pytest.raises(hvcore.InvalidParameters):
        host.driver.hot_mod_device("web1", _nic("nonsense", uuid=nic.uuid))
    host.driver.start_instance(host.instance("web2", nics=[taken]))
    with pytest.raises(hvcore.HostError, match="File exists"):
        host.driver.hot_mod_device("web1", _nic(network.ip4(8), uuid=nic.uuid, link=taken.link))
    assert network.ip4(8) in _ip("route", "show", "dev", tap), "led to as before"
    assert _rules(tap) == []
    host.driver.hot_mod_device("web1", nic)
    host.driver.stop_instance("web1", force=True)
    assert _rules(tap) == []
    assert network.ip4(7) not in _ip("route", "show", "table", "all")


def test_an_address_is_led_to_one_guest(host: Any, network: Any) -> None:
    """A second guest with the same address is refused, and takes nothing from the first."""
    table = str(10000 + network.net)
    host.driver.start_instance(host.instance("web1", nics=[_nic(network.ip4(7), link=table)]))
    before = _ip("route", "show", "table", table)
    second = _nic(network.ip4(7), link=table)
    with pytest.raises(hvcore.HostError, match="File exists") as caught:
        host.driver.start_instance(host.instance("web2", nics=[second]))
    assert caught.value.hint == "another interface has this address; is it given twice?"
    assert _ip("route", "show", "table", table) == before
    assert not os.path.exists(f"/sys/class/net/{tap_name(second.uuid or '')}")
    assert _rules(tap_name(second.uuid or "")) == [], "undone by the failed start"


def test_a_nic_that_another_instance_has(host: Any, network: Any) -> None:
    """A start that fails because the tap is another's leaves that one's rules alone."""
    nic = _nic(network.ip4(7), link=str(10000 + network.net))
    host.driver.start_instance(host.instance("web1", nics=[nic]))
    before = _rules(tap_name(nic.uuid or ""))
    with pytest.raises(hvcore.HostError, match="resource busy"):
        host.driver.start_instance(host.instance("web2", nics=[nic]))
    assert _rules(tap_name(nic.uuid or "")) == before != []


def test_a_start_that_fails_leaves_no_rules(host: Any, network: Any) -> None:
    """QEMU does not start: rules and routes are gone with the tap."""
    nic = _nic(network.ip4(7), link=str(10000 + network.net))
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[nic]))
    assert _rules(tap_name(nic.uuid or "")) == []
    assert network.ip4(7) not in _ip("route", "show", "table", "all")
    assert host.files() == set()


def test_queues_and_mtu(host: Any, network: Any, show: Any) -> None:
    """The tap has the queues and the MTU that the guest sees."""
    nic = _nic(network.ip4(7), params={"queues": 3, "mtu": 9000})
    host.driver.start_instance(host.instance(nics=[nic]))
    found = show(tap_name(nic.uuid or ""))
    data = found["linkinfo"]["info_data"]
    assert (found["mtu"], data["numqueues"] + data["numdisabled"], data["persist"]) == (9000, 3, False)


def test_proxies_switched_off(host: Any, network: Any) -> None:
    """Neither proxy is on when it is not wanted."""
    params = {"proxy_arp": False, "proxy_ndp": False, "addresses": [network.ip6(7)]}
    nic = _nic(network.ip4(7), params=params)
    tap = tap_name(nic.uuid or "")
    host.driver.start_instance(host.instance(nics=[nic]))
    assert [_setting(4, tap, "proxy_arp"), _setting(6, tap, "proxy_ndp")] == ["0", "0"]
    assert network.ip6(7) in _ip("-6", "route", "show", "dev", tap)


def test_a_bandwidth_limit(host: Any, network: Any, tables: Any) -> None:
    """The tap has it, and its rules go with the instance."""
    nic = _nic(network.ip4(7), params={"bandwidth_limit": "1MB"})
    host.driver.start_instance(host.instance(nics=[nic]))
    assert tables(nic) == ["netdev"]
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []


BAD = [
    # ip, link, params, expected
    (None, None, {}, [("missing-parameter", "ip")]),
    (None, "no table", {"addresses": ["x"]}, [("invalid-value", "params.addresses[0]")]),
    ("192.0.2.300", "", {}, [("invalid-value", "ip"), ("invalid-value", "link")]),
    ("192.0.2.0/24", None, {}, [("invalid-value", "ip")]),
    ("0.0.0.0", None, {}, [("invalid-value", "ip")]),
    ("255.255.255.255", None, {}, [("invalid-value", "ip")]),
    ("224.0.0.1", None, {}, [("invalid-value", "ip")]),
    ("::1", None, {}, [("invalid-value", "ip")]),
    ("fe80::1%eth0", None, {}, [("invalid-value", "ip")]),
    ("192.0.2.1", None, {"addresses": ["192.0.2.1"]}, [("repeated-value", "params.addresses[0]")]),
    ("2001:DB8::1", None, {"addresses": ["2001:db8:0::1"]}, [("repeated-value", "params.addresses[0]")]),
    ("192.0.2.1", "0", {}, [("invalid-value", "link")]),
    ("192.0.2.1", "4294967296", {}, [("invalid-value", "link")]),
    ("192.0.2.1", "255", {}, [("invalid-value", "link")]),
    ("192.0.2.1", "local", {}, [("invalid-value", "link")]),
    ("192.0.2.1", "-1", {}, [("no-such-table", "link")]),
    ("192.0.2.1", "a table", {}, [("invalid-value", "link")]),
    ("192.0.2.1", "nobody-has-named-it", {}, [("no-such-table", "link")]),
    ("192.0.2.1", None, {"vlan": "10"}, [("unknown-parameter", "params.vlan")]),
    ("192.0.2.1", "main", {}, []),
    ("192.0.2.1", "4294967295", {}, []),
]


@pytest.mark.parametrize(("ip", "link", "params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(
    findings: Any, ip: str | None, link: str | None, params: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """All that is wrong is found at once."""
    found = findings(Nic(mode="routed", ip=ip, link=link, params=params))
    assert found == [(code, f"nics[0].{path}") for code, path in expected]


def test_others_may_not_make_taps() -> None:
    """Without the capability it is refused, and the way out is said."""
    nic = _nic("192.0.2.1")
    os.seteuid(65534)
    try:
        found = list(routed.RoutedNetwork().check_host(nic, routed.RoutedParameters()))
    finally:
        os.seteuid(0)
    assert [(f.code, f.path) for f in found] == [("needs-root", "mode")]
