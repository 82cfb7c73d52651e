"""The two guests that hvcore builds itself, for demonstrations and tests.

The firmware guest is a BIOS image of 64 KiB that ships with the package: ready in milliseconds, and enough to
watch a virtual machine live, stop, hang, panic and move. The Linux guest is built once from Debian packages:
a kernel with virtio drivers and a shell.
"""

from __future__ import annotations

from hvcore.guests.errors import GuestBuildError
from hvcore.guests.firmware import (
    FIRMWARE_MIN_MEMORY,
    FIRMWARE_OTHER_WRITER_MARKER,
    FIRMWARE_PATTERN_SUM,
    FIRMWARE_READY_MARKER,
    POWER_BUTTON_IGNORED_MARKER,
    POWER_BUTTON_MARKER,
    READY_MARKER,
    firmware_image,
    write_firmware,
)
from hvcore.guests.linux import (
    LINUX_COMMAND_LINE,
    LINUX_PROMPT,
    LINUX_READY_MARKER,
    LinuxGuest,
    build_linux_guest,
)

__all__ = [
    "FIRMWARE_MIN_MEMORY",
    "FIRMWARE_OTHER_WRITER_MARKER",
    "FIRMWARE_PATTERN_SUM",
    "FIRMWARE_READY_MARKER",
    "LINUX_COMMAND_LINE",
    "LINUX_PROMPT",
    "LINUX_READY_MARKER",
    "POWER_BUTTON_IGNORED_MARKER",
    "POWER_BUTTON_MARKER",
    "READY_MARKER",
    "GuestBuildError",
    "LinuxGuest",
    "build_linux_guest",
    "firmware_image",
    "write_firmware",
]
