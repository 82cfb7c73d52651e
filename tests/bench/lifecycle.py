"""From a start to a running guest, and from a forced stop to nothing, beside bare QEMU with the same command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import attrs

from tests.bench.bare_qemu import BareQemu
from tests.bench.host import Host, accelerators
from tests.bench.rows import Row, side_by_side


def measure(host: Host, *, quick: bool) -> Iterator[Row]:
    """Rows of starting and stopping, for each accelerator."""
    count = 3 if quick else 15
    for accel in accelerators():
        instance = host.instance("bench", accel)
        plan = host.driver.plan_start(instance)

        def ours() -> tuple[float, float]:
            begun = time.perf_counter()
            host.driver.start_instance(instance)  # noqa: B023 - called in this turn of the loop only
            running = time.perf_counter()
            host.driver.stop_instance("bench", force=True)
            return running - begun, time.perf_counter() - running

        def bare() -> tuple[float, float]:
            with BareQemu(plan) as qemu:  # noqa: B023
                begun = time.perf_counter()
                qemu.start()
                running = time.perf_counter()
                qemu.stop()
                return running - begun, time.perf_counter() - running

        def confined() -> tuple[float, float]:
            begun = time.perf_counter()
            host.driver.start_instance(attrs.evolve(instance, security_model="confined"))  # noqa: B023
            running = time.perf_counter()
            host.driver.stop_instance("bench", force=True)
            return running - begun, time.perf_counter() - running

        start, stop = side_by_side(ours, bare, count)
        yield Row(
            name=f"start to running, {accel}",
            unit="ms",
            **start.scaled(1e3),
            against="posix_spawn, greeting, cont",
            samples=count,
            budget="1.10 x",
        )
        yield Row(
            name=f"forced stop and cleanup, {accel}",
            unit="ms",
            **stop.scaled(1e3),
            against="SIGTERM, waitpid",
            samples=count,
            budget="1.15 x",
        )
        if os.geteuid() == 0:
            start, stop = side_by_side(confined, ours, count)
            for what, pair in (("start to running", start), ("forced stop", stop)):
                yield Row(
                    name=f"{what}, confined, {accel}",
                    unit="ms",
                    **pair.scaled(1e3),
                    against="unconfined",
                    samples=count,
                )
