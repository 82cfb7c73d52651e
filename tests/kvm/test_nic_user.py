"""NIC mode user: forwarded ports and restriction, asked of the running QEMU."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu


def _monitor(host: Any, line: str) -> str:
    path = str(host.directory / "state" / "kvm" / "instances" / "web1" / "query")
    with QmpClient.connect(path, Deadline.after(30)) as client:
        arguments = {"command-line": line}
        return str(client.execute("human-monitor-command", arguments, deadline=Deadline.after(30)))


@pytest.mark.parametrize("restrict", [False, True])
def test_restrict(host: Any, restrict: bool) -> None:
    """A restricted guest reaches neither host nor network, as QEMU says."""
    host.driver.start_instance(host.instance(nics=[hvcore.Nic(params={"restrict": restrict})]), paused=True)
    assert f"restrict={'on' if restrict else 'off'}" in _monitor(host, "info network")


def test_forward(host: Any, free_port: Callable[[], int]) -> None:
    """A port of the host leads to one of the guest, on the address, by the protocol and to the port that were given."""
    port = free_port()
    forward = [
        {"host_port": port, "guest_port": 22, "protocol": "tcp", "host_address": "127.0.0.1"},
        {"host_port": port, "guest_port": 53, "protocol": "udp", "host_address": "127.0.0.1"},
    ]
    host.driver.start_instance(host.instance(nics=[hvcore.Nic(params={"forward": forward})]), paused=True)
    listed = _monitor(host, "info usernet")
    assert re.search(rf"TCP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +{port} +\S+ +22\b", listed)
    assert re.search(rf"UDP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +{port} +\S+ +53\b", listed)
    with socket.create_connection(("127.0.0.1", port), timeout=30):
        pass
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=30):
        pass
