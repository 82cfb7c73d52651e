"""An image that is written without QEMU is what QEMU's own tools make and accept."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from hvcore_kvm.backup.empty_image import write_empty_image

pytestmark = pytest.mark.qemu


def _made(path: Path, size: int, base: str | None = None) -> str:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        write_empty_image(fd, size, base)
    finally:
        os.close(fd)
    return str(path)


@pytest.mark.parametrize("size", [512, 65536, 8 << 20, (512 << 20) + 512, 3 << 40, 2 << 50])
def test_it_is_whole_and_can_be_written(tmp_path: Path, size: int) -> None:
    """It has no errors, is of that size, reads as zeros, and takes what is written at both ends."""
    image = _made(tmp_path / "image", size)
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    found = json.loads(subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True).stdout)
    assert (found["virtual-size"], found["format"], found["cluster-size"]) == (size, "qcow2", 65536)
    assert "backing-filename" not in found
    ends = [f"{what} {offset} 512" for offset in {0, size - 512} for what in ("read -P 0", "write -P 5", "read -P 5")]
    words = [word for end in ends for word in ("-c", end)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *words, image], capture_output=True, text=True, check=True)
    assert "failed" not in done.stdout
    subprocess.run(["qemu-img", "check", "-q", image], check=True)


def test_it_names_what_it_is_on(tmp_path: Path) -> None:
    """With the format, so that nobody guesses it."""
    _made(tmp_path / "base", 1 << 20)
    image = _made(tmp_path / "image", 1 << 20, "base")
    found = json.loads(subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True).stdout)
    assert (found["backing-filename"], found["backing-filename-format"]) == ("base", "qcow2")
    subprocess.run(["qemu-img", "check", "-q", image], check=True)


def test_too_large(tmp_path: Path) -> None:
    """What QEMU would not open is not written."""
    with pytest.raises(ValueError, match="no room"):
        _made(tmp_path / "image", 1 << 62)
