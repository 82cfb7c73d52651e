"""Console type spice: what every parameter does, asked of QEMU and seen as a client; what is refused; nothing left."""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import hvcore
from hvcore import Deadline, Severity
from hvcore_kvm.console.spice import SpiceConsole, SpiceParameters
from hvcore_kvm.qmp.client import connect_unix

pytestmark = pytest.mark.qemu

PATIENCE = 30.0
LOOPBACK6 = any(entry.address == "::1" for entry in psutil.net_if_addrs().get("lo", ()))


@pytest.fixture
def start(start_console: Callable[..., hvcore.Console]) -> Callable[..., hvcore.Console]:
    return functools.partial(start_console, "spice")


def _link(connection: socket.socket) -> int:
    """Ask for the main channel as a client does; returns the error code of the answer (spice-protocol, protocol.h)."""
    connection.settimeout(PATIENCE)
    message = struct.pack("<IBBIII", 0, 1, 0, 0, 0, 18)
    connection.sendall(b"REDQ" + struct.pack("<III", 2, 2, len(message)) + message)
    with connection.makefile("rb") as stream:
        magic, _, _, _, error = struct.unpack("<4sIIII", stream.read(20))
    assert magic == b"REDQ"
    return int(error)


def test_a_socket_of_its_own(host: Any, start: Any, ask: Any) -> None:
    """Without an address QEMU listens on a socket in the instance's directory; nobody is asked for a password."""
    console = start()
    assert (console.kind, console.address, console.port, console.tls) == ("spice", None, None, False)
    assert console.command == ("remote-viewer", f"spice+unix://{console.socket_path}")
    with connect_unix(console.socket_path, Deadline.after(PATIENCE)) as client:
        assert _link(client) == 0
    found = ask("query-spice")
    assert (found["auth"], found["enabled"]) == ("none", True)
    assert found["host"].endswith("/spice")
    assert ask("qom-get", path="/machine/peripheral/display0", property="type") == "qxl-vga"


def test_beside_vnc(host: Any, ask: Any) -> None:
    """An instance can have both."""
    host.driver.start_instance(host.instance(consoles=["vnc", "spice"]))
    paths = {host.driver.get_instance_console("web1", kind=kind).socket_path for kind in ("vnc", "spice")}
    assert len(paths) == 2
    assert all(Path(path).is_socket() for path in paths)
    assert ask("query-spice")["enabled"]
    assert ask("query-vnc")["enabled"]


ADDRESSES = [
    # bind_address, ip_version, address of a client
    ("127.0.0.1", "any", "127.0.0.1"),
    ("127.0.0.1", "ipv4", "127.0.0.1"),
    ("lo", "any", "127.0.0.1"),
    ("lo", "ipv4", "127.0.0.1"),
    *([("lo", "ipv6", "::1"), ("::1", "any", "::1"), ("::1", "ipv6", "::1")] if LOOPBACK6 else []),
]


@pytest.mark.parametrize(("bind", "version", "address"), ADDRESSES)
def test_an_address_or_an_interface(start: Any, ask: Any, port: int, bind: str, version: str, address: str) -> None:
    """QEMU listens where it is told to, and the console names the same."""
    console = start(bind_address=bind, port=port, ip_version=version)
    assert (console.address, console.port, console.authentication) == (address, port, "none")
    found = ask("query-spice")
    assert (found["host"], found["port"]) == (address, port)
    assert "tls-port" not in found
    with socket.create_connection((address, port), PATIENCE) as client:
        assert _link(client) == 0
    shown = f"[{address}]" if ":" in address else address
    assert console.command == ("remote-viewer", f"spice://{shown}:{port}")


def test_every_address(start: Any, port: int) -> None:
    """For the address that stands for all, the console names one that a client can connect to."""
    console = start(bind_address="0.0.0.0", port=port)
    assert console.address not in (None, "0.0.0.0")
    with socket.create_connection((console.address, port), PATIENCE) as client:
        assert _link(client) == 0


def test_a_password(host: Any, start: Any, ask: Any, port: int, password_file: Path) -> None:
    """QEMU asks for a ticket; the password is in no argument list and in no file of ours."""
    console = start(bind_address="127.0.0.1", port=port, password_file=str(password_file))
    assert console.authentication == "password"
    assert ask("query-spice")["auth"] == "spice"
    assert b"sesame" not in Path(f"/proc/{host.pid()}/cmdline").read_bytes()
    kept = [path for path in host.directory.rglob("*") if path.is_file() and path != password_file]
    assert not [path for path in kept if b"sesame" in path.read_bytes()]


def test_encryption(start: Any, ask: Any, port: int, certificates: Path) -> None:
    """With tls the server proves who it is, and takes nothing that is not encrypted."""
    console = start(bind_address="127.0.0.1", port=port, tls=True, x509_path=str(certificates))
    assert console.tls
    assert console.command == ("remote-viewer", f"spice://127.0.0.1?tls-port={port}")
    found = ask("query-spice")
    assert found["tls-port"] == port
    assert "port" not in found
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            assert _link(client) == 0


def test_ciphers(start: Any, port: int, certificates: Path) -> None:
    """A client gets one of the ciphers that are allowed, and no connection if it has none of them."""
    allowed = "ECDHE-ECDSA-AES256-GCM-SHA384"
    start(bind_address="127.0.0.1", port=port, tls=True, x509_path=str(certificates), tls_ciphers=allowed)
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            assert (client.cipher() or ("",))[0] == allowed
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("agent", [True, False])
def test_the_agents_channel(host: Any, start: Any, ask: Any, agent: bool) -> None:
    """The channel of the SPICE agent is there, or the mouse does without."""
    start(agent=agent)
    ports = {device["name"]: device["type"] for device in ask("qom-list", path="/machine/peripheral")}
    chardevs = {row["label"] for row in ask("query-chardev")}
    assert ("spice-agent0" in ports) is agent
    assert ("spice-agent" in chardevs) is agent
    if agent:
        name = ask("qom-get", path="/machine/peripheral/spice-agent0", property="name")
        assert name == "com.redhat.spice.0"


WORDS = [
    *(({"image_compression": value}, f"image-compression={value}") for value in ("auto_glz", "auto_lz", "quic")),
    *(({"image_compression": value}, f"image-compression={value}") for value in ("glz", "lz", "off")),
    *(({"jpeg_wan_compression": value}, f"jpeg-wan-compression={value}") for value in ("auto", "never", "always")),
    *(({"zlib_glz_wan_compression": v}, f"zlib-glz-wan-compression={v}") for v in ("auto", "never", "always")),
    *(({"streaming_video": value}, f"streaming-video={value}") for value in ("off", "all", "filter")),
    ({"playback_compression": False}, "playback-compression=off"),
    ({"playback_compression": True}, "playback-compression=on"),
    ({"seamless_migration": True}, "seamless-migration=on"),
    ({"agent": False}, "agent-mouse=off"),
]


def test_what_quality_is_told(host: Any) -> None:
    """QEMU is told, and does not say it again: there is no question for it; it takes each of them."""
    for spice, word in WORDS:
        plan = host.driver.plan_start(host.instance(consoles=["spice"], params={"spice": spice}))
        assert word in next(option.words[1] for option in plan.options if option.name == "spice").split(",")
    together = {name: value for spice, _ in WORDS for name, value in spice.items()}
    host.driver.start_instance(host.instance(consoles=["spice"], params={"spice": together}))


@pytest.mark.parametrize("option", ["image-compression", "jpeg-wan-compression", "streaming-video"])
def test_qemu_looks_at_what_it_is_told(tmp_path: Path, option: str) -> None:
    """What the test before leans on: a value that QEMU does not know is refused."""
    words = f"disable-ticketing=on,unix=on,addr={tmp_path}/s,{option}=no"
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-spice", words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "invalid" in done.stderr


BAD = [
    ({"bind_address": "no/where"}, {("invalid-value", "params.spice.bind_address")}),
    ({"bind_address": ""}, {("invalid-value", "params.spice.bind_address")}),
    ({"bind_address": "127.0.0.1"}, {("incomplete", "params.spice.port")}),
    ({"bind_address": "127.0.0.1", "port": 0}, {("invalid-value", "params.spice.port")}),
    ({"bind_address": "nosuch0", "port": 5901}, {("no-such-interface", "params.spice.bind_address")}),
    ({"bind_address": "::1", "port": 5901, "ip_version": "ipv4"}, {("contradiction", "params.spice.ip_version")}),
    ({"bind_address": "127.0.0.1", "port": 59, "ip_version": "ipv6"}, {("contradiction", "params.spice.ip_version")}),
    (
        {"port": 1, "ip_version": "ipv4", "tls": True, "x509_path": "/x", "tls_ciphers": "x", "password_file": "/x"},
        {
            ("incomplete", f"params.spice.{name}")
            for name in ("port", "ip_version", "tls", "x509_path", "tls_ciphers", "password_file")
        },
    ),
    ({"bind_address": "::1", "port": 5901, "tls": True}, {("incomplete", "params.spice.x509_path")}),
    (
        {"bind_address": "::1", "port": 5901, "tls_ciphers": "HIGH", "x509_path": "/x"},
        {("contradiction", "params.spice.tls_ciphers"), ("contradiction", "params.spice.x509_path")},
    ),
    (
        {
            "image_compression": "zip",
            "jpeg_wan_compression": "no",
            "zlib_glz_wan_compression": "",
            "streaming_video": "on",
        },
        {
            ("not-a-choice", f"params.spice.{name}")
            for name in ("image_compression", "jpeg_wan_compression", "zlib_glz_wan_compression", "streaming_video")
        },
    ),
    (
        {"playback_compression": "off", "agent": 0, "seamless_migration": None},
        {("wrong-type", f"params.spice.{name}") for name in ("playback_compression", "agent", "seamless_migration")},
    ),
    (
        {"bind_address": "::1", "port": 5901, "tls": True, "x509_path": "/nowhere", "password_file": "/nowhere"},
        {("file-unusable", "params.spice.x509_path"), ("file-unusable", "params.spice.password_file")},
    ),
]


@pytest.mark.parametrize(("spice", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, spice: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    """Everything wrong is found at once, before QEMU is started."""
    definition = host.instance(consoles=["serial", "spice"], params={"spice": spice})
    assert {(f.code, f.path) for f in host.driver.validate_parameters(definition)} == expected
    assert host.files() == set()


def test_a_value_adds_no_option(host: Any, certificates: Path) -> None:
    """A comma in a value stays in the value."""
    spice = {"bind_address": "127.0.0.1", "port": 5901, "tls": True, "x509_path": str(certificates)}
    definition = host.instance(consoles=["spice"], params={"spice": {**spice, "tls_ciphers": "A,port=1"}})
    (option,) = [option for option in host.driver.plan_start(definition).options if option.name == "spice"]
    assert option.value["tls-ciphers"] == "A,port=1"
    assert "tls-ciphers=A,,port=1" in option.words[1]


def test_advice() -> None:
    """What is legal but unwise is said."""
    instance = hvcore.Instance(name="web1")

    def advice(**spice: Any) -> set[tuple[str, Severity]]:
        return {(f.code, f.severity) for f in SpiceConsole().assess(instance, SpiceParameters(port=5901, **spice))}

    assert advice() == set()
    assert advice(bind_address="127.0.0.1") == set()
    assert advice(bind_address="::") == {("unencrypted", Severity.ADVICE), ("unprotected", Severity.WARNING)}
    assert advice(bind_address="0.0.0.0", tls=True, password_file="/x") == set()
