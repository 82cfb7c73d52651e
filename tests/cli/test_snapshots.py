"""Snapshots by command: taken, listed, gone back to, deleted, for people and for machines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.qemu

Hv = Callable[..., Any]


def test_there_and_back(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """What was taken is listed, and reverting says what the instance is afterwards."""
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    with instance_file.open("a") as file:
        file.write(f'\n[[disks]]\npath = "{disk}"\nformat = "qcow2"\n')
    assert hv("snapshot", "create", "web1", "still").returncode == 3
    assert hv("snapshot", "create", instance_file, "still").stdout == "web1: snapshot still of its disks\n"
    hv("start", instance_file)
    assert hv("snapshot", "create", "web1", "runs").stdout == "web1: snapshot runs of its disks and memory\n"
    taken = json.loads(hv("snapshot", "create", "web1", "disks", "--no-memory", "--json").stdout)
    assert (taken["name"], taken["memory"]) == ("disks", False)
    rows = [line.split() for line in hv("snapshot", "list", instance_file).stdout.splitlines()]
    assert [(row[0], row[3], row[4]) for row in rows[1:]] == [
        ("still", "stopped", "no"),
        ("runs", "running", "yes"),
        ("disks", "running", "no"),
    ]
    assert hv("snapshot", "revert", "web1", "runs").stdout == "web1: as it was in snapshot runs; now running\n"
    refused = hv("snapshot", "revert", "web1", "nosuch")
    assert refused.returncode == 2
    assert "it has still, runs, disks" in refused.stderr
    hv("stop", "web1", "--force")
    back = json.loads(hv("snapshot", "revert", "web1", "still", "--json").stdout)
    assert (back["before"], back["after"]) == ("stopped", "stopped")
    for name in ("still", "runs", "disks"):
        assert hv("snapshot", "delete", "web1", name).stdout == f"web1: snapshot {name} deleted\n"
    assert json.loads(hv("snapshot", "list", "web1", "--json").stdout) == {"snapshots": []}


def test_beside_the_images(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """A raw image is kept by an overlay, which is listed as what it is and goes with the snapshot."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    with instance_file.open("a") as file:
        file.write(f'\n[[disks]]\npath = "{disk}"\nformat = "raw"\n')
    hv("start", instance_file)
    refused = hv("snapshot", "create", "web1", "first")
    assert refused.returncode == 2
    assert "raw, which cannot hold a snapshot" in refused.stderr
    assert hv("snapshot", "create", "web1", "first", "--external").stdout == "web1: snapshot first of its disks\n"
    (row,) = hv("snapshot", "list", "web1").stdout.splitlines()[1:]
    assert row.split()[-3:] == ["no", "1", "external"]
    (told,) = json.loads(hv("snapshot", "list", "web1", "--json").stdout)["snapshots"]
    overlay = Path(told["disks"][0]["overlay"])
    assert (overlay.parent, told["external"]) == (tmp_path, True)
    assert overlay.exists()
    assert hv("snapshot", "delete", "web1", "first").stdout == "web1: snapshot first deleted\n"
    assert not overlay.exists()
