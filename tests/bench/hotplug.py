"""Adding a device to a running instance, beside the bare commands of QEMU's monitor."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import attrs

import hvcore
from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient
from tests.bench.host import Host
from tests.bench.rows import Row, side_by_side

_PATIENCE = 30.0


def measure(host: Host, *, quick: bool) -> Iterator[Row]:
    """A NIC is added to a guest that runs, by us and by two commands on an open connection."""
    count = 3 if quick else 10
    instance = host.instance("bench", "tcg")
    instance = attrs.evolve(instance, params={**instance.params, "machine": "q35", "hotplug_ports": 4 * count})
    host.driver.start_instance(instance)
    monitor = f"{host.directory}/state/kvm/instances/bench/query"
    free = iter(range(4 * count - 1, 0, -1))  # from the end: the driver takes them from the beginning
    try:
        with QmpClient.connect(monitor, Deadline.after(_PATIENCE)) as client:

            def ours() -> tuple[float]:
                begun = time.perf_counter()
                host.driver.hot_add_device("bench", hvcore.Nic(uuid=str(uuid.uuid4())))
                return (time.perf_counter() - begun,)

            def bare() -> tuple[float]:
                port = next(free)
                ident = f"bare{port}"
                device = {"driver": "virtio-net-pci", "id": ident, "netdev": f"{ident}-net", "bus": f"port{port}"}
                begun = time.perf_counter()
                backend = {"type": "user", "id": f"{ident}-net"}
                client.execute("netdev_add", backend, deadline=Deadline.after(_PATIENCE))
                client.execute("device_add", {**device, "romfile": ""}, deadline=Deadline.after(_PATIENCE))
                return (time.perf_counter() - begun,)

            (added,) = side_by_side(ours, bare, count)
    finally:
        host.driver.stop_instance("bench", force=True)
    yield Row(
        name="hot add of a NIC",
        unit="ms",
        **added.scaled(1e3),
        against="netdev_add, device_add",
        samples=count,
        budget="1.50 x",
    )
