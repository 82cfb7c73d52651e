"""The firmware guest under real QEMU, for each accelerator and machine type."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore import guests
from hvcore.guests import build_firmware

StartFirmware = Callable[..., Any]


def _accelerators() -> list[str]:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return ["tcg"]
    return ["tcg", "kvm"]


MARKS = {"tcg": [pytest.mark.qemu], "kvm": [pytest.mark.qemu, pytest.mark.kvm]}
PLATFORMS = [
    pytest.param(pair, id="-".join(pair), marks=MARKS[pair[1]])
    for pair in itertools.product(("pc", "q35"), _accelerators())
]


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> list[str]:
    """QEMU arguments of one machine type and accelerator, with the least memory."""
    machine, accelerator = request.param
    return ["-machine", machine, "-accel", accelerator, "-m", "32"]


@pytest.fixture
def boot(start_guest: Callable[[list[str]], Any], platform: list[str], firmware: Path) -> StartFirmware:
    """A function that boots the firmware guest with more QEMU arguments and waits until it is ready."""

    def start(*arguments: str, ready: bool = True) -> Any:
        guest = start_guest([*platform, "-bios", str(firmware), *arguments])
        if ready:
            guest.until(guests.FIRMWARE_READY_MARKER)
        return guest

    return start


def test_answers_with_several_processors(boot: StartFirmware) -> None:
    """The guest echoes, counts its ticks and knows its pattern, with more than one processor."""
    guest = boot("-smp", "3")
    guest.send("e")
    guest.until("ok\r\n")
    first = guest.ask("c", "count=")
    while guest.ask("c", "count=") == first:
        pass
    assert guest.ask("m", "sum=") == guests.FIRMWARE_PATTERN_SUM


def test_unknown_bytes_are_ignored(boot: StartFirmware) -> None:
    """Bytes that are no command do nothing, and a burst of commands is answered in full."""
    guest = boot()
    guest.send("\r\n? \x7fxyz" + "e" * 40)
    for _ in range(40):
        assert guest.until("ok\r\n") == ""


def test_talks_on_each_fourth_tick(boot: StartFirmware) -> None:
    """Talking prints growing tick counts until it is stopped."""
    guest = boot()
    guest.send("t")
    guest.until("ok\r\n")
    ticks = []
    for _ in range(3):
        guest.until("tick ")
        ticks.append(int(guest.until("\r\n"), 16))
    guest.send("T")
    guest.until("ok\r\n")
    assert ticks[0] < ticks[1] < ticks[2]
    before = guest.ask("c", "count=")
    while guest.ask("c", "count=") < before + 8:
        pass
    guest.send("e")
    assert guest.until("ok\r\n") == ""


def test_power_button_powers_off(boot: StartFirmware) -> None:
    """The ACPI power button is reported and ends QEMU with a shutdown by the guest."""
    guest = boot()
    guest.qmp("system_powerdown")
    guest.until(guests.POWER_BUTTON_MARKER + b"\r\n")
    assert guest.event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    assert guest.wait() == 0


def test_power_button_can_be_ignored(boot: StartFirmware) -> None:
    """After n the power button is only reported, after N it works again."""
    guest = boot()
    guest.send("n")
    guest.until("ok\r\n")
    for _ in range(2):
        guest.qmp("system_powerdown")
        guest.until(guests.POWER_BUTTON_IGNORED_MARKER + b"\r\n")
    guest.send("N")
    guest.until("ok\r\n")
    guest.qmp("system_powerdown")
    assert guest.event("SHUTDOWN")["reason"] == "guest-shutdown"
    assert guest.wait() == 0


def test_powers_off_by_command(boot: StartFirmware) -> None:
    """The command q is a shutdown by the guest."""
    guest = boot()
    guest.send("q")
    assert guest.event("SHUTDOWN")["reason"] == "guest-shutdown"
    assert guest.wait() == 0


def test_resets_and_starts_anew(boot: StartFirmware) -> None:
    """The command r resets the machine; the guest comes up with its state of a first boot."""
    guest = boot()
    guest.send("n")
    guest.until("ok\r\n")
    guest.send("r")
    assert guest.event("RESET") == {"guest": True, "reason": "guest-reset"}
    guest.until(guests.FIRMWARE_READY_MARKER)
    guest.qmp("system_reset")
    guest.until(guests.FIRMWARE_READY_MARKER)
    guest.qmp("system_powerdown")
    assert guest.event("SHUTDOWN")["reason"] == "guest-shutdown"


@pytest.mark.parametrize("device", ["pvpanic-pci,addr=7.3,multifunction=on", "pvpanic"])
def test_panics(boot: StartFirmware, device: str) -> None:
    """The command p reports a panic through either kind of device, and the guest lives on."""
    extra = ["-device", "pci-testdev,addr=7.0,multifunction=on"] if "addr" in device else []
    guest = boot(*extra, "-device", device, "-action", "panic=none")
    for _ in range(2):
        guest.send("p")
        assert guest.event("GUEST_PANICKED")["action"] == "run"
    guest.send("e")
    guest.until("ok\r\n")


def test_panic_without_a_device_is_harmless(boot: StartFirmware) -> None:
    """The command p of a machine without pvpanic changes nothing."""
    guest = boot()
    guest.send("pe")
    guest.until("ok\r\n")


def test_dirties_memory_and_keeps_its_pattern(boot: StartFirmware, tmp_path: Path) -> None:
    """While it dirties memory the guest answers, changes pages, and leaves its pattern alone."""
    guest = boot()
    page = tmp_path / "page"

    def last_page() -> bytes:
        guest.qmp("pmemsave", val=0x1FFF000, size=4096, filename=str(page))
        return page.read_bytes()

    assert last_page() == bytes(4096)
    guest.send("d")
    guest.until("ok\r\n")
    while (content := last_page()) == bytes(4096):
        pass
    while last_page() == content:
        pass
    assert guest.ask("m", "sum=") == guests.FIRMWARE_PATTERN_SUM
    ticks = guest.ask("c", "count=")
    while guest.ask("c", "count=") == ticks:
        pass
    guest.send("D")
    guest.until("ok\r\n")
    content = last_page()
    ticks = guest.ask("c", "count=")
    while guest.ask("c", "count=") == ticks:
        pass
    assert last_page() == content


def test_hang_is_deaf_and_a_reset_ends_it(boot: StartFirmware) -> None:
    """After k neither commands nor the power button do anything, until the machine is reset."""
    guest = boot()
    guest.send("k")
    guest.until("ok\r\n")
    guest.qmp("system_powerdown")
    guest.send("e")
    guest.qmp("system_reset")
    between = guest.until(guests.FIRMWARE_READY_MARKER)
    assert "ok" not in between
    guest.send("e")
    guest.until("ok\r\n")


def test_state_survives_migration(boot: StartFirmware, tmp_path: Path) -> None:
    """Tick count, modes and the pattern are the same after a migration to another process."""
    source = boot()
    source.send("dn")
    source.until("ok\r\n")
    source.until("ok\r\n")
    socket_path = f"unix:{tmp_path / 'migrate'}"
    target = boot("-incoming", socket_path, ready=False)
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 10**10, "downtime-limit": 2000})
    before = source.ask("c", "count=")
    source.qmp("migrate", uri=socket_path)
    target.event("RESUME")
    assert target.ask("c", "count=") >= before
    assert target.ask("m", "sum=") == guests.FIRMWARE_PATTERN_SUM
    target.qmp("system_powerdown")
    target.until(guests.POWER_BUTTON_IGNORED_MARKER)


def test_works_without_a_serial_port(boot: StartFirmware) -> None:
    """A guest without COM1 does not hang: it obeys the power button."""
    guest = boot("-serial", "none", ready=False)
    # Nothing tells that it is up, so the button is pressed until it is obeyed.
    while guest.process.poll() is None:
        try:
            guest.qmp("system_powerdown")
        except (AssertionError, OSError):
            break
    assert guest.wait() == 0


def test_written_image_is_the_packed_one(tmp_path: Path) -> None:
    """The file holds the 64 KiB image, is readable for all, replaces the old one and leaves nothing else."""
    path = tmp_path / "guest.rom"
    path.write_bytes(b"old")
    assert guests.write_firmware(path) == path
    assert path.read_bytes() == guests.firmware_image()
    assert path.stat().st_size == build_firmware.FIRMWARE_SIZE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When the image cannot take the wanted name, no temporary file stays."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        guests.write_firmware(tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_broken_source_is_reported(tmp_path: Path) -> None:
    """An assembler error names the command, its last words and what to do."""
    source = tmp_path / "broken.S"
    source.write_text("nonsense\n")
    with pytest.raises(guests.GuestBuildError) as caught:
        build_firmware.assemble_firmware(source)
    assert caught.value.command[0] == "as"
    assert caught.value.hint in str(caught.value)
    assert "what to do" in str(caught.value)


if shutil.which("as") and shutil.which("ld"):

    def test_packed_image_matches_the_source() -> None:
        """The image in the package is what the source assembles to."""
        source = Path(build_firmware.__file__).with_name("firmware.S")
        assert build_firmware.assemble_firmware(source) == guests.firmware_image()
