"""What this machine lacks is found out once, before any test runs, and said in the summary. Throw-away packages."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from hvcore_kvm.kvm_device import KvmLevel, probe_kvm

# A busy machine is no failure, and a run says the same twice; HYPOTHESIS_PROFILE=explore draws new examples.
settings.register_profile("hvcore", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("hvcore"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "hvcore"))


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


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs throw-away distributions into a directory on the path."""
    made: list[str] = []

    def make(distribution: str, module: str, source: str, **groups: dict[str, str]) -> None:
        site = tmp_path / "site"
        (site).mkdir(exist_ok=True)
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = []
        for group, entries in groups.items():
            lines.append(f"[{group.replace('__', '.')}]")
            lines += [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))
        made.append(module)

    yield make
    for module in made:
        sys.modules.pop(module, None)
