"""The processes of a modelled hypervisor, each a file: what is read and written of them, and where."""

from __future__ import annotations

import attrs

from hvcore import Directories, InstanceState, NotRunning, boot_id
from hvcore_fake import link
from hvcore_fake.clock import VirtualClock
from hvcore_fake.events import EventLog, events_key
from hvcore_fake.faults import FaultPlan
from hvcore_fake.link import PROCESSES
from hvcore_fake.record import Process
from hvcore_fake.store import Store

_BOOTS = "data/boots.json"


@attrs.frozen(kw_only=True)
class Counter:
    """How many of something there have been."""

    count: int


class Processes:
    """The processes below some directories.

    Args:
        directories: those of the driver.
        faults: the plan that loses events.
    """

    def __init__(self, directories: Directories, faults: FaultPlan | None = None) -> None:
        self.store = Store(directories)
        self.clock = VirtualClock(self.store)
        self.events = EventLog(self.store, self.clock, faults or FaultPlan())

    def process(self, name: str) -> Process | None:
        """The process of an instance, ``None`` when none lives."""
        process = self.store.read(process_key(name), Process)
        if process is None or process.state is not InstanceState.INCOMING:
            return process
        return link.received(self.store, process, self.address(name))

    def address(self, name: str) -> str:
        """Where a process of an instance can be reached from other hosts."""
        return self.store.path(process_key(name))

    def processes(self) -> tuple[Process, ...]:
        """All processes that live, by name."""
        names = self.store.names(PROCESSES, ".json")
        return tuple(process for name in names if (process := self.process(name)) is not None)

    def host_restarts(self) -> None:
        """The host is restarted: all processes are gone without a word, and it is another boot."""
        with self.store.locked():
            for process in self.processes():
                self._remove(process)
            record = self.store.read(_BOOTS, Counter)
            self.store.write(_BOOTS, Counter(count=1 if record is None else record.count + 1))

    @property
    def boot(self) -> str:
        """Which boot of the modelled host this is."""
        record = self.store.read(_BOOTS, Counter)
        return boot_id() if record is None else f"{boot_id()}+{record.count}"

    def _living(self, name: str) -> Process:
        process = self.process(name)
        if process is None:
            raise NotRunning("no modelled process of it lives", instance=name)
        return process

    def _write(self, process: Process) -> None:
        self.store.write(process_key(process.name), process)

    def _remove(self, process: Process) -> None:
        self.store.remove(link.connection_key(process.name), process_key(process.name))


def process_key(name: str) -> str:
    """Where the process of an instance is."""
    return f"{PROCESSES}{name}.json"


def process_keys(name: str) -> tuple[str, ...]:
    """All that a process of an instance writes."""
    return (process_key(name), f"data/instances/{name}/", events_key(name), checkpoints_key(name))


def checkpoints_key(name: str) -> str:
    """Where what images keep of the checkpoints of an instance is."""
    return f"data/instances/{name}/checkpoints.json"
