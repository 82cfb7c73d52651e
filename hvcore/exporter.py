"""Counters of instances for Prometheus: a collector over a driver. Needs the extra ``prometheus``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hvcore.capabilities import Capability
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.model.state import BlockStats, InstanceName, InstanceStats, NicStats

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_THREADS = 32
"""How many instances are asked at once."""

Sample = tuple[Sequence[str], float]

_DISK = (
    ("read_bytes", "Bytes the guest has read."),
    ("written_bytes", "Bytes the guest has written."),
    ("reads", "Requests to read."),
    ("writes", "Requests to write."),
    ("flushes", "Requests to write out what is cached."),
    ("read_time", "Seconds in which reads were under way, added up over all of them."),
    ("write_time", "Seconds in which writes were under way, added up over all of them."),
    ("flush_time", "Seconds in which flushes were under way, added up over all of them."),
    ("discarded_bytes", "Bytes the guest has given back."),
    ("errors", "Requests that failed."),
)
_NIC = (
    ("received_bytes", "Bytes for the guest."),
    ("sent_bytes", "Bytes from the guest."),
    ("received_packets", "Packets for the guest."),
    ("sent_packets", "Packets from the guest."),
    ("received_drops", "Packets for the guest that were lost on the host."),
    ("sent_drops", "Packets from the guest that were lost on the host."),
)
_SUFFIX = {"read_time": "read_seconds", "write_time": "write_seconds", "flush_time": "flush_seconds"}


class InstanceCollector:
    """A collector for a registry of ``prometheus_client``; asks the driver anew for every scrape.

    An instance that does not answer has ``hvcore_instance_up`` 0 and no counters, and delays nobody beyond ``timeout``.
    A driver that fails altogether has ``hvcore_driver_up`` 0. Nothing is raised.

    Args:
        driver: a loaded driver. It may be used by others meanwhile.
        timeout: seconds that all instances together are given to answer.
    """

    def __init__(self, driver: Driver, timeout: float = 5.0) -> None:
        self._driver = driver
        self._timeout = timeout

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry that is given the collector asks no instance."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metric families, with what is known now."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        def gauge(name: str, text: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
            family = GaugeMetricFamily(f"hvcore_{name}", text, labels=("driver", *labels))
            for values, value in samples:
                family.add_metric((self._driver.name, *values), value)
            return family

        def counter(name: str, text: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
            family = CounterMetricFamily(f"hvcore_{name}", text, labels=("driver", *labels))
            for values, value in samples:
                family.add_metric((self._driver.name, *values), value)
            return family

        begun = time.monotonic()
        try:
            listed = self._driver.list_instances(timeout=self._timeout).instances
        except HypervisorError:
            yield gauge("driver_up", "The driver lists its instances.", (), [((), 0)])
            return
        yield gauge("driver_up", "The driver lists its instances.", (), [((), 1)])
        text = "A hypervisor process of the instance lives."
        yield gauge("instance_alive", text, ("instance",), [((row.name,), row.alive) for row in listed])
        if not self._driver.description.claim(Capability.STATS).offered:
            return
        found = self._ask([row for row in listed if row.alive], begun)
        stats = [one for one in found.values() if one is not None]
        text = "The instance answers."
        yield gauge("instance_up", text, ("instance",), [((name,), one is not None) for name, one in found.items()])
        for name, text, samples in _instance_counters(stats):
            yield counter(name, text, ("instance",), samples)
        text = "CPU time of the thread of each virtual CPU, in seconds."
        rows = [((s.name, str(number)), used) for s in stats for number, used in enumerate(s.vcpu_times)]
        yield counter("vcpu_seconds", text, ("instance", "vcpu"), rows)
        for name, text, samples in _memory(stats):
            yield gauge(name, text, ("instance",), samples)
        disks: list[tuple[str, BlockStats]] = [(s.name, disk) for s in stats for disk in s.disks]
        for field, text in _DISK:
            rows = [((name, disk.device), getattr(disk, field)) for name, disk in disks]
            yield counter(f"disk_{_SUFFIX.get(field, field)}", text, ("instance", "disk"), rows)
        nics: list[tuple[str, NicStats]] = [(s.name, nic) for s in stats for nic in s.nics]
        for field, text in _NIC:
            rows = [((name, nic.device), getattr(nic, field)) for name, nic in nics]
            yield counter(f"nic_{field}", text, ("instance", "nic"), rows)

    def _ask(self, rows: Sequence[InstanceName], begun: float) -> dict[str, InstanceStats | None]:
        """Counters of instances, asked side by side; ``None`` for one that does not answer."""
        if not rows:
            return {}

        def ask(name: str) -> InstanceStats | None:
            left = begun + self._timeout - time.monotonic()
            try:
                return self._driver.get_instance_stats(name, timeout=max(0.0, left))
            except HypervisorError:
                return None

        names = [row.name for row in rows]
        with ThreadPoolExecutor(min(_THREADS, len(names))) as pool:
            return dict(zip(names, pool.map(ask, names), strict=True))


def _instance_counters(stats: Iterable[InstanceStats]) -> Iterator[tuple[str, str, list[Sample]]]:
    used = [((s.name,), s.cpu_time) for s in stats if s.cpu_time is not None]
    yield "instance_cpu_seconds", "CPU time of the whole hypervisor process, in seconds.", [*used]


def _memory(stats: Sequence[InstanceStats]) -> Iterator[tuple[str, str, list[Sample]]]:
    text = "Memory the guest has now, in bytes."
    yield "instance_memory_balloon_bytes", text, [((s.name,), s.memory_balloon) for s in stats]
    text = "Memory of the host that the hypervisor process holds, in bytes."
    yield "instance_memory_resident_bytes", text, [((s.name,), s.memory_resident) for s in stats]
    for field in ("total", "free", "available", "caches"):
        told = [((s.name,), getattr(s.guest_memory, field)) for s in stats if s.guest_memory is not None]
        text = f"What the guest says of its own memory, in bytes: {field}."
        yield f"guest_memory_{field}_bytes", text, [row for row in told if row[1] is not None]
