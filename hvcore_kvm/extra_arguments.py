"""The escape hatch: further QEMU options, read with shell rules, and refused where the driver owns the option."""

from __future__ import annotations

import shlex

ALLOWED = {
    # option: number of words that follow it
    "acpitable": 1,
    "audiodev": 1,
    "blockdev": 1,
    "chardev": 1,
    "compat": 1,
    "d": 1,
    "D": 1,
    "device": 1,
    "dfilter": 1,
    "drive": 1,
    "enable-fips": 0,
    "fsdev": 1,
    "global": 1,
    "icount": 1,
    "L": 1,
    "msg": 1,
    "netdev": 1,
    "nic": 1,
    "object": 1,
    "option-rom": 1,
    "parallel": 1,
    "plugin": 1,
    "seed": 1,
    "semihosting": 0,
    "set": 1,
    "tpmdev": 1,
    "trace": 1,
    "usbdevice": 1,
    "virtfs": 1,
    "win2k-hack": 0,
    "xen-attach": 0,
}
"""Options of QEMU that may be added; everything else is the driver's, or has a parameter of its own."""

_PARAMETERS = {
    "m": "memory",
    "smp": "vcpus",
    "machine": "params.machine",
    "M": "params.machine",
    "accel": "params.accel",
    "enable-kvm": "params.accel",
    "cpu": "params.cpu_model",
    "kernel": "params.kernel",
    "initrd": "params.initrd",
    "append": "params.cmdline",
    "dtb": "params.dtb",
    "bios": "params.firmware_image",
    "pflash": "params.firmware",
    "boot": "params.boot",
    "vnc": "consoles and params.vnc",
    "spice": "consoles and params.spice",
    "serial": "consoles and params.serial_ports",
    "vga": "params.display_device",
    "k": "params.keymap",
    "rtc": "params.rtc_base",
    "smbios": "params.smbios",
    "fw_cfg": "params.fw_cfg",
    "numa": "params.numa",
    "mem-path": "params.memory_path",
    "mem-prealloc": "params.memory_prealloc",
    "overcommit": "params.memory_lock",
    "sandbox": "params.sandbox",
    "chroot": "params.chroot",
    "runas": "security_model",
    "run-with": "params.chroot and security_model",
    "usb": "params.usb_controller",
    "no-reboot": "params.on_reboot",
    "action": "params.on_reboot, params.on_panic and params.watchdog_action",
    "watchdog-action": "params.watchdog_action",
    "no-acpi": "params.acpi",
    "no-hpet": "params.hpet",
    "uuid": "uuid",
    "name": "name",
    "S": "start with paused",
}


def split_extra_arguments(text: str) -> tuple[tuple[str, ...], ...]:
    """The options of the escape hatch, each with the words that belong to it.

    Args:
        text: words as a shell would read them; quotes and backslashes count, nothing is expanded.

    Raises:
        ValueError: quotes do not match, or it is no list of options that may be added; says which.
    """
    if "\0" in text:
        raise ValueError("holds NUL")
    if len(text) > 32768:
        raise ValueError(f"has {len(text)} characters; 32768 are allowed")
    try:
        words = shlex.split(text)
        _ = text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds bytes that are not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None
    options: list[tuple[str, ...]] = []
    while words:
        first = words.pop(0)
        # QEMU takes one hyphen or two.
        name = first.removeprefix("-").removeprefix("-")
        if not first.startswith("-") or not name:
            raise ValueError(f"{first[:60]!r} is no option; QEMU would take it for a disk image")
        if name not in ALLOWED:
            raise ValueError(_refusal(name))
        count = ALLOWED[name]
        if len(words) < count:
            raise ValueError(f"-{name} needs a value")
        options.append((f"-{name}", *words[:count]))
        del words[:count]
    return tuple(options)


def check_extra_arguments(text: str) -> str | None:
    """Whether it is a list of options that may be added."""
    try:
        split_extra_arguments(text)
    except ValueError as error:
        return str(error)
    return None


def _refusal(name: str) -> str:
    if name in _PARAMETERS:
        return f"-{name} belongs to the driver: use {_PARAMETERS[name]}"
    return f"-{name[:40]} belongs to the driver, or is not an option that may be added"
