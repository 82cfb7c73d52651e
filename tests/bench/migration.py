"""Moving an instance between two drivers on one host, beside two bare QEMUs and the commands of their monitors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import attrs

import hvcore
from hvcore import Deadline, MigrationPolicy, Size
from hvcore_kvm.events import parse_events
from hvcore_kvm.qmp import QmpClient
from tests.bench.bare_qemu import BareQemu
from tests.bench.host import Host, host
from tests.bench.rows import Row, side_by_side

_PATIENCE = 120.0
_NAME = "moving"
_BANDWIDTH = 16 << 30
_POLICY = MigrationPolicy(tls=None, max_bandwidth=Size(_BANDWIDTH))
_CAPABILITIES = [{"capability": name, "state": True} for name in ("return-path", "events")]
_UNTOUCHED = 48 << 20
"""Where the firmware guest has nothing, from the beginning of its memory."""

_BLOCK = 1 << 20


def measure(here: Host, *, quick: bool) -> Iterator[Row]:
    """A guest that runs is moved, with a little memory and with much: all of it, and how long it did not run."""
    sizes = (("64MiB", 2), ("128MiB", 1)) if quick else (("64MiB", 11), ("1536MiB", 7))
    if os.geteuid() != 0:
        sys.stderr.write("not measured: migration of much memory: only root can fill that of a guest\n")
        sizes = sizes[:1]
    with host() as there:
        for size, count in sizes:
            yield from _measure(here, there, size, count)


def _measure(here: Host, there: Host, size: str, count: int) -> Iterator[Row]:
    instance = attrs.evolve(here.instance(_NAME, "tcg"), memory=hvcore.parse_size(size))
    plan = here.driver.plan_start(instance)
    memory = int(instance.memory)

    def ours() -> tuple[float, float]:
        here.driver.start_instance(instance)
        pid = here.driver.get_instance_info(_NAME).pid
        assert pid is not None
        _fill(pid, memory)
        events = os.open(os.path.join(_directory(here), "events"), os.O_RDONLY)
        try:
            begun = time.perf_counter()
            hvcore.migrate(here.driver, there.driver, _NAME, _POLICY, address="127.0.0.1")
            took = time.perf_counter() - begun
            # Its directory has gone.
            stopped = _last(os.pread(events, 1 << 20, 0).decode(), "STOP")
        finally:
            os.close(events)
        with open(os.path.join(_directory(there), "events"), encoding="utf-8") as file:
            pause = _last(file.read(), "RESUME") - stopped
        there.driver.stop_instance(_NAME, force=True)
        return took, pause

    def bare() -> tuple[float, float]:
        with BareQemu(plan) as source, BareQemu(plan, ("-incoming", "defer")) as destination:
            source.start()
            _fill(source.pid, memory)
            begun = time.perf_counter()
            destination.spawn()
            pause = _send(source.monitor, destination.monitor)
            source.stop()
            return time.perf_counter() - begun, pause

    whole, pause = side_by_side(ours, bare, count)
    for name, found in (("from call to return", whole), ("pause of the guest", pause)):
        yield Row(
            name=f"migration of {size}, {name}",
            unit="ms",
            **found.scaled(1e3),
            against="QEMU, migrate, cont, SIGTERM",
            samples=count,
            budget="1.05 x",
        )


def _send(source_path: str, destination_path: str) -> float:
    """Send a guest with as few commands as there can be; returns for how long it paused."""
    deadline = Deadline.after(_PATIENCE)
    parameters = {"max-bandwidth": _BANDWIDTH}
    with (
        QmpClient.connect(source_path, deadline) as source,
        QmpClient.connect(destination_path, deadline) as destination,
    ):
        for side in (destination, source):
            side.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES}, deadline=deadline)
        source.execute("migrate-set-parameters", parameters, deadline=deadline)
        destination.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"}, deadline=deadline)
        (address,) = destination.execute("query-migrate", deadline=deadline)["socket-address"]
        source.execute("migrate", {"uri": f"tcp:127.0.0.1:{address['port']}"}, deadline=deadline)
        for side in (source, destination):
            side.wait_event(_is_completed, deadline)
        stopped = source.wait_event(lambda event: event["event"] == "STOP", deadline)
        destination.execute("cont", deadline=deadline)
        resumed = destination.wait_event(lambda event: event["event"] == "RESUME", deadline)
    return _time(resumed) - _time(stopped)


def _is_completed(event: Any) -> bool:
    return bool(event["event"] == "MIGRATION" and event["data"]["status"] == "completed")


def _time(event: Any) -> float:
    return float(event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6)


def _fill(pid: int, memory: int) -> None:
    """Fill the memory that a guest does not use with what cannot be compressed, so that all of it has to be sent."""
    if os.geteuid() != 0:
        return
    with open(f"/proc/{pid}/maps", encoding="ascii") as file:
        ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in file if " rw-p " in line]
    begin = next(low for low, high in ranges if memory <= high - low < memory + (64 << 20))
    block = os.urandom(_BLOCK)
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY)
    try:
        for offset in range(_UNTOUCHED, memory, _BLOCK):
            os.pwrite(fd, block, begin + offset)
    finally:
        os.close(fd)


def _directory(side: Host) -> str:
    return os.path.join(side.driver.directories.state, "instances", _NAME)


def _last(events: str, name: str) -> float:
    """When QEMU last reported something."""
    return max(event.time for event in parse_events(events) if event.name == name)
