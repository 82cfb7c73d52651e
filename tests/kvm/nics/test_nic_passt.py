"""NIC mode passt: a guest that gets its address from passt and is reached through a forwarded port; passt's end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import Companion, find_program
from hvcore_kvm.nic import passt

PATIENCE = 30.0

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(find_program("passt") is None, reason="passt is not installed"),
]


def _outward() -> str:
    """The interface of the default route; empty if there is none."""
    with open("/proc/net/route", encoding="ascii") as file:
        return next((line.split()[0] for line in file if line.split()[1] == "00000000"), "")


def _lacking() -> str:
    """What passt needs and this host has not."""
    if not _outward():
        return "this host has no default route, which passt needs"
    # Containers and changed roots often have none.
    unshare = shutil.which("unshare", path="/usr/bin:/bin")
    made = unshare and subprocess.run([unshare, "--user", "true"], capture_output=True, check=False).returncode == 0
    return "" if made else "no user namespace can be made here, which passt needs"


needs_route = pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "-")


def _running() -> list[psutil.Process]:
    """The passt processes that this process has started, by their name."""
    return [child for child in psutil.Process().children() if child.name().startswith("passt")]


@needs_route
@pytest.mark.linux
def test_a_guest_with_an_address_and_a_port(host: Any, boot: Callable[..., Any], free_port: Callable[[], int]) -> None:
    """The guest takes a lease, and what comes to the port of the host comes to the one in the guest."""
    port = free_port()
    nic = Nic(mode="passt", params={"forward": [{"host_port": port, "guest_port": 7777}]})
    guest = boot([nic])
    guest.ok("udhcpc -i eth0 -s /etc/dhcp.sh -t 5 -T 2 -n -q")
    (process,) = _running()
    guest.ok("(echo from the guest | nc -l -p 7777 >/tmp/heard) & until netstat -ltn | grep -q 7777; do :; done")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"from the host\n")
        connection.settimeout(PATIENCE)
        with connection.makefile("rb") as answer:
            assert answer.readline() == b"from the guest\n"
        connection.shutdown(socket.SHUT_WR)
    host.driver.stop_instance("web1", force=True)
    assert not process.is_running()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        pass


@needs_route
def test_its_options(host: Any, free_port: Callable[[], int]) -> None:
    """Address, MTU, interface and ports are passt's options; it has given up root's rights."""
    tcp, udp = free_port(), free_port()
    forward = [
        {"host_port": tcp, "guest_port": 22},
        {"host_port": udp, "guest_port": 53, "protocol": "udp", "host_address": "127.0.0.1"},
    ]
    nic = Nic(mode="passt", ip="192.0.2.77", link=_outward(), params={"mtu": 1400, "forward": forward})
    host.driver.start_instance(host.instance(nics=[nic]))
    (process,) = _running()
    words = process.cmdline()
    assert words[words.index("--address") + 1] == "192.0.2.77"
    assert words[words.index("--interface") + 1] == _outward()
    assert words[words.index("--mtu") + 1] == "1400"
    assert words[words.index("--tcp-ports") + 1] == f"127.0.0.1/{tcp}:22"
    assert words[words.index("--udp-ports") + 1] == f"127.0.0.1/{udp}:53"
    assert 0 not in process.uids()


@needs_route
def test_it_ends_with_a_killed_qemu(host: Any) -> None:
    """QEMU's death ends it, before anybody cleans up."""
    host.driver.start_instance(host.instance(nics=[Nic(mode="passt")]))
    (process,) = _running()
    pidfd = os.pidfd_open(process.pid)
    try:
        os.kill(host.pid(), signal.SIGKILL)
        host.wait_end()
        assert select.select([pidfd], [], [], PATIENCE)[0], "passt does not end"
    finally:
        os.close(pidfd)
    host.driver.stop_instance("web1", force=True)


@needs_route
def test_a_start_that_fails_ends_it(host: Any) -> None:
    """QEMU does not start: passt is gone."""
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(
            host.instance(params={"extra_args": "-device nosuch"}, nics=[Nic(mode="passt"), Nic(mode="passt")])
        )
    assert _running() == []
    assert host.files() == set()


def test_a_port_that_is_taken(host: Any) -> None:
    """It ends at its start; the error has its words, and QEMU is not started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        forward = [{"host_port": taken.getsockname()[1], "guest_port": 22}]
        with pytest.raises(hvcore.HostError, match="(?s)passt ended at its start; it said: .*Failed to bind") as caught:
            host.driver.start_instance(host.instance(nics=[Nic(mode="passt", params={"forward": forward})]))
    assert caught.value.code == "companion-ended"
    assert host.files() == set()


def test_one_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host has no IPv4, passt does not answer; it is waited for a moment and then trusted."""
    monkeypatch.setattr(passt, "_PATIENCE", 0.01)
    ours, theirs = socket.socketpair()
    with theirs:
        companion = Companion(name="passt", argv=(), connection=ours.detach())
        fd = passt._connect(companion, "52:54:00:00:00:01")
        assert os.get_blocking(fd)
        os.close(fd)


def test_no_program(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without passt it is found, and the package is named."""
    monkeypatch.setattr(passt, "find_program", lambda name: None)
    assert findings(Nic(mode="passt")) == [("no-program", "nics[0].mode")]


BAD = [
    # NIC, expected
    ({"link": "a/b", "ip": "x"}, [("invalid-value", "ip"), ("invalid-value", "link")]),
    ({"link": "hvt-none"}, [("no-such-interface", "link")]),
    (
        {"params": {"forward": [{"host_port": 1, "guest_port": 1}] * 2}},
        [("repeated-value", "params.forward[1].host_port")],
    ),
    ({"params": {"queues": 2}}, [("contradiction", "params.queues")]),
    ({"params": {"vlan": "10"}}, [("unknown-parameter", "params.vlan")]),
]


@pytest.mark.parametrize(("nic", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(findings: Any, nic: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """What is wrong is found before passt is started."""
    assert findings(Nic(mode="passt", **nic)) == [(code, f"nics[0].{path}") for code, path in expected]
