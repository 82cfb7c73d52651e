"""Counters for Prometheus, read back by its own parser: every instance has its own, and a hung one spoils nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import hvcore
from hvcore import InstanceCollector
from hvcore_fake import Fault, FaultPlan

MIB = 1 << 20
DISK = "dd000000-0000-4000-8000-000000000001"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _scrape(driver: hvcore.Driver, timeout: float = 5.0) -> Samples:
    registry = CollectorRegistry()
    registry.register(InstanceCollector(driver, timeout=timeout))
    text = generate_latest(registry).decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "driver"}
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
            assert sample.labels["driver"] == driver.name
    return found


@pytest.mark.qemu
def test_what_is_exported_is_what_the_driver_says(host: Any) -> None:
    """Totals with their labels; a scrape after more has happened has more."""
    disk = attrs.evolve(host.raw_disk(), uuid=DISK)
    host.start(host.instance(disks=[disk], vcpus=2))
    first, found = host.driver.get_instance_stats("web1"), _scrape(host.driver)
    web1 = (("instance", "web1"),)
    assert found["hvcore_driver_up", ()] == 1
    assert found["hvcore_instance_alive", web1] == found["hvcore_instance_up", web1] == 1
    assert found["hvcore_instance_memory_balloon_bytes", web1] == 64 * MIB
    assert found["hvcore_instance_memory_resident_bytes", web1] > MIB
    assert found["hvcore_instance_cpu_seconds_total", web1] >= (first.cpu_time or 0) > 0
    vcpus = [labels for name, labels in found if name == "hvcore_vcpu_seconds_total"]
    assert vcpus == [(*web1, ("vcpu", "0")), (*web1, ("vcpu", "1"))]
    of_disk = (("disk", DISK), ("instance", "web1"))
    for name in ("read_bytes", "reads", "written_bytes", "read_seconds", "write_seconds", "flush_seconds", "errors"):
        assert found[f"hvcore_disk_{name}_total", of_disk] >= 0
    assert found["hvcore_disk_read_bytes_total", of_disk] == first.disks[0].read_bytes


@pytest.mark.qemu
def test_one_that_hangs_spoils_nothing(make_host: Callable[..., Any]) -> None:
    """It is alive and not up; the others have their counters; one that has ended is neither."""
    host = make_host(query_timeout=5.0)
    for name in ("web1", "web2", "web3"):
        host.driver.start_instance(host.instance(name))
    os.kill(host.pid("web2"), signal.SIGSTOP)
    os.kill(host.pid("web3"), signal.SIGKILL)
    host.wait_end("web3")
    found = _scrape(host.driver, timeout=15.0)

    def of(name: str) -> dict[str, float]:
        return {labels[0][1]: value for (metric, labels), value in found.items() if metric == f"hvcore_{name}"}

    assert of("instance_alive") == {"web1": 1, "web2": 1, "web3": 0}
    assert of("instance_up") == {"web1": 1, "web2": 0}
    assert set(of("instance_cpu_seconds_total")) == {"web1"}
    os.kill(host.pid("web2"), signal.SIGCONT)
    assert _scrape(host.driver)["hvcore_instance_up", (("instance", "web2"),)] == 1


def test_a_driver_that_fails(tmp_path: Path) -> None:
    """The scrape goes on, and says so."""
    faults = FaultPlan([Fault(kind="raise", operation="list_instances", error="HostError", times=0)])
    roots = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    with hvcore.load_driver("fake", {**roots, "faults": faults}) as driver:
        assert _scrape(driver) == {("hvcore_driver_up", ()): 0}
    assert _scrape(driver) == {("hvcore_driver_up", ()): 0}


def test_making_a_collector_imports_nothing_heavy() -> None:
    """The library is imported by the first scrape; registering asks nobody."""
    code = "import sys, hvcore; hvcore.InstanceCollector; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
