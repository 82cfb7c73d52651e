"""What this machine lacks is found out once, before any test runs, and said in the summary. Throw-away packages."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
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


def pytest_collection_finish() -> None:
    # What was collected stays until the end; without this every collection of garbage would walk through all of it, and
    # the conformance checks, which count open files, ask for four of them each.
    gc.collect()
    gc.freeze()


def pytest_report_header() -> list[str]:
    here = f"KVM: {probe_kvm().level.value} ({probe_kvm().reason}); user: {os.geteuid()}"
    return [here, *(f"not run: tests marked {marker}: {why}" for marker, why in MISSING.items())]


_PROCESSES = 64
"""How many processes may run tests on one host at once."""

_PORTS = range(20000, 28192)
"""Above the first of VNC, and below those that the kernel hands out by itself."""


@pytest.fixture(scope="session")
def own_number() -> Iterator[int]:
    """A number below 64 that no other process that runs tests on this host has."""
    # An abstract name goes with its process, however that ends, and belongs to a network as ports and addresses do.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        for number in range(_PROCESSES):
            try:
                claim.bind(f"\0hvcore-tests-{number}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            yield number
            return
        pytest.fail(f"{_PROCESSES} processes run tests on this host already")


@pytest.fixture(scope="session")
def free_port(own_number: int) -> Callable[[], int]:
    """Finds ports that nobody has and no other test is given, for TCP and UDP, each another one."""
    share = len(_PORTS) // _PROCESSES
    own = itertools.cycle(_PORTS[own_number * share : (own_number + 1) * share])

    def is_free(port: int) -> bool:
        with contextlib.ExitStack() as stack:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                try:
                    stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    return False
        return True

    return lambda: next(port for port in itertools.islice(own, share) if is_free(port))


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
