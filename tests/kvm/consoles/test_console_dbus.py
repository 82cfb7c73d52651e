"""Console type dbus: a D-Bus library written by others reads the name of the instance and the size of its screen."""

from __future__ import annotations

import socket
from typing import Any

import attrs
import jeepney
import jeepney.auth
import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm import open_dbus_display
from hvcore_kvm.capabilities import capabilities_of
from hvcore_kvm.command_line import json_option
from hvcore_kvm.support import check_support

pytestmark = pytest.mark.qemu

PATIENCE = 30.0


@pytest.fixture(params=["installed", "newer"])
def qemu_host(request: pytest.FixtureRequest, make_host: Any) -> Any:
    """A host with the installed QEMU, and one with a newer QEMU; only where QEMU has the display."""
    settings = {"qemu": request.getfixturevalue("newer_qemu")} if request.param == "newer" else {}
    host = make_host(**settings)
    if "dbus" not in _capabilities(host).displays:
        pytest.skip("this QEMU has no D-Bus display")
    return host


def _capabilities(host: Any) -> Any:
    cache = f"{host.settings['cache_directory']}/kvm"
    return capabilities_of(host.settings.get("qemu", "qemu-system-x86_64"), cache, Deadline.after(PATIENCE))


class Peer:
    """A D-Bus client on a socket, without a bus."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(PATIENCE)
        self._parser = jeepney.Parser()
        self._serial = 0
        authenticator = jeepney.auth.Authenticator(enable_fds=False)
        for request in authenticator:
            self._socket.sendall(request)
            authenticator.feed(self._socket.recv(1024))
        self._socket.sendall(jeepney.auth.BEGIN)

    def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of one interface of an object."""
        address = jeepney.DBusAddress(path, "org.qemu", f"org.qemu.Display1.{interface}")
        self._serial += 1
        self._socket.sendall(jeepney.Properties(address).get_all().serialise(serial=self._serial))
        while True:
            message = self._parser.get_next_message()
            if message is None:
                data = self._socket.recv(65536)
                assert data, "QEMU closed the connection"
                self._parser.add_data(data)
            elif message.header.fields.get(jeepney.HeaderFields.reply_serial) == self._serial:
                assert message.header.message_type is jeepney.MessageType.method_return, message.body
                return {name: value for name, (_, value) in message.body[0].items()}


@pytest.fixture
def console(qemu_host: Any) -> hvcore.Console:
    qemu_host.driver.start_instance(qemu_host.instance(security_model="none", consoles=["serial", "dbus"]))
    found: hvcore.Console = qemu_host.driver.get_instance_console("web1", "dbus")
    return found


def test_a_client_reads_name_and_size(console: hvcore.Console) -> None:
    """The library authenticates, and asks for the instance and its first screen."""
    with open_dbus_display(console) as connection:
        peer = Peer(connection)
        machine = peer.properties("/org/qemu/Display1/VM", "VM")
        assert machine["Name"] == "web1"
        screen = peer.properties("/org/qemu/Display1/Console_0", "Console")
        assert (screen["Width"], screen["Height"], screen["Type"]) == (640, 480, "Graphic")


def test_one_after_the_other(console: hvcore.Console, qemu_host: Any) -> None:
    """A second client is served as well, and the instance runs on without any."""
    for _ in range(2):
        with open_dbus_display(console) as connection:
            assert Peer(connection).properties("/org/qemu/Display1/VM", "VM")["Name"] == "web1"
    assert qemu_host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING
    assert "open_dbus_display" in console.message


def test_other_consoles_are_refused(host: Any) -> None:
    """A serial console speaks no D-Bus, and an instance without the display refuses the client in QEMU's words."""
    host.driver.start_instance(host.instance())
    serial = host.driver.get_instance_console("web1", "serial")
    with pytest.raises(hvcore.UnsupportedOperation):
        open_dbus_display(serial)
    monitor = f"{host.directory}/state/kvm/instances/web1/query"
    with pytest.raises(hvcore.HypervisorRefused, match="D-Bus display is not in use"):
        open_dbus_display(attrs.evolve(serial, kind="dbus", socket_path=monitor))
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING


def test_a_qemu_without_it(host: Any) -> None:
    """The finding says what to install."""
    without = attrs.evolve(_capabilities(host), displays=("none", "curses"))
    (finding,) = check_support([json_option("display", {"type": "dbus"}, origin="consoles")], without)
    assert (finding.code, finding.path) == ("unknown-display", "consoles")
    assert "apt-get install" in (finding.hint or "")
