"""Two modelled hosts, and a look at both from outside: where a guest runs, whatever their drivers say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import hvcore
from hvcore_fake import Fault, FaultPlan, World

ADDRESS = "192.0.2.2"
POLICY = {"tls": False, "max_bandwidth": "256MiB", "downtime_limit": "100ms"}
WEB = hvcore.Instance(name="web1", memory="256MiB", params={"dirty_rate": "16MiB"})


class Hosts:
    """Host applications on two hosts; each side can be killed and loaded again.

    Args:
        directory: where both keep their state.
        faults: faults of the source, and of the destination.
    """

    def __init__(self, directory: Path, *faults: Iterable[Fault]) -> None:
        self._directory = directory
        self._loaded: list[hvcore.Driver] = []
        self.plans = [FaultPlan(given) for given in (*faults, (), ())[:2]]
        self.load()

    def load(self) -> None:
        """Load both drivers, as after a crash of both host applications."""
        self.source, self.destination = (self._load(side) for side in ("a", "b"))

    def _load(self, side: str) -> hvcore.Driver:
        roots = {f"{kind}_directory": str(self._directory / side / kind) for kind in ("state", "data", "cache")}
        plan = self.plans["ab".index(side)]
        self._loaded.append(hvcore.load_driver("fake", {**roots, "host_id": side, "faults": plan}))
        return self._loaded[-1]

    @property
    def worlds(self) -> tuple[World, World]:
        """The two worlds."""
        return World.of(self.source), World.of(self.destination)

    @property
    def runners(self) -> str:
        """The sides on which the guest runs: ``a``, ``b``, both, or none."""
        found = [world.process("web1") for world in self.worlds]
        running = (process is not None and process.state is hvcore.InstanceState.RUNNING for process in found)
        return "".join(side for side, runs in zip("ab", running, strict=True) if runs)

    @property
    def processes(self) -> str:
        """The sides on which a process of it lives."""
        return "".join(s for s, world in zip("ab", self.worlds, strict=True) if world.process("web1") is not None)

    def watch(self, status: hvcore.MigrationStatus | None = None) -> None:
        """Look, as progress is reported."""
        assert self.runners != "ab"

    def migrate(self, **given: object) -> hvcore.MigrationResult:
        """Move it, looking at each report."""
        wanted = {"policy": POLICY, "on_progress": self.watch, **given}
        return hvcore.migrate(self.source, self.destination, "web1", address=ADDRESS, **wanted)  # type: ignore[arg-type]

    def recover(self) -> None:
        """Put both sides in order."""
        for driver in (self.destination, self.source):
            driver.recover("web1")

    def close(self) -> None:
        """Let go of all drivers."""
        for driver in self._loaded:
            driver.close()
