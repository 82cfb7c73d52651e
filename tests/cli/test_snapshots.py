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
