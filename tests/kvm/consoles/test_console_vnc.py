"""Console type vnc: what every parameter does, asked of QEMU and of a client's view; what is refused; nothing left."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import hvcore
from hvcore import Deadline, Severity
from hvcore_kvm.console.vnc import VncConsole, VncParameters
from hvcore_kvm.qmp.client import connect_unix

pytestmark = pytest.mark.qemu

PATIENCE = 30.0
LOOPBACK6 = any(entry.address == "::1" for entry in psutil.net_if_addrs().get("lo", ()))
SCREEN = (640, 480)
"""Size of the screen of a VGA that no guest has set up."""

NO_AUTH, VNC_AUTH, VENCRYPT = 1, 2, 19


class Rfb:
    """A VNC client, as far as the tests need one (RFC 6143, and VeNCrypt 0.2)."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self.socket = connection
        assert self.read(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB 003.008\n")
        self.security = set(self.read(self.read(1)[0]))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError(f"the server closed after {data!r}")
            data += part
        return data

    def choose(self, security: int) -> None:
        self.socket.sendall(bytes([security]))

    def vencrypt(self, context: ssl.SSLContext) -> int:
        """Begin TLS; returns the kind that the server offers."""
        self.choose(VENCRYPT)
        assert self.read(2) == b"\0\2"
        self.socket.sendall(b"\0\2")
        assert self.read(1) == b"\0"
        kinds = struct.unpack(f">{(count := self.read(1)[0])}I", self.read(4 * count))
        self.socket.sendall(struct.pack(">I", kinds[0]))
        assert self.read(1) == b"\1"
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        return int(kinds[0])

    def answer(self, password: bytes) -> None:
        """Answer the challenge of VNC authentication: DES with the bits of each byte of the key mirrored."""
        key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password[:8].ljust(8, b"\0"))
        command = ["openssl", "enc", "-des-ecb", "-K", key.hex(), "-nopad", "-provider", "legacy"]
        command += ["-provider", "default"]
        answer = subprocess.run(command, input=self.read(16), capture_output=True, check=True).stdout
        self.socket.sendall(answer)

    def result(self) -> bool:
        return self.read(4) == b"\0\0\0\0"

    def begin(self, *, shared: bool) -> tuple[int, int]:
        """Begin the session; returns the size of the screen."""
        self.socket.sendall(bytes([shared]))
        width, height, _, length = struct.unpack(">HH16sI", self.read(24))
        self.read(length)
        return int(width), int(height)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def dial(host: Any) -> Iterator[Callable[[hvcore.Console], Rfb]]:
    clients: list[Rfb] = []

    def connect(console: hvcore.Console) -> Rfb:
        if console.socket_path is not None:
            connection = connect_unix(console.socket_path, Deadline.after(PATIENCE))
        else:
            assert console.address is not None
            connection = socket.create_connection((console.address, console.port), PATIENCE)
        clients.append(Rfb(connection))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def start(start_console: Callable[..., hvcore.Console]) -> Callable[..., hvcore.Console]:
    return functools.partial(start_console, "vnc")


def _findings(host: Any, **vnc: Any) -> set[tuple[str, str]]:
    definition = host.instance(consoles=["serial", "vnc"], params={"vnc": vnc})
    return {(finding.code, finding.path) for finding in host.driver.validate_parameters(definition)}


def test_a_socket_of_its_own(dial: Any, start: Any, ask: Any) -> None:
    """Without an address QEMU listens on a socket in the instance's directory, and shows the guest's screen."""
    console = start()
    assert (console.kind, console.address, console.port, console.tls) == ("vnc", None, None, False)
    assert console.socket_path is not None
    assert console.command == ("vncviewer", console.socket_path)
    assert Path(console.socket_path).is_socket()
    client = dial(console)
    assert client.security == {NO_AUTH}
    client.choose(NO_AUTH)
    assert client.result()
    assert client.begin(shared=True) == SCREEN
    (display,) = ask("query-vnc-servers")
    assert [server["family"] for server in display["server"]] == ["unix"]
    assert len(ask("query-vnc")["clients"]) == 1


def test_a_socket_however_long_its_path(make_host: Any, tmp_path: Path) -> None:
    """The path of the instance's directory may be longer than that of a socket can be."""
    (tmp_path / "state").mkdir()
    long = tmp_path / ("d" * 100)
    host = make_host(state_directory=str(long))
    host.driver.start_instance(host.instance(consoles=["vnc"]))
    console = host.driver.get_instance_console("web1")
    assert console.socket_path is not None
    assert len(console.socket_path) > 108
    assert Path(console.socket_path).is_socket()


def test_the_sockets_directory_is_nobody_elses(start: Any) -> None:
    """Whoever QEMU runs as may make sockets there; the directory above lets nobody in."""
    console = start()
    assert console.socket_path is not None
    directory = Path(console.socket_path).parent
    assert directory.stat().st_mode & 0o777 == 0o733
    assert directory.parent.stat().st_mode & 0o077 == 0


ADDRESSES = [
    # bind_address, family QEMU names, address of a client
    ("127.0.0.1", "ipv4", "127.0.0.1"),
    ("127.0.0.2", "ipv4", "127.0.0.2"),
    ("lo", "ipv4", "127.0.0.1"),
    *([("::1", "ipv6", "::1")] if LOOPBACK6 else []),
]


@pytest.mark.parametrize(("bind", "family", "address"), ADDRESSES)
def test_an_address_or_an_interface(
    host: Any, dial: Any, port: int, bind: str, family: str, address: str, start: Any, ask: Any
) -> None:
    """QEMU listens where it is told to, and the console names the same."""
    console = start(bind_address=bind, port=port)
    (display,) = ask("query-vnc-servers")
    (server,) = display["server"]
    assert (server["family"], server["host"], server["service"]) == (family, address, str(port))
    assert (console.address, console.port, console.authentication) == (address, port, "none")
    assert dial(console).security == {NO_AUTH}


def test_every_address(host: Any, dial: Any, port: int, start: Any, ask: Any) -> None:
    """For the address that stands for all, the console names one that a client can connect to."""
    console = start(bind_address="0.0.0.0", port=port)
    (display,) = ask("query-vnc-servers")
    assert display["server"][0]["host"] == "0.0.0.0"
    assert console.address not in (None, "0.0.0.0")
    assert dial(console).security == {NO_AUTH}


def test_a_websocket(port: int, start: Any, ask: Any, free_port: Any) -> None:
    """A second port takes clients in browsers."""
    websocket = free_port()
    start(bind_address="127.0.0.1", port=port, websocket=websocket)
    (display,) = ask("query-vnc-servers")
    servers = {(server["service"], server["websocket"]) for server in display["server"]}
    assert servers == {(str(port), False), (str(websocket), True)}
    with socket.create_connection(("127.0.0.1", websocket), PATIENCE) as browser:
        browser.settimeout(PATIENCE)
        lines = ["GET / HTTP/1.1", "Host: h", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: binary", "", ""]
        browser.sendall("\r\n".join(lines).encode())
        with browser.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 101 ")


def test_a_password(host: Any, dial: Any, port: int, password_file: Path, start: Any, ask: Any) -> None:
    """A client with the password is let in, one with another is not; the password is in no argument list."""
    console = start(bind_address="127.0.0.1", port=port, password_file=str(password_file))
    assert console.authentication == "password"
    for password, good in ((b"sesame", True), (b"simsim", False)):
        client = dial(console)
        assert client.security == {VNC_AUTH}
        client.choose(VNC_AUTH)
        client.answer(password)
        assert client.result() is good
    assert b"sesame" not in Path(f"/proc/{host.pid()}/cmdline").read_bytes()
    assert ask("query-vnc")["auth"] == "vnc"
    kept = [path for path in host.directory.rglob("*") if path.is_file() and path != password_file]
    assert not [path for path in kept if b"sesame" in path.read_bytes()]


def _lets_in(client: Rfb, password: bytes) -> bool:
    client.choose(VNC_AUTH)
    client.answer(password)
    return client.result()


def test_a_password_is_changed_while_it_runs(host: Any, dial: Any, port: int, password_file: Path, start: Any) -> None:
    """The new one lets in and the old one does not; an empty one and one that has expired let nobody in."""
    console = start(bind_address="127.0.0.1", port=port, password_file=str(password_file))
    assert _lets_in(dial(console), b"sesame")
    host.driver.set_console_password("web1", "vnc", "simsim")
    assert not _lets_in(dial(console), b"sesame")
    assert _lets_in(dial(console), b"simsim")
    host.driver.set_console_password("web1", "vnc", "")
    assert not _lets_in(dial(console), b"")
    assert not _lets_in(dial(console), b"simsim")
    host.driver.set_console_password("web1", "vnc", "again", expires=3600)
    assert _lets_in(dial(console), b"again")
    host.driver.set_console_password("web1", "vnc", "again", expires=0)
    assert not _lets_in(dial(console), b"again")


def test_encryption_without_certificates(dial: Any, port: int, start: Any, ask: Any) -> None:
    """With tls anon QEMU offers nothing that is not encrypted."""
    console = start(bind_address="127.0.0.1", port=port, tls="anon")
    assert console.tls
    assert dial(console).security == {VENCRYPT}
    assert ask("query-vnc")["auth"] == "vencrypt+tls+none"
    assert ask("qom-get", path="/objects/vnc-tls", property="endpoint") == "server"


def test_encryption_with_certificates(dial: Any, port: int, certificates: Path, start: Any, ask: Any) -> None:
    """With tls x509 the server proves who it is."""
    console = start(bind_address="127.0.0.1", port=port, tls="x509", x509_path=str(certificates))
    assert (console.tls, console.authentication) == (True, "none")
    client = dial(console)
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    assert client.vencrypt(context) == 260  # X509None
    assert client.result()
    assert client.begin(shared=True) == SCREEN
    assert ask("query-vnc")["auth"] == "vencrypt+x509+none"


def test_clients_with_certificates(dial: Any, port: int, certificates: Path, start: Any, ask: Any) -> None:
    """With x509_verify a client without a certificate is not let in; one with it is."""
    vnc = {"bind_address": "127.0.0.1", "port": port, "tls": "x509", "x509_path": str(certificates)}
    console = start(**vnc, x509_verify=True)
    assert console.authentication == "x509"
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    # In 1.3 the server would say no only after the client has gone on.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        client = dial(console)
        client.vencrypt(context)
        client.result()
    context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
    client = dial(console)
    client.vencrypt(context)
    assert client.result()
    assert ask("qom-get", path="/objects/vnc-tls", property="verify-peer") is True


def _enter(client: Rfb, *, shared: bool) -> None:
    client.choose(NO_AUTH)
    assert client.result()
    client.begin(shared=shared)


def _is_connected(client: Rfb) -> bool:
    """Whether the server answers a question for a pixel, or has closed."""
    try:
        client.socket.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1))
        return client.read(1) == b"\0"
    except (EOFError, ConnectionError):
        return False


@pytest.mark.parametrize(
    ("share", "first", "second"),
    [("allow-exclusive", False, True), ("force-shared", True, False), ("ignore", True, True)],
)
def test_sharing(dial: Any, share: str, first: bool, second: bool, start: Any) -> None:
    """What becomes of a client and of a second one that asks to be alone."""
    console = start(share=share)
    one, two = dial(console), dial(console)
    _enter(one, shared=True)
    try:
        _enter(two, shared=False)
        alive = _is_connected(two)
    except (EOFError, ConnectionError):
        alive = False
    assert alive is second
    assert _is_connected(one) is first


@pytest.mark.parametrize("power_control", [True, False])
def test_power_control(dial: Any, power_control: bool, start: Any) -> None:
    """A client is told that it may switch the guest off, or it is not."""
    client = dial(start(power_control=power_control))
    _enter(client, shared=True)
    client.socket.sendall(struct.pack(">BxHi", 2, 1, -309))  # encodings: xvp
    client.socket.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1))
    assert client.read(1) == (b"\xfa" if power_control else b"\0")


def test_lossy(host: Any, start: Any) -> None:
    """QEMU is told whether it may lose some of the picture."""
    for lossy, words in ((True, "lossy=on"), (False, "lossy=off")):
        plan = host.driver.plan_start(host.instance(consoles=["vnc"], params={"vnc": {"lossy": lossy}}))
        assert words in next(option.words[1] for option in plan.options if option.name == "vnc").split(",")
    start(lossy=True)


BAD = [
    ({"bind_address": "no/where"}, {("invalid-value", "params.vnc.bind_address")}),
    ({"bind_address": "a b"}, {("invalid-value", "params.vnc.bind_address")}),
    ({"bind_address": ""}, {("invalid-value", "params.vnc.bind_address")}),
    ({"bind_address": "127.0.0.1"}, {("incomplete", "params.vnc.port")}),
    ({"bind_address": "127.0.0.1", "port": 5899}, {("invalid-value", "params.vnc.port")}),
    ({"bind_address": "127.0.0.1", "port": 65536}, {("invalid-value", "params.vnc.port")}),
    ({"bind_address": "127.0.0.1", "port": 5901, "websocket": 5901}, {("repeated-value", "params.vnc.websocket")}),
    ({"bind_address": "nosuch0", "port": 5901}, {("no-such-interface", "params.vnc.bind_address")}),
    (
        {"port": 5901, "websocket": 5801, "tls": "x509", "x509_path": "/x", "x509_verify": True, "password_file": "/x"},
        {
            ("incomplete", f"params.vnc.{name}")
            for name in ("port", "websocket", "tls", "x509_path", "x509_verify", "password_file")
        },
    ),
    (
        {"bind_address": "::1", "port": 5901, "tls": "x509", "x509_verify": True},
        {("incomplete", "params.vnc.x509_path"), ("incomplete", "params.vnc.x509_verify")},
    ),
    (
        {"bind_address": "::1", "port": 5901, "tls": "anon", "x509_verify": True, "x509_path": "/x"},
        {("contradiction", "params.vnc.x509_path"), ("contradiction", "params.vnc.x509_verify")},
    ),
    ({"tls": "yes", "share": "alone"}, {("not-a-choice", "params.vnc.tls"), ("not-a-choice", "params.vnc.share")}),
    ({"lossy": 1, "power_control": "on"}, {("wrong-type", f"params.vnc.{n}") for n in ("lossy", "power_control")}),
    ({"bind": "::1"}, {("unknown-parameter", "params.vnc.bind")}),
    (
        {"bind_address": "::1", "port": 5901, "tls": "x509", "x509_path": "/nowhere", "password_file": "/nowhere"},
        {("file-unusable", "params.vnc.x509_path"), ("file-unusable", "params.vnc.password_file")},
    ),
]


@pytest.mark.parametrize(("vnc", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, vnc: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    """Everything wrong is found at once, before QEMU is started."""
    assert _findings(host, **vnc) == expected
    assert host.files() == set()


def test_each_missing_certificate_is_named(host: Any, tmp_path: Path) -> None:
    """One finding for each file, not for the first."""
    (tmp_path / "ca-cert.pem").write_text("")
    vnc = {"bind_address": "::1", "port": 5901, "tls": "x509", "x509_path": str(tmp_path)}
    found = host.driver.validate_parameters(host.instance(consoles=["vnc"], params={"vnc": vnc}))
    assert ["server-cert.pem" in found[0].message, "server-key.pem" in found[1].message] == [True, True]


def test_a_password_file_of_two_lines(host: Any, password_file: Path, port: int) -> None:
    """Found before QEMU is started; what it holds is not said."""
    password_file.write_text("sesame\nsimsim\n")
    vnc = {"bind_address": "127.0.0.1", "port": port, "password_file": str(password_file)}
    with pytest.raises(hvcore.HypervisorError, match="one line") as caught:
        host.driver.start_instance(host.instance(consoles=["vnc"], params={"vnc": vnc}))
    assert "sesame" not in str(caught.value)
    assert host.files() == set()


def test_a_port_that_is_taken(host: Any, start: Any) -> None:
    """A start on a port of somebody else fails with QEMU's words, and nothing is left."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(hvcore.SpawnFailed, match="Address already in use"):
            start(bind_address="127.0.0.1", port=other.getsockname()[1])
    assert host.files() == set()


def test_advice(tmp_path: Path) -> None:
    """What is legal but unwise is said: no encryption, no protection, a password that is longer than it counts."""
    instance = hvcore.Instance(name="web1")
    long = tmp_path / "long"
    long.write_text("abcdefghi\n")

    def advice(**vnc: Any) -> set[tuple[str, Severity]]:
        return {(f.code, f.severity) for f in VncConsole().assess(instance, VncParameters(port=5901, **vnc))}

    assert advice() == set()
    assert advice(bind_address="127.0.0.1") == set()
    assert advice(bind_address="0.0.0.0") == {
        ("unencrypted", Severity.ADVICE),
        ("unprotected", Severity.WARNING),
    }
    assert advice(bind_address="127.0.0.1", password_file=str(long)) == {("ineffective", Severity.ADVICE)}
    long.write_text("abcdefgh\n")
    assert advice(bind_address="127.0.0.1", password_file=str(long)) == set()


def test_nothing_is_left(host: Any, start: Any) -> None:
    """The sockets go with the instance, also when it is restarted."""
    start()
    host.driver.reboot_instance("web1", mode="hard")
    console = host.driver.get_instance_console("web1", kind="vnc")
    assert os.path.exists(console.socket_path)
    host.driver.stop_instance("web1", force=True)
    assert not [path for path in host.files() if path.startswith("state")]
