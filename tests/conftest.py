"""What this machine lacks is found out once, before any test runs, and said in the summary."""

from __future__ import annotations

import os
import shutil

import pytest

from hvcore_kvm.kvm_device import KvmLevel, probe_kvm


def _missing() -> dict[str, str]:
    """By marker: why tests that carry it cannot run here."""
    missing = {}
    if shutil.which("qemu-system-x86_64") is None:
        missing["qemu"] = missing["linux"] = "qemu-system-x86_64 is not installed"
    if shutil.which("apt-get") is None:
        missing["linux"] = "the Linux guest is built from Debian packages, and apt-get is not here"
    if probe_kvm().level is KvmLevel.NONE:
        missing["kvm"] = f"KVM cannot be used: {probe_kvm().reason}"
    return missing


MISSING = _missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, why in MISSING.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_report_header() -> list[str]:
    here = f"KVM: {probe_kvm().level.value} ({probe_kvm().reason}); user: {os.geteuid()}"
    return [here, *(f"not run: tests marked {marker}: {why}" for marker, why in MISSING.items())]
