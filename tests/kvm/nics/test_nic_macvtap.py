"""NIC mode macvtap: packets through an interface on top of another, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import NetworkInterface, tap_name
from hvcore_kvm.nic.macvtap import MacvtapNetwork, MacvtapParameters


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root may make macvtaps"
    lower, name = (f"hvt{uuid.uuid4().hex[:8]}" for _ in range(2))
    made = subprocess.run(["ip", "link", "add", lower, "type", "veth"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"pairs of interfaces cannot be made: {made.stderr.strip()}"
    try:
        words = ["ip", "link", "add", "link", lower, "name", name, "type", "macvtap"]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode:
            return f"macvtaps cannot be made: {made.stderr.strip()}"
        return "" if os.path.exists(f"/dev/tap{NetworkInterface(name).index}") else "/dev does not show macvtaps"
    finally:
        subprocess.run(["ip", "link", "del", lower], check=True)


_REASON = _why_not()
pytestmark = [pytest.mark.qemu, pytest.mark.skipif(bool(_REASON), reason=_REASON)]


def _nic(lower: str, **changes: Any) -> Nic:
    return Nic(mode="macvtap", link=lower, **{"uuid": str(uuid.uuid4()), **changes})


def _name(nic: Nic) -> str:
    return tap_name(nic.uuid or "")


@pytest.fixture
def lower(network: Any) -> str:
    """An interface whose other end is in a namespace, with an address."""
    return str(network.cable(network.namespace(), f"{network.ip4(1)}/28"))


@pytest.mark.linux
@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_guests_on_an_interface(host: Any, network: Any, lower: str, boot: Any, mode: str) -> None:
    """They reach who is at the other end; each other only in mode bridge."""
    params = {"macvtap_mode": mode}
    nics = [_nic(lower, params=params), _nic(lower, params={**params, "queues": 2})]
    first = boot([nics[0]], f"hv.ip={network.ip4(7)}/28")
    assert first.reaches(network.ip4(1))
    second = boot([nics[1]], f"hv.ip={network.ip4(8)}/28", name="web2")
    assert second.reaches(network.ip4(1))
    assert first.reaches(network.ip4(8)) if mode == "bridge" else first.silent(network.ip4(8))
    for name in ("web1", "web2"):
        host.driver.stop_instance(name, force=True)
    assert [NetworkInterface(_name(nic)).exists for nic in nics] == [False, False]


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_the_interface(host: Any, lower: str, show: Any, mode: str) -> None:
    """It has the NIC's address, the mode, the interface below it, and says whose it is."""
    nic = _nic(lower, mac="52:54:00:ab:cd:ef", params={"macvtap_mode": mode})
    host.driver.start_instance(host.instance(nics=[nic]))
    found = show(_name(nic))
    assert (found["address"], found["link"], found["mtu"]) == ("52:54:00:ab:cd:ef", lower, 1500)
    assert found["linkinfo"]["info_data"]["mode"] == mode
    assert {"UP", "LOWER_UP"} <= set(found["flags"])
    assert found["ifalias"].startswith("hvcore web1 ")
    host.driver.stop_instance("web1", force=True)
    assert not NetworkInterface(_name(nic)).exists


def test_its_mtu(host: Any, lower: str, show: Any, findings: Any) -> None:
    """It has the MTU that the guest is told, which cannot be above that of the interface below."""
    nic = _nic(lower, params={"mtu": 1400})
    host.driver.start_instance(host.instance(nics=[nic]))
    assert show(_name(nic))["mtu"] == 1400
    assert findings(_nic(lower, params={"mtu": 1501})) == [("mtu-too-large", "nics[0].params.mtu")]


def test_a_crash_leaves_it_until_it_is_put_away(host: Any, lower: str) -> None:
    """It outlives a killed QEMU; stopping the dead instance removes it, and so does starting it again."""
    nic = _nic(lower)
    for put_away in (lambda: host.driver.start_instance(host.instance(nics=[nic])), lambda: None):
        host.driver.start_instance(host.instance(nics=[nic]))
        os.kill(host.pid(), signal.SIGKILL)
        host.wait_end()
        assert NetworkInterface(_name(nic)).exists
        put_away()
        host.driver.stop_instance("web1", force=True)
        assert not NetworkInterface(_name(nic)).exists


def test_a_failed_start_leaves_nothing(host: Any, lower: str) -> None:
    """QEMU does not start: it is gone."""
    nic = _nic(lower)
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[nic]))
    assert not NetworkInterface(_name(nic)).exists
    assert host.files() == set()


def test_a_nic_that_another_instance_has(host: Any, lower: str, show: Any) -> None:
    """A start that fails because the name is taken leaves what has it alone."""
    nic = _nic(lower)
    host.driver.start_instance(host.instance("web1", nics=[nic]))
    with pytest.raises(hvcore.HostError, match="File exists") as caught:
        host.driver.start_instance(host.instance("web2", nics=[nic]))
    assert caught.value.hint == "another process has it; is the instance running already?"
    assert show(_name(nic))["ifalias"].startswith("hvcore web1 ")


def test_several_on_an_interface(host: Any, lower: str) -> None:
    """An instance with two, one of them with several queues, one with a model without any."""
    nics = [_nic(lower, params={"queues": 2}), _nic(lower, params={"model": "e1000"})]
    host.driver.start_instance(host.instance(nics=nics))
    assert all(NetworkInterface(_name(nic)).exists for nic in nics)


def test_a_port_of_a_bridge(network: Any, lower: str, findings: Any) -> None:
    """The kernel has either; it is said before."""
    subprocess.run(["ip", "link", "set", lower, "master", network.link("type", "bridge")], check=True)
    assert findings(_nic(lower)) == [("in-use", "nics[0].link")]


BAD = [
    # link, params, expected
    (None, {}, [("missing-parameter", "link")]),
    ("a/b", {}, [("invalid-value", "link")]),
    ("hvt-none", {}, [("no-such-interface", "link")]),
    ("lo", {"macvtap_mode": "passthru"}, [("not-a-choice", "params.macvtap_mode")]),
    ("lo", {"vlan": "10"}, [("unknown-parameter", "params.vlan")]),
]


@pytest.mark.parametrize(("link", "params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(
    findings: Callable[[Nic], Any], link: str | None, params: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """What is wrong is found before anything is made."""
    found = findings(Nic(mode="macvtap", link=link, params=params))
    assert found == [(code, f"nics[0].{path}") for code, path in expected]


def test_others_may_not_make_them(lower: str) -> None:
    """Without the capability it is refused, and the way out is said."""
    nic = _nic(lower)
    os.seteuid(65534)
    try:
        found = list(MacvtapNetwork().check_host(nic, MacvtapParameters()))
    finally:
        os.seteuid(0)
    assert [(f.code, f.path) for f in found] == [("needs-root", "mode")]
