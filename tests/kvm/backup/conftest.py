"""Disks that are written as a guest does it, with a memory of what must be on them."""

from __future__ import annotations

import functools
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore_kvm.qmp import QmpClient

DISK = 8 << 20
"""Bytes of each disk."""

_BLOCK = 4096


@attrs.define
class Written:
    """An instance whose disks are written through their devices, and what is on them."""

    host: Any
    disks: tuple[hvcore.Disk, ...]
    name: str = "web1"
    content: list[bytearray] = attrs.field(factory=list)
    size: int = DISK

    def ask(self, command: str, **arguments: Any) -> Any:
        """Have QEMU carry out a command."""
        path = str(self.host.directory / "state" / "kvm" / "instances" / self.name / "query")
        deadline = hvcore.Deadline.after(30)
        with QmpClient.connect(path, deadline) as client:
            return client.execute(command.replace("_", "-"), arguments, deadline=deadline)

    def write(self, index: int, offset: int, count: int, value: int) -> None:
        """Write a value over blocks of a disk, as its device does; 0 is a discard."""
        device = self._devices()[index]
        operation = f"write -P {value}" if value else "discard"
        self.ask("human_monitor_command", **{"command-line": f'qemu-io -d {device} "{operation} {offset} {count}"'})
        # What it has to say goes to its standard output.
        output = self.host.directory / "state" / "kvm" / "instances" / self.name / "stderr"
        assert "failed" not in output.read_text()
        self.content[index][offset : offset + count] = bytes([value]) * count

    def scribble(self, seed: int, count: int = 12) -> None:
        """Write here and there on all disks, the same for the same seed."""
        source = random.Random(seed)
        for index in range(len(self.disks)):
            for _ in range(count):
                blocks = source.randrange(1, 48)
                offset = source.randrange(0, DISK // _BLOCK - blocks) * _BLOCK
                self.write(index, offset, blocks * _BLOCK, source.randrange(1, 255))

    def uuids(self) -> list[str]:
        """Identities of the disks."""
        return [row.uuid for row in self.host.driver.get_instance_info(self.name).devices if row.kind == "disk"]

    def nodes(self) -> list[dict[str, Any]]:
        """The block nodes QEMU has."""
        found: list[dict[str, Any]] = self.ask("query_named_block_nodes", flat=True)
        return found

    def nothing_left(self) -> None:
        """Prove that nothing of a backup is in QEMU."""
        assert [row["node-name"] for row in self.nodes() if row["node-name"].startswith("hvcore-")] == []
        assert self.ask("query_jobs") == []
        assert [
            row for row in self.ask("query_fdsets") if any("backup" in fd.get("opaque", "") for fd in row["fds"])
        ] == []
        bitmaps = [bitmap["name"] for row in self.nodes() for bitmap in row.get("dirty-bitmaps", ())]
        assert [name for name in bitmaps if not name.startswith("hvcore:")] == []
        assert not (self.host.directory / "state" / "kvm" / "instances" / self.name / "backup.json").exists()

    def whole(self, path: str | Path) -> bytes:
        """What a disk holds that is restored from the file of a backup, with those it is on."""
        raw = self.host.directory / "restored.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
        try:
            return raw.read_bytes()
        finally:
            os.unlink(raw)

    def _devices(self) -> list[str]:
        places = [str(row.get("qdev", "")) for row in self.ask("query_block")]
        return [next(place for place in places if f"disk-{uuid[:8]}" in place) for uuid in self.uuids()]


@pytest.fixture
def write_on() -> Callable[..., Written]:
    """Starts an instance on a host, with disks to be written."""

    def start(host: Any, *disks: hvcore.Disk, **changes: Any) -> Written:
        host.start(host.instance(disks=list(disks), **changes))
        return Written(host, disks, content=[bytearray(DISK) for _ in disks])

    return start


@pytest.fixture
def written(host: Any, write_on: Callable[..., Written]) -> Callable[..., Written]:
    """The same on the host there is."""
    return functools.partial(write_on, host)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for backups."""
    found = tmp_path / "backups"
    found.mkdir()
    return found
