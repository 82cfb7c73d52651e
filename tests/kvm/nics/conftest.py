"""Networks for NIC modes: interfaces and namespaces of their own, gone at the end, and a Linux guest in them."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore.guests import LINUX_COMMAND_LINE, LINUX_PROMPT, LinuxGuest, build_linux_guest
from hvcore_kvm import tap_name

BOOT_PATIENCE = 120.0
"""Seconds after which a guest that should come up is taken not to."""


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def unique() -> str:
    """A name that nobody has, short enough for an interface."""
    return f"hvt{uuid.uuid4().hex[:8]}"


@attrs.define
class Network:
    """Makes parts of a network."""

    links: list[str] = attrs.field(factory=list)
    namespaces: list[str] = attrs.field(factory=list)
    # Addresses that no other test on this host has, out of those for benchmarks (RFC 2544, RFC 5180).
    net: int = attrs.field(factory=lambda: secrets.randbelow(2**13))

    def ip4(self, host: int) -> str:
        """One of fourteen."""
        return f"198.{18 + (self.net >> 12)}.{self.net >> 4 & 255}.{(self.net & 15) * 16 + host}"

    def ip6(self, host: int) -> str:
        return str(ipaddress.ip_address(f"2001:2:0:{self.net:x}::{host:x}"))

    def namespace(self) -> str:
        name = unique()
        run("ip", "netns", "add", name)
        self.namespaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def link(self, *words: str) -> str:
        """An interface; words as for ip link add."""
        name = unique()
        run("ip", "link", "add", name, *words)
        self.links.append(name)
        run("ip", "link", "set", name, "up")
        return name

    def cable(self, namespace: str, *addresses: str) -> str:
        """A pair of interfaces: one here, whose name this returns, and eth0 in a namespace, with addresses."""
        name = self.link("type", "veth", "peer", "name", "eth0", "netns", namespace)
        for address in addresses:
            run("ip", "-n", namespace, "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        return name

    def remove(self) -> None:
        for name in self.namespaces:
            run("ip", "netns", "del", name)
        for name in self.links:
            # The other end of a cable may have gone with its namespace.
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        assert not set(self.links) & set(os.listdir("/sys/class/net"))
        assert not set(self.namespaces) & set(run("ip", "netns", "list").split())


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.remove()


@pytest.fixture
def host(make_host: Callable[..., Any], network: Network) -> Any:
    """A host that is taken down before its network."""
    return make_host()


@pytest.fixture
def show() -> Callable[[str], dict[str, Any]]:
    """What ip shows of an interface."""

    def ask(name: str) -> dict[str, Any]:
        (found,) = json.loads(run("ip", "-d", "-j", "link", "show", name))
        return dict(found)

    return ask


@pytest.fixture
def tables() -> Callable[[hvcore.Nic], list[str]]:
    """The families in which a NIC has a table of nftables."""
    program = shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        pytest.skip("nftables is not installed")

    def ask(nic: hvcore.Nic) -> list[str]:
        rows = [row["table"] for row in json.loads(run(program, "-j", "list", "tables"))["nftables"] if "table" in row]
        return sorted(row["family"] for row in rows if row["name"] == tap_name(nic.uuid or ""))

    return ask


@pytest.fixture(scope="session")
def linux() -> LinuxGuest:
    """The Linux guest, built once and kept between sessions."""
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    return build_linux_guest(Path(cache) / "linux")


class Shell:
    """The shell of a running guest."""

    def __init__(self, console: Any) -> None:
        self._console = console
        console._socket.settimeout(BOOT_PATIENCE)
        console.expect(LINUX_PROMPT)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; returns its status and what it printed."""
        # The words are put together by the shell: its echo of the line, which the kernel may print into, is not needed.
        self._console.send(f'echo be""gins; {command}; echo st""atus=$?.\n'.encode())
        self._console.expect(b"begins\r\n")
        output = self._console.expect(b"status=")
        status = self._console.expect(b".")
        self._console.expect(LINUX_PROMPT)
        return int(status), output.decode(errors="replace")

    def ok(self, command: str) -> str:
        status, output = self.run(command)
        assert status == 0, f"{command}: {output}"
        return output

    def add_ip6(self, address: str) -> None:
        """Give it an IPv6 address that it uses at once, without asking whether another has it."""
        for name in ("all", "eth0"):
            self.ok(f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad")
        self.ok(f"ip -6 address add {address} dev eth0")

    def reaches(self, address: str, source: str = "eth0") -> bool:
        """Whether an answer comes from an address."""
        return self.run(f"ping -c 3 -W 5 -I {source} {address}")[0] == 0

    def silent(self, address: str, source: str = "eth0") -> bool:
        """Whether no answer comes, to two questions."""
        status, output = self.run(f"ping -c 2 -W 1 -I {source} {address}")
        return status != 0 and " 0 packets received" in output


@pytest.fixture
def boot(host: Any, linux: LinuxGuest) -> Callable[..., Shell]:
    """Starts a Linux guest with NICs and returns its shell."""

    def start(nics: list[hvcore.Nic], options: str = "", name: str = "web1", **params: Any) -> Shell:
        instance = hvcore.Instance(
            name=name,
            memory="128MiB",
            nics=nics,
            params={
                "machine": "pc",
                "accel": "tcg",
                "kernel": str(linux.kernel),
                "initrd": str(linux.initrd),
                "cmdline": f"{LINUX_COMMAND_LINE} {options}",
                **params,
            },
        )
        host.driver.start_instance(instance, paused=True)
        console = host.attach(name)
        host.driver.resume_instance(name)
        return Shell(console)

    return start


@pytest.fixture
def findings(host: Any) -> Callable[[hvcore.Nic], list[tuple[str, str]]]:
    """Code and path of everything that is wrong with a NIC."""

    def ask(nic: hvcore.Nic) -> list[tuple[str, str]]:
        return [(f.code, f.path) for f in host.driver.validate_parameters(host.instance(nics=[nic]))]

    return ask
