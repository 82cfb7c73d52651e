"""``hv migrate`` with real QEMUs, encrypted with what ``hv tls init`` has made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.qemu

Hv = Callable[..., Any]


def test_there_and_back(hv: Hv, instance_file: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """It runs on one of two hosts, and is measured; certificates of another authority move nothing."""
    other = {f"HV_{kind.upper()}_DIRECTORY": str(tmp_path / "o" / kind) for kind in ("state", "data", "cache")}

    def words(where: dict[str, str]) -> str:
        own = [f"{name}={where[name]}" for name in other]
        return " ".join(["exec:env", *own, sys.executable, "-m", "hvcore.cli"])

    def there(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hvcore.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **other}, timeout=120)

    for name in ("pki", "foreign"):
        assert hv("tls", "init", tmp_path / name, "--host", "127.0.0.1").returncode == 0
        policy = f'[tls]\ndirectory = "{tmp_path}/{name}/127.0.0.1"\n'
        (tmp_path / f"{name}.toml").write_text(policy)
    mixed = tmp_path / "mixed" / "127.0.0.1"
    mixed.mkdir(parents=True)
    for kind in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
        place = "foreign" if kind.startswith("client") else "pki"
        os.symlink(tmp_path / place / "127.0.0.1" / f"{kind}.pem", mixed / f"{kind}.pem")
    (tmp_path / "mixed.toml").write_text(f'[tls]\ndirectory = "{mixed}"\n')
    hv("start", instance_file)
    before = json.loads(hv("info", "web1", "--json").stdout)
    try:
        refused = hv("migrate", "web1", "--to", words(other), "--policy", tmp_path / "mixed.toml")
        assert refused.returncode != 0
        assert json.loads(hv("info", "web1", "--json").stdout)["pid"] == before["pid"]
        assert json.loads(there("list", "--json").stdout) == {"instances": []}
        done = hv("migrate", "web1", "--to", words(other), "--policy", tmp_path / "pki.toml", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["downtime"] > 0
        info = json.loads(there("info", "web1", "--json").stdout)
        assert (info["state"], info["uuid"]) == ("running", before["uuid"])
        assert json.loads(hv("list", "--json").stdout) == {"instances": []}
        back = there("migrate", "web1", "--to", words(environment), "--policy", str(tmp_path / "pki.toml"))
        assert back.returncode == 0, back.stderr
        assert "web1: moved to env; took " in back.stdout
        assert json.loads(hv("info", "web1", "--json").stdout)["state"] == "running"
    finally:
        there("stop", "web1", "--force")
        there("cleanup", "web1")
    assert json.loads(there("list", "--json").stdout) == {"instances": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a host other files")
def test_it_takes_its_disks_along(hv: Hv, instance_file: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """The disk is made on the other host, and how far that is is told; a host that has it already refuses."""
    other = {f"HV_{kind.upper()}_DIRECTORY": str(tmp_path / "o" / kind) for kind in ("state", "data", "cache")}
    disks, theirs = tmp_path / "disks", tmp_path / "theirs"
    for path in (disks, theirs):
        path.mkdir()
    content = os.urandom(1 << 20)
    (disks / "a.raw").write_bytes(content)
    with instance_file.open("a") as file:
        file.write(f'\n[[disks]]\npath = "{disks}/a.raw"\nformat = "raw"\n')
    script = tmp_path / "there"
    own = " ".join(f"{name}={value}" for name, value in other.items())
    script.write_text(f'mount --bind {theirs} {disks} && exec env {own} {sys.executable} -m hvcore.cli "$@"\n')
    to = f"exec:unshare --mount sh {script}"

    def there(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hvcore.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **other}, timeout=120)

    hv("start", instance_file)
    (theirs / "a.raw").write_bytes(b"precious")
    options = ("migrate", "web1", "--to", to, "--no-tls", "--copy-disk", "all")
    try:
        refused = hv(*options)
        assert refused.returncode != 0
        assert f"{disks}/a.raw is there already on the destination" in refused.stderr
        assert "disk-exists" in refused.stderr
        done = hv(*options, "--overwrite-disks")
        assert done.returncode == 0, done.stderr
        assert "web1: disks, " in done.stderr
        assert json.loads(there("info", "web1", "--json").stdout)["state"] == "running"
    finally:
        there("stop", "web1", "--force")
        there("cleanup", "web1")
    assert (theirs / "a.raw").read_bytes() == content
    assert (disks / "a.raw").read_bytes() == content
