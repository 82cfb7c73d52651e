"""Moving an instance between two drivers on one host, beside the bare commands of QEMU's monitors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import attrs

import hvcore
from hvcore import Deadline, MigrationPhase, MigrationPolicy, MigrationTarget, Size
from hvcore_kvm.events import parse_events
from hvcore_kvm.qmp import QmpClient
from tests.bench.host import Host, host
from tests.bench.rows import Row, side_by_side

_PATIENCE = 60.0
_NAME = "moving"
_POLICY = MigrationPolicy(tls=None, max_bandwidth=Size(1 << 30))


def measure(here: Host, *, quick: bool) -> Iterator[Row]:
    """A guest that runs is sent and let run: all of it, and how long it did not run."""
    count = 2 if quick else 9
    with host() as there:
        instance = attrs.evolve(here.instance(_NAME, "tcg"), memory=hvcore.parse_size("64MiB"))

        def stage(send: Callable[[MigrationTarget, hvcore.MigrationInfo], None]) -> tuple[float, float]:
            here.driver.start_instance(instance)
            info = here.driver.migration_info(_NAME)
            target = there.driver.accept_instance(info, "127.0.0.1", _POLICY)
            begun = time.time()
            send(target, info)
            took = _last(there, "RESUME") - begun
            pause = _last(there, "RESUME") - _last(here, "STOP")
            for side in (here, there):
                side.driver.stop_instance(_NAME, force=True)
            return took, pause

        def ours(target: MigrationTarget, info: hvcore.MigrationInfo) -> None:
            status = here.driver.migrate_instance(_NAME, target, _POLICY)
            while not status.phase.is_final:
                status = here.driver.continue_migration(_NAME, wait=_PATIENCE)
            if status.phase is not MigrationPhase.COMPLETED:
                raise RuntimeError(f"it is {status.phase}: {status.error}")
            there.driver.finalize_migration_dst(info, True)

        def bare(target: MigrationTarget, info: hvcore.MigrationInfo) -> None:
            deadline = Deadline.after(_PATIENCE)
            capabilities = [{"capability": name, "state": True} for name in ("return-path", "events")]
            with (
                QmpClient.connect(_monitor(here), deadline) as source,
                QmpClient.connect(_monitor(there), deadline) as destination,
            ):
                source.execute("migrate-set-capabilities", {"capabilities": capabilities}, deadline=deadline)
                source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30}, deadline=deadline)
                source.execute("migrate", {"uri": f"tcp:{target.address}:{target.port}"}, deadline=deadline)
                source.wait_event(
                    lambda event: event["event"] == "MIGRATION" and event["data"]["status"] == "completed", deadline
                )
                while destination.execute("query-status", deadline=deadline)["status"] == "inmigrate":
                    continue
                destination.execute("cont", deadline=deadline)

        whole, pause = side_by_side(lambda: stage(ours), lambda: stage(bare), count)
    for name, found in (("migration, sent and running", whole), ("migration, pause of the guest", pause)):
        yield Row(
            name=name,
            unit="ms",
            **found.scaled(1e3),
            against="migrate, wait, cont",
            samples=count,
            budget="1.05 x",
        )


def _directory(side: Host) -> str:
    return os.path.join(side.driver.directories.state, "instances", _NAME)


def _monitor(side: Host) -> str:
    return os.path.join(_directory(side), "control")


def _last(side: Host, name: str) -> float:
    """When QEMU last reported something."""
    with open(os.path.join(_directory(side), "events"), encoding="utf-8") as file:
        return max(event.time for event in parse_events(file.read()) if event.name == name)
