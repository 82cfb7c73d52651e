"""The firmware guest: a 64 KiB BIOS image that is a whole guest, ready in milliseconds.

Start it with ``qemu-system-x86_64 -nodefaults -bios FILE -serial ...`` on the machine types ``pc`` and
``q35``, with TCG or KVM and 32 MiB of RAM or more. It talks on the first serial port; the commands are
listed at the top of ``firmware.S``.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
import zlib
from pathlib import Path

from hvcore.guests.firmware_image import FIRMWARE_ZLIB_BASE64

READY_MARKER = b"HVCORE-GUEST ready"
"""What each guest prints on its first serial port when it is up."""

FIRMWARE_READY_MARKER = READY_MARKER + b" firmware\r\n"
"""The whole ready line of the firmware guest."""

POWER_BUTTON_MARKER = b"HVCORE-GUEST power button"
"""What each guest prints when it obeys the ACPI power button."""

POWER_BUTTON_IGNORED_MARKER = b"HVCORE-GUEST ignored power button"
"""What each guest prints when it was told to ignore the ACPI power button and saw it pressed."""

FIRMWARE_OTHER_WRITER_MARKER = b"HVCORE-GUEST somebody else has written"
"""What the firmware guest prints when its disk has not the token that it wrote last."""

FIRMWARE_MIN_MEMORY = 32 * 1024 * 1024
"""The least RAM of a firmware guest, in bytes."""

FIRMWARE_PATTERN_SUM = 0x233C96EE
"""What the firmware guest answers to ``m`` as long as its memory is intact."""


def firmware_image() -> bytes:
    """Return the image of the firmware guest.

    Returns:
        The 65536 bytes that ``qemu-system-x86_64 -bios`` takes.
    """
    return zlib.decompress(base64.b64decode(FIRMWARE_ZLIB_BASE64))


def write_firmware(path: str | os.PathLike[str]) -> Path:
    """Write the image of the firmware guest to a file.

    The file appears at once and complete, with mode 0644; an existing file is replaced.

    Args:
        path: the file to write; its directory must exist.

    Returns:
        The path that was written.

    Raises:
        OSError: the file could not be written; nothing is left behind.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(firmware_image())
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return target
