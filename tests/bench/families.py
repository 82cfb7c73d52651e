"""What confinement and a bridge add to a start, beside no confinement and QEMU's own network."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import attrs

import hvcore
from hvcore import Nic
from tests.bench.host import Host, accelerators
from tests.bench.rows import Row, side_by_side


def measure(host: Host, *, quick: bool) -> Iterator[Row]:
    """Rows of starting and stopping, for each accelerator; root's alone."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None:
        sys.stderr.write("not measured: confined and bridged: that needs root, /dev/net/tun and ip\n")
        return
    count = 3 if quick else 31
    with _bridge() as bridge:
        for accel in accelerators():
            bare = host.instance("bench", accel)
            plain = attrs.evolve(bare, nics=(Nic(mode="user"),))
            whole = attrs.evolve(bare, nics=(Nic(mode="bridged", link=bridge),), security_model="confined")
            pairs = side_by_side(_started_and_stopped(host, whole), _started_and_stopped(host, plain), count)
            for what, pair in zip(("start to running", "forced stop"), pairs, strict=True):
                yield Row(
                    name=f"{what}, confined and bridged, {accel}",
                    unit="ms",
                    **pair.scaled(1e3),
                    against="none and user",
                    samples=count,
                )


def _started_and_stopped(host: Host, instance: hvcore.Instance) -> Callable[[], tuple[float, float]]:
    def measured() -> tuple[float, float]:
        begun = time.perf_counter()
        host.driver.start_instance(instance)
        running = time.perf_counter()
        host.driver.stop_instance(instance.name, force=True)
        return running - begun, time.perf_counter() - running

    return measured


@contextlib.contextmanager
def _bridge() -> Iterator[str]:
    name = f"hvb{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)
