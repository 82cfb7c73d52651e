"""The benchmarks run; what they measure is for people to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.libvirt_domain import lacking

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.qemu
def test_the_benchmarks_run() -> None:
    """Each row has a name, a number and its unit; no number is judged."""
    command = [sys.executable, "-W", "error", "-m", "tests.bench", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    names = " ".join(row["name"] for row in rows)
    for word in (
        "start to running",
        "forced stop",
        "list of",
        "full info",
        "migration",
        "three extensions",
        "import",
        "hv list",
    ):
        assert word in names
    for row in rows:
        assert isinstance(row["value"], float)
        assert row["unit"]
        assert (row["ratio"] is None) == (row["reference"] is None)


@pytest.mark.qemu
@pytest.mark.linux
def test_libvirt_does_the_same() -> None:
    """Attaching and detaching are measured on both sides, in one run."""
    if lack := lacking():
        pytest.skip(lack)
    command = [sys.executable, "-W", "error", "-m", "tests.bench", "--quick", "--json", "--libvirt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"].split(",")[0] for row in rows] == [
        "attach a disk",
        "detach a disk",
        "attach a NIC",
        "detach a NIC",
    ]
    assert all(row["value"] > 0 and row["reference"] > 0 for row in rows)
