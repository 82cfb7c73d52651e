"""The whole of what QEMU and the host have."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient


class Whole:
    """Everything an instance has in QEMU and on the host, to be compared before and after."""

    def __init__(self, host: Any) -> None:
        directory = host.directory / "state/kvm/instances/web1"
        with QmpClient.connect(str(directory / "query"), Deadline.after(30)) as client:

            def ask(command: str, **arguments: Any) -> Any:
                given = {name.replace("_", "-"): value for name, value in arguments.items()}
                return client.execute(command, given, deadline=Deadline.after(30))

            def names(path: str) -> list[str]:
                return sorted(row["name"] for row in ask("qom-list", path=path))

            self.devices = names("/machine/peripheral")
            self.objects = names("/objects")
            self.chardevs = sorted(row["label"] for row in ask("query-chardev"))
            self.nodes = sorted(row["node-name"] for row in ask("query-named-block-nodes", flat=True))
            self.sets = sorted(row["fdset-id"] for row in ask("query-fdsets"))
        self.files = [name.partition(":[")[0] for name in host.open_files()]
        # How many connections and timers there are at this moment is QEMU's business.
        self.files = sorted(name for name in self.files if name not in ("socket", "anon_inode"))
        # Those it has open; others on the host are those of other tests.
        self.taps = []
        for info in Path(f"/proc/{host.pid()}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                self.taps += [line.split()[1] for line in info.read_text().splitlines() if line.startswith("iff:")]
        read = json.loads((directory / "record.json").read_text())
        self.record = read["instance"]
        self.rest = sorted(entry for entry in os.listdir(directory) if entry != "companions")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whole) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return json.dumps(vars(self), indent=1)


@pytest.fixture
def whole(host: Any) -> Callable[[], Whole]:
    return lambda: Whole(host)


@pytest.fixture
def address(own_number: int) -> Callable[[int], str]:
    """Addresses of a network that no other test process on this host has: the first is the bridge's."""
    network = ipaddress.ip_network((int(ipaddress.ip_address("198.51.100.0")) + 4 * own_number, 30))
    return lambda number: str(network[number])


@pytest.fixture
def bridge(address: Callable[[int], str]) -> Iterator[str]:
    """A bridge of the host with an address."""
    ip = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    name = f"hb{os.getpid()}"
    if ip is None or os.geteuid() != 0:
        pytest.skip("this user cannot make a bridge")
    subprocess.run([ip, "link", "add", "name", name, "type", "bridge"], check=True)
    try:
        subprocess.run([ip, "address", "add", f"{address(1)}/30", "dev", name], check=True)
        subprocess.run([ip, "link", "set", name, "up"], check=True)
        yield name
    finally:
        subprocess.run([ip, "link", "delete", name], check=True)
