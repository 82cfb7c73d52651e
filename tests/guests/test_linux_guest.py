"""The Linux guest under real QEMU with TCG."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore import guests

pytestmark = [pytest.mark.qemu, pytest.mark.linux]

StartLinux = Callable[..., Any]


@pytest.fixture
def boot(start_guest: Callable[[list[str]], Any], linux_guest: guests.LinuxGuest) -> StartLinux:
    """A function that boots the Linux guest with options, a machine type and more QEMU arguments."""

    def start(options: str, *arguments: str, machine: str = "pc") -> Any:
        command = ["-machine", machine, "-accel", "tcg", "-m", "128", *arguments]
        command += ["-kernel", str(linux_guest.kernel), "-initrd", str(linux_guest.initrd)]
        command += ["-append", f"{guests.LINUX_COMMAND_LINE} {options}"]
        return start_guest(command)

    return start


def ready_line(guest: Any) -> dict[str, str]:
    """Wait for the ready line and return its fields."""
    guest.until(guests.LINUX_READY_MARKER)
    return dict(field.split("=", 1) for field in guest.until("\n").split())


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_boots_to_a_shell_and_obeys_the_power_button(
    boot: StartLinux, linux_guest: guests.LinuxGuest, machine: str
) -> None:
    """The ready line tells what the guest sees, its shell works and comes back, the power button ends it."""
    guest = boot("", "-smp", "2", machine=machine)
    fields = ready_line(guest)
    assert fields["cpus"] == "2"
    assert 64 * 1024 < int(fields["mem"]) < 128 * 1024
    assert float(fields["up"]) > 0
    assert fields["net"] == ""
    guest.until(guests.LINUX_PROMPT)
    guest.send("echo kernel $(uname -r) user $(id -u)\n")
    guest.until(f"\nkernel {linux_guest.version} user 0")
    guest.send("exit\n")
    guest.until("exit")
    guest.until(guests.LINUX_PROMPT)
    guest.qmp("system_powerdown")
    guest.until(guests.POWER_BUTTON_MARKER)
    assert guest.event("SHUTDOWN")["reason"] == "guest-shutdown"
    assert guest.wait() == 0


def test_finds_its_devices_and_takes_an_address(boot: StartLinux, tmp_path: Path) -> None:
    """Each kind of disk, a network card and a virtio-serial port are there at the ready line."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1024 * 1024))
    arguments = ["-device", "virtio-scsi-pci", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]
    for device in ("virtio-blk-pci", "scsi-hd", "nvme,serial=1", "ide-hd"):
        name = device.partition(",")[0]
        arguments += ["-drive", f"if=none,id={name},format=raw,readonly=off,snapshot=on,file={disk}"]
        arguments += ["-device", f"{device},drive={name}"]
    guest = boot("hv.ip=192.0.2.7/24", *arguments)
    fields = ready_line(guest)
    assert fields["net"] == "eth0"
    assert {"vda", "nvme0n1", "sda", "sdb"} <= set(fields["blk"].split(","))
    guest.until(guests.LINUX_PROMPT)
    guest.send("ip -o -4 address show dev eth0\n")
    guest.until("inet 192.0.2.7/24")


def test_gets_an_address_by_dhcp(boot: StartLinux) -> None:
    """With hv.dhcp the guest takes a lease and tells its address."""
    guest = boot("hv.dhcp", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
    guest.until("HVCORE-GUEST dhcp ip=")
    assert re.match(r"10\.0\.2\.\d+", guest.until("\n"))


def test_ignores_the_power_button(boot: StartLinux) -> None:
    """With hv.ignore_power each press is only reported, and the shell lives on."""
    guest = boot("hv.ignore_power")
    ready_line(guest)
    for _ in range(2):
        guest.qmp("system_powerdown")
        guest.until(guests.POWER_BUTTON_IGNORED_MARKER)
    guest.send("echo still $((40 + 2))\n")
    guest.until("still 42")


def test_powers_off_by_itself(boot: StartLinux) -> None:
    """With hv.poweroff_after the guest ends without being asked."""
    guest = boot("hv.poweroff_after=1")
    assert guest.event("SHUTDOWN")["reason"] == "guest-shutdown"
    assert guest.wait() == 0


def test_panics_after_a_while(boot: StartLinux) -> None:
    """With hv.panic_after the kernel panics and pvpanic tells it."""
    guest = boot("hv.panic_after=1", "-device", "pvpanic-pci", "-action", "panic=pause")
    assert guest.event("GUEST_PANICKED")["action"] == "pause"


def test_dirties_memory(boot: StartLinux) -> None:
    """With hv.dirty the guest keeps writing to the memory it was given."""
    guest = boot("hv.dirty=8")
    ready_line(guest)
    guest.until(guests.LINUX_PROMPT)
    guest.send("while [ $(stat -c %s /tmp/dirty) != 8388608 ]; do :; done; md5sum </tmp/dirty\n")
    first = guest.until("  -")[-32:]
    while True:
        guest.send("md5sum </tmp/dirty\n")
        if guest.until("  -")[-32:] != first:
            break
