"""Disks are copied by command, and what has been written since is kept track of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.qemu

Hv = Callable[..., Any]


def test_a_backup_and_the_next_one(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """A directory is taken as the shell means it; each command says what it did, also for machines."""
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    disk = f'[[disks]]\npath = "{image}"\nformat = "qcow2"\n'
    text = instance_file.read_text()
    instance_file.write_text(text.replace("[params]", f"{disk}[params]"))
    started = hv("start", instance_file)
    assert started.returncode == 0, started.stderr
    (tmp_path / "to").mkdir()
    full = hv("backup", "web1", "--to", "to", "--checkpoint", "monday", cwd=tmp_path)
    assert full.returncode == 0, full.stderr
    found = next((tmp_path / "to").iterdir())
    uuid = found.name.removesuffix(".monday.qcow2")
    assert full.stdout == f"{uuid}: 1.0MiB of 1.0MiB copied to {found}\n"
    assert full.stderr == ""
    next_one = ["backup", "web1", "--to", "to", "--since", "monday", "--checkpoint", "tuesday", "--bandwidth", "1GiB"]
    taken = json.loads(hv(*next_one, "--disk", uuid, "--compress", "--json", cwd=tmp_path).stdout)
    assert (taken["mode"], taken["disks"][0]["base"], taken["compressed"]) == ("incremental", found.name, True)
    assert hv(*next_one, cwd=tmp_path).returncode == 2
    listed = hv("checkpoint", "list", "web1").stdout.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [[name, uuid, "0B", "yes"] for name in ("monday", "tuesday")]
    left = json.loads(hv("checkpoint", "delete", "web1", "monday", "--json").stdout)
    assert [row["name"] for row in left["checkpoints"]] == ["tuesday"]
    assert hv("checkpoint", "delete", "web1", "monday").returncode == 2


def test_an_empty_path_names_nothing(hv: Hv, tmp_path: Path) -> None:
    """As from a variable that is not set; it would be the current directory otherwise."""
    for words in (
        ("backup", "web1", "--to", ""),
        ("backup", "web1", "--to", "nbd://h/x", "--tls", ""),
        ("save", "web1", ""),
        ("restore", ""),
    ):
        done = hv(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert "it is empty" in done.stderr
