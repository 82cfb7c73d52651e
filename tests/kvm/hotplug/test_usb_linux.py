"""A Linux guest sees USB devices come, uses them, and sees them go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import LiveParameters
from hvcore.guests import LinuxGuest, build_linux_guest

pytestmark = [pytest.mark.qemu, pytest.mark.linux]

MODEL = "confined" if os.geteuid() == 0 else "none"
SIZE = 4 << 20


@pytest.fixture(scope="session")
def linux_usb() -> LinuxGuest:
    """The Linux guest with the kernel for all hardware, built once and kept between sessions."""
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    return build_linux_guest(Path(cache) / "linux-usb", usb=True)


def _set(host: Any, devices: Any) -> hvcore.HotplugResult:
    return host.driver.hot_mod_device("web1", LiveParameters(values={"usb": devices}))


@pytest.mark.parametrize(("machine", "controller", "model"), [("q35", "xhci", MODEL), ("pc", "ehci", "none")])
def test_they_come_and_go(
    host: Any, boot: Callable[..., Any], linux_usb: LinuxGuest, machine: str, controller: str, model: str
) -> None:
    """The kernel names each, reads the stick and sees it go; after a new start both are called what they were."""
    stick = host.directory / "stick.raw"
    stick.write_bytes(bytes(4096) + b"from the host\n".ljust(SIZE - 4096, b"\0"))
    devices = [{"type": "tablet"}, {"type": "storage", "path": str(stick)}]
    guest = {"kernel": str(linux_usb.kernel), "initrd": str(linux_usb.initrd), "usb_controller": controller}
    shell = boot(machine, security_model=model, params=guest)
    assert shell.run("cat /sys/bus/usb/devices/*/product | grep -c QEMU.USB") == "0"
    assert _set(host, devices).done
    shell.wait("grep -q 'QEMU USB Tablet' /sys/class/input/event*/device/name")
    shell.wait("grep -qs 'QEMU USB HARDDRIVE' /sys/bus/usb/devices/*/product && [ -b /dev/sda ]")
    assert shell.run("dd if=/dev/sda bs=512 skip=8 count=1 2>/dev/null | head -n 1") == "from the host"
    assert shell.run("cat /sys/block/sda/ro") == "1"
    assert _set(host, [devices[0]]).done
    shell.wait("[ ! -b /dev/sda ]")
    assert shell.run("cat /sys/bus/usb/devices/*/product | grep QEMU.USB") == "QEMU USB Tablet"
    assert _set(host, devices).done
    shell.wait("[ -b /dev/sda ]")
    if machine == "pc":
        return
    known = shell.run("ls /sys/class/input /sys/class/block | grep -v input")
    host.driver.stop_instance("web1", force=True)
    shell = boot(machine, security_model=model, params={**guest, "usb": devices})
    shell.wait("[ -b /dev/sda ]")
    assert shell.run("ls /sys/class/input /sys/class/block | grep -v input") == known
