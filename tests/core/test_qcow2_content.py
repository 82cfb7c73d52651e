"""What is read from an image is what qemu-io has written to it, and what cannot be read is said."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hvcore import make_qcow2, read_qcow2

_TOOLS = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img to make images with")
BLOCK = 1 << 16
SIZE = (3 << 20) + 512


def _made(path: Path, *words: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, str(path), str(SIZE)], check=True)
    return path


def _io(path: Path, *commands: str) -> None:
    given = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *given, str(path)], check=True, capture_output=True)


@_TOOLS
@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M"])
def test_what_was_written_is_read(tmp_path: Path, options: str) -> None:
    """Of any size of clusters, on top of another image with another; zeros hide what is below."""
    base = _made(tmp_path / "base.qcow2")
    _io(base, "write -P 1 0 3M")
    path = _made(tmp_path / "top.qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2")
    _io(path, "write -P 2 65000 2000", "write -z 1M 512k", f"write -P 3 {SIZE - 512} 512")
    wanted = bytearray(b"\x01" * (3 << 20) + b"\x03" * 512)
    wanted[65000:67000] = b"\x02" * 2000
    wanted[1 << 20 : 3 << 19] = bytes(1 << 19)
    size, blocks = read_qcow2(str(path))
    assert size == SIZE
    assert {16, 17} & blocks.keys() == set()
    found = b"".join(blocks.get(number, b"").ljust(BLOCK, b"\0") for number in range(-(-SIZE // BLOCK)))
    assert found[:SIZE] == bytes(wanted)
    assert len(blocks[SIZE // BLOCK]) == 512


@_TOOLS
@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k", "cluster_size=2M"])
def test_what_is_compressed_is_read(tmp_path: Path, options: str) -> None:
    """Beside what could not be made smaller; a cluster that is damaged is said."""
    raw, path = tmp_path / "raw", tmp_path / "compressed.qcow2"
    content = b"".join(bytes([number]) * BLOCK if number % 3 else os.urandom(BLOCK) for number in range(48))
    raw.write_bytes(content)
    convert = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, str(raw), str(path)]
    subprocess.run(convert, check=True)
    assert path.stat().st_size < len(content) * 3 // 4 or "2M" in options
    size, blocks = read_qcow2(str(path))
    found = b"".join(blocks.get(number, b"").ljust(BLOCK, b"\0") for number in range(48))
    assert (size, found) == (len(content), content)


@_TOOLS
def test_a_compressed_cluster_that_is_damaged_is_said(tmp_path: Path) -> None:
    """It is not read as something else."""
    raw, path = tmp_path / "raw", tmp_path / "compressed.qcow2"
    raw.write_bytes(b"\x07" * BLOCK)
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    table = struct.unpack(">Q", path.read_bytes()[40:48])[0]
    second = struct.unpack_from(">Q", path.read_bytes(), table)[0] & 0x00FFFFFFFFFFFE00
    at = struct.unpack_from(">Q", path.read_bytes(), second)[0] & ((1 << 54) - 1)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 16)
    with pytest.raises(ValueError, match="damaged"):
        read_qcow2(str(path))


@_TOOLS
def test_zstd_is_refused(tmp_path: Path) -> None:
    """It is said, and not read as something else."""
    path = _made(tmp_path / "disk.qcow2", "-o", "compression_type=zstd")
    with pytest.raises(ValueError, match="features"):
        read_qcow2(str(path))


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"x" * 200, b"QFI\xfb" + bytes(200)])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever it is."""
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="qcow2 image"):
        read_qcow2(str(path))


@pytest.mark.parametrize("base", ["top.qcow2", "../secret"])
def test_what_it_is_on_is_beside_it_and_comes_to_an_end(tmp_path: Path, base: str) -> None:
    """Neither itself nor a file elsewhere."""
    path = tmp_path / "top.qcow2"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        make_qcow2(fd, 1 << 20, base)
    finally:
        os.close(fd)
    with pytest.raises(ValueError, match="is on"):
        read_qcow2(str(path))


def test_a_table_that_is_cut_short_is_said(tmp_path: Path) -> None:
    """It is damaged."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        make_qcow2(file.fileno(), 1 << 20)
        file.truncate(3 * BLOCK)
    with pytest.raises(ValueError, match="damaged"):
        read_qcow2(str(path))
