"""Images that are made without qemu-img are what qemu-img makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hvcore import make_qcow2

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img to look at them with")

_L2 = 512 << 20
"""What one table of the second level covers."""


def _asked(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [0, 512, 1 << 20, _L2 - 512, _L2, _L2 + 512, 100 << 30, 5 << 40])
@pytest.mark.parametrize("before", [b"", b"x" * (1 << 20)], ids=["new", "over something"])
def test_it_is_whole_and_can_be_written(tmp_path: Path, size: int, before: bytes) -> None:
    """To its very end, whatever was there; nothing of that can be read, and nothing refers to a file of the host."""
    path = tmp_path / "disk.qcow2"
    path.write_bytes(before)
    fd = os.open(path, os.O_RDWR)
    try:
        make_qcow2(fd, size)
    finally:
        os.close(fd)
    found = json.loads(_asked("qemu-img", "info", "--output=json", "-f", "qcow2", str(path)))
    assert (found["virtual-size"], found["cluster-size"]) == (size, 65536)
    assert "backing-filename" not in found
    details = found["format-specific"]["data"]
    assert (details["compat"], details["corrupt"], details["refcount-bits"]) == ("1.1", False, 16)
    if size:
        last = size - 512
        commands = [f"read -P 0 {last} 512", f"write -P 7 {last} 512", f"read -P 7 {last} 512"]
        said = _asked("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), str(path))
        assert "verification failed" not in said
    # What was there before is in no cluster that is counted.
    _asked("qemu-img", "check", "-f", "qcow2", str(path))


def _made(path: Path, size: int, base: str | None = None) -> str:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        make_qcow2(fd, size, base)
    finally:
        os.close(fd)
    return str(path)


def test_it_names_what_it_is_on(tmp_path: Path) -> None:
    """With the format, so that nobody guesses it."""
    _made(tmp_path / "base", 1 << 20)
    image = _made(tmp_path / "image", 1 << 20, "base")
    found = json.loads(_asked("qemu-img", "info", "--output=json", image))
    assert (found["backing-filename"], found["backing-filename-format"]) == ("base", "qcow2")
    _asked("qemu-img", "check", image)


def test_the_largest_and_what_is_larger(tmp_path: Path) -> None:
    """What QEMU would not open is not written."""
    _asked("qemu-img", "check", _made(tmp_path / "largest", 2 << 50))
    with pytest.raises(ValueError, match="no room"):
        _made(tmp_path / "larger", (2 << 50) + 512)
