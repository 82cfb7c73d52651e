"""The tokens a firmware guest writes to its disk: whether somebody else has written is known for certain."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore import guests


def _accelerators() -> list[Any]:
    kvm = [pytest.param("kvm", marks=pytest.mark.kvm)] if os.access("/dev/kvm", os.R_OK | os.W_OK) else []
    return ["tcg", *kvm]


pytestmark = [pytest.mark.qemu, pytest.mark.parametrize("accelerator", _accelerators())]

DISK = 64 << 10


@pytest.fixture
def boot(
    start_guest: Callable[[list[str]], Any], firmware: Path, tmp_path: Path, accelerator: str
) -> Callable[[], Any]:
    """Boots a guest with the disk that all of them share; nobody locks it."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(DISK))
    drive = f"if=ide,format=raw,file.driver=file,file.locking=off,file.filename={disk}"

    def start() -> Any:
        machine = ["-machine", "pc", "-accel", accelerator, "-m", "32"]
        guest = start_guest([*machine, "-bios", str(firmware), "-drive", drive])
        guest.until(guests.FIRMWARE_READY_MARKER)
        return guest

    return start


def _write(guest: Any) -> None:
    guest.send("w")
    guest.until("ok\r\n")


def test_each_is_one_more(boot: Callable[[], Any], tmp_path: Path) -> None:
    """A guest that begins later goes on from the token that is there."""
    last = 0
    for _ in range(2):
        guest = boot()
        before = last
        while last < before + 20:
            _write(guest)
            last = guest.ask("W", "token=")
        guest.stop()
        content = (tmp_path / "disk").read_bytes()
        assert struct.unpack_from("<I", content) == (last,)
        assert content[4:] == bytes(DISK - 4)


def test_a_second_writer_is_noticed(boot: Callable[[], Any], tmp_path: Path) -> None:
    """The one who notices says so, writes down what it found, and writes no more."""
    first, second = boot(), boot()
    _write(first)
    _write(second)
    noticed = {"first": first, "second": second}
    serials = {guest.serial.fileno(): name for name, guest in noticed.items()}
    ready = select.select(list(serials), [], [], 60)[0]
    assert ready
    guest = noticed[serials[ready[0]]]
    guest.until(guests.FIRMWARE_OTHER_WRITER_MARKER)
    expected, found = struct.unpack_from("<II", (tmp_path / "disk").read_bytes(), 512)
    assert expected != found
