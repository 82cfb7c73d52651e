"""Two hosts: an instance moves from one to the other, and nobody may ever see it run on both."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline, MigrationInfo, MigrationPhase, MigrationPolicy, MigrationStatus, MigrationTarget
from hvcore_kvm.events import parse_events
from hvcore_kvm.qmp import QmpClient

PATIENCE = 60.0


@attrs.define
class Pair:
    """Two hosts, and an instance that is on its way from the first to the second."""

    source: Any
    destination: Any
    directory: Path
    killed: dict[str, float] = attrs.field(factory=dict)

    def sides(self) -> Mapping[str, Any]:
        return {"source": self.source, "destination": self.destination}

    def start(self, **changes: Any) -> Any:
        """Start a guest on the source; returns its console. Its disk is on storage that both have."""
        disk = self.directory / "shared.raw"
        disk.write_bytes(bytes(1 << 20))
        params = {"cpu_model": "qemu64", **changes.pop("params", {})}
        disks = changes.pop("disks", [hvcore.Disk(path=str(disk), format="raw")])
        console = self.source.start(self.source.instance(params=params, disks=disks, **changes))
        self.keep("source")
        return console

    def write_tokens(self, console: Any) -> None:
        """Have a guest write tokens to its first disk (IDE) from now on; it has written one already."""
        while not self.last_token(console):
            console.send(b"w")
            console.expect(b"ok")
        console.send(b"w")
        console.expect(b"ok")

    def last_token(self, console: Any) -> int:
        """Have a guest write no more tokens; returns the last one."""
        console.send(b"W")
        console.expect(b"token=")
        return int(console.expect(b"\r\n"), 16)

    def keep(self, side: str) -> None:
        """Keep what a QEMU reports, also when its directory has gone."""
        host = self.sides()[side]
        events = Path(host.driver.directories.state) / "instances/web1/events"
        kept, found = self._elsewhere(side), self.directory / f"{side}.events"
        with contextlib.suppress(FileExistsError):
            try:
                os.link(events, found)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # The host has a file system of its own.
                os.link(events, kept)
                found.symlink_to(kept)

    def _elsewhere(self, side: str) -> Path:
        place: Path = self.sides()[side].directory
        return place / f"{side}.events"

    def forget(self, side: str) -> None:
        """What a QEMU has reported, before another is started there."""
        (self.directory / f"{side}.events").unlink()
        self._elsewhere(side).unlink(missing_ok=True)

    def accept(self, policy: MigrationPolicy, info: MigrationInfo | None = None) -> MigrationTarget:
        given = self.source.driver.migration_info("web1") if info is None else info
        target: MigrationTarget = self.destination.driver.accept_instance(given, "127.0.0.1", policy)
        self.keep("destination")
        return target

    def begin(self, policy: MigrationPolicy) -> MigrationInfo:
        """Everything up to the moment when the guest is being sent."""
        info: MigrationInfo = self.source.driver.migration_info("web1")
        target = self.accept(policy, info)
        self.source.driver.migrate_instance("web1", target, policy)
        return info

    def until(self, *phases: MigrationPhase, switch_over: bool = True) -> MigrationStatus:
        """Drive it on until it is in one of some phases."""
        deadline = Deadline.after(PATIENCE)
        while True:
            status: MigrationStatus = self.source.driver.continue_migration(
                "web1", switch_over=switch_over, wait=0.0 if deadline.expired else 1.0
            )
            if status.phase in phases:
                return status
            assert not status.phase.is_final, f"it is {status.phase}: {status.error}"
            assert not deadline.expired, f"it stays {status.phase}"

    def move(self, policy: MigrationPolicy) -> tuple[MigrationInfo, MigrationStatus]:
        """All of it."""
        info = self.begin(policy)
        status = self.until(MigrationPhase.COMPLETED)
        self.destination.driver.finalize_migration_dst(info, True)
        self.source.driver.finalize_migration_source("web1", True)
        return info, status

    def ask(self, side: str, command: str, **arguments: Any) -> Any:
        """Ask a QEMU itself."""
        path = Path(self.sides()[side].driver.directories.state) / "instances/web1/control"
        deadline = Deadline.after(PATIENCE)
        with QmpClient.connect(str(path), deadline) as client:
            return client.execute(command, arguments, deadline=deadline)

    def kill(self, side: str) -> None:
        """Kill a QEMU, and wait until it is dead."""
        import time

        host = self.sides()[side]
        fd = os.pidfd_open(host.pid())
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            assert select.select([fd], [], [], PATIENCE)[0]
        finally:
            os.close(fd)
        self.killed[side] = time.time()

    def runs(self, side: str) -> list[tuple[float, float]]:
        """From when to when the guest ran on a side, as QEMU has written it down."""
        path = self.directory / f"{side}.events"
        found: list[tuple[float, float]] = []
        begun: float | None = None
        for event in parse_events(path.read_text()) if path.exists() else ():
            if event.name == "RESUME" and begun is None:
                begun = event.time
            elif event.name in ("STOP", "SHUTDOWN") and begun is not None:
                found.append((begun, event.time))
                begun = None
        if begun is not None:
            found.append((begun, self.killed.get(side, math.inf)))
        return found

    def never_two(self) -> None:
        """At no moment did it run on both."""
        for begun, ended in self.runs("source"):
            for other_begun, other_ended in self.runs("destination"):
                assert ended <= other_begun or other_ended <= begun, (self.runs("source"), self.runs("destination"))

    def running(self) -> list[str]:
        """Where it runs now."""
        found = []
        for side, host in self.sides().items():
            with contextlib.suppress(hvcore.HypervisorError):
                if host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING:
                    found.append(side)
        return found


class Elsewhere:
    """The driver of a destination that has, at the same paths, files of its own: they are in another directory."""

    def __init__(self, driver: Any, here: Path, there: Path) -> None:
        self._driver = driver
        self._here, self._there = f"{here}/", f"{there}/"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def told(self, info: MigrationInfo, **images: Any) -> MigrationInfo:
        """What a source says, with paths of the destination, and changes of what it says of its images."""
        record = json.loads(json.dumps(info.record).replace(self._here, self._there))
        record["images"] = [{**image, **images} for image in record["images"]]
        return attrs.evolve(info, record=record)

    def accept_instance(self, info: MigrationInfo, address: str, policy: MigrationPolicy) -> MigrationTarget:
        target: MigrationTarget = self._driver.accept_instance(self.told(info), address, policy)
        return target

    def finalize_migration_dst(self, info: MigrationInfo, success: bool) -> Any:
        return self._driver.finalize_migration_dst(self.told(info), success)


@pytest.fixture
def elsewhere(pair: Pair) -> Elsewhere:
    """The destination of a pair, with disks of its own."""
    return Elsewhere(pair.destination.driver, pair.source.directory, pair.destination.directory)


@pytest.fixture
def make_pair(make_host: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """Makes two hosts; when all is over, the guest has never run on both."""
    made: list[Pair] = []

    def make(source: Mapping[str, Any] | None = None, destination: Mapping[str, Any] | None = None) -> Pair:
        for name in ("here", "there"):
            (tmp_path / name).mkdir(exist_ok=True)
        pair = Pair(
            make_host(directory=tmp_path / "here", **(source or {})),
            make_host(directory=tmp_path / "there", **(destination or {})),
            tmp_path,
        )
        made.append(pair)
        return pair

    yield make
    for pair in made:
        pair.never_two()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Makes block devices of this host with something on them; they are gone at the end."""
    made: list[tuple[str, Path]] = []

    def losetup(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["losetup", *words], capture_output=True, text=True, timeout=60, check=False)

    def make(content: bytes) -> str:
        image = tmp_path / f"loop{len(made)}"
        image.write_bytes(content)
        done = losetup("--find", "--show", str(image))
        if done.returncode:
            pytest.skip(f"no loop device can be made: {done.stderr.strip()}")
        made.append((done.stdout.strip(), image))
        return made[-1][0]

    yield make
    for name, image in made:
        done = losetup("--detach", name)
        assert done.returncode == 0, done.stderr
        # One that somebody still has open would stay until that is closed.
        assert losetup("--associated", str(image)).stdout == ""
