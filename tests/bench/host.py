"""Directories, a driver and guests for a benchmark; everything it started is ended, by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import attrs

import hvcore
from hvcore.guests import write_firmware
from hvcore_kvm.kvm_device import KvmLevel, probe_kvm


def accelerators() -> tuple[str, ...]:
    """What the firmware guest runs on here."""
    return ("tcg",) if probe_kvm().level is KvmLevel.NONE else ("tcg", "kvm")


@attrs.frozen(kw_only=True)
class Host:
    """Where a benchmark runs.

    Attributes:
        directory: a directory of its own.
        settings: settings of the driver.
        driver: the loaded driver.
        firmware: image of the firmware guest.
    """

    directory: str
    settings: dict[str, Any]
    driver: hvcore.Driver
    firmware: str

    def instance(self, name: str, accel: str) -> hvcore.Instance:
        """A firmware guest."""
        params: dict[str, Any] = {"accel": accel, "firmware_image": self.firmware}
        if accel == "kvm" and probe_kvm().level is not KvmLevel.FULL:
            # A software KVM does not know the MSR that CPU model host asks for.
            params["cpu_features"] = {"arch-capabilities": False}
        return hvcore.Instance(name=name, memory=hvcore.parse_size("32MiB"), params=params, security_model="none")


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Make a host, and leave nothing of it."""
    # Short: paths of UNIX sockets end at 107 bytes.
    directory = tempfile.mkdtemp(prefix="hvb-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    try:
        settings = {f"{kind}_directory": f"{directory}/{kind}" for kind in ("state", "data", "cache")}
        firmware = str(write_firmware(f"{directory}/guest.rom"))
        with hvcore.load_driver("kvm", settings) as driver:
            try:
                yield Host(directory=directory, settings=settings, driver=driver, firmware=firmware)
            finally:
                with contextlib.ExitStack() as stack:
                    for row in driver.list_instances().instances:
                        stack.callback(driver.stop_instance, row.name, force=True)
    finally:
        shutil.rmtree(directory)
