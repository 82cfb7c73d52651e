"""The modelled hypervisor: processes with guests, their power buttons, and time. Also what tests make happen in it.

It is reality; what the driver believes about it is in its records, and the two can drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import attrs

from hvcore import Cause, Driver, EventBatch, HypervisorRefused, Instance, InstanceState, SpawnFailed
from hvcore_fake import guest, yielding
from hvcore_fake.faults import FaultPlan
from hvcore_fake.parameters import guest_parameters, without_secrets
from hvcore_fake.plugging import Plugging, attached_of, backends_of, media_of
from hvcore_fake.processes import Counter, process_key, process_keys
from hvcore_fake.record import Process
from hvcore_fake.sending import next_phase

__all__ = ["FIRST_PID", "Counter", "World", "process_key", "process_keys"]

_PIDS = "data/processes.json"
_POWERCYCLES = "data/powercycles.json"

FIRST_PID = 2**22
"""Above every process id Linux gives out (``PID_MAX_LIMIT``), so that a modelled one is never taken for a real one."""


class World(Plugging):
    """The modelled hypervisor below some directories. All objects on the same directories see the same world.

    Args:
        directories: those of the driver.
        faults: the plan that loses events; give the one of the driver's settings to lose those a test provokes.
    """

    @classmethod
    def of(cls, driver: Driver, faults: FaultPlan | None = None) -> Self:
        """The world that a loaded fake driver drives."""
        return cls(driver.directories, faults)

    # What tests make happen

    def advance(self, seconds: float) -> None:
        """Let time pass; guests do in it what they are about to do, in order."""
        self._pass(self.clock() + seconds, lambda: False)

    def guest_powers_off(self, name: str) -> None:
        """The guest powers itself off, without having been asked."""
        with self.store.locked():
            self._power_off(self._living(name), asked=False)

    def guest_panics(self, name: str) -> None:
        """The guest's kernel panics; ``on_panic`` says what becomes of the process."""
        with self.store.locked():
            self._panic(self._living(name))

    def disk_fails(self, name: str) -> None:
        """A disk reports an error, and the guest is stopped until it is resumed."""
        with self.store.locked():
            process = self._living(name)
            failed = guest.freeze(process, self.clock(), InstanceState.IO_ERROR, Cause.IO_ERROR)
            self.events.append(name, "BLOCK_IO_ERROR", operation="write", action="stop")
            self.events.append(name, "STOP")
            self._write(failed)

    def kill(self, name: str) -> None:
        """The hypervisor process is killed, as by SIGKILL: it ends without a word."""
        with self.store.locked():
            self._remove(self._living(name))

    def hang(self, name: str) -> None:
        """The hypervisor process stops answering requests; its guest runs on."""
        with self.store.locked():
            self._write(attrs.evolve(self._living(name), answering=False))

    def answer_again(self, name: str) -> None:
        """The hypervisor process answers requests again."""
        with self.store.locked():
            self._write(attrs.evolve(self._living(name), answering=True))

    @property
    def powercycles(self) -> int:
        """How often the driver was asked to restart the host."""
        record = self.store.read(_POWERCYCLES, Counter)
        return 0 if record is None else record.count

    # What the driver sees and does

    def spawn(self, instance: Instance, *, incoming: bool = False, takes: tuple[str, ...] = ()) -> Process:
        """Begin a process whose guest has not yet run its first instruction, or comes from another host.

        Raises:
            SpawnFailed: it cannot open what is behind a device.
        """
        try:
            backends = backends_of(instance)
        except HypervisorRefused as error:
            words = f"{instance.name}: {error.text}"
            raise SpawnFailed(f"the process ended before it was ready: {words}", exit_status=1, output=words) from error
        counted = self.store.read(_PIDS, Counter)
        count = 0 if counted is None else counted.count
        self.store.write(_PIDS, Counter(count=count + 1))
        process = Process(
            name=instance.name,
            pid=FIRST_PID + count,
            memory=instance.memory,
            vcpus=instance.vcpus,
            started=self.clock(),
            since=self.clock(),
            events_before=self.events.last,
            memory_at=self.clock(),
            memory_max=instance.memory,
            attached=attached_of(instance),
            backends=backends,
            media=media_of(instance),
            behaviour=guest_parameters(without_secrets(instance)),
            shown=tuple(shown for shown in (instance.uuid, *(nic.mac for nic in instance.nics)) if shown is not None),
            state=InstanceState.INCOMING if incoming else InstanceState.PRELAUNCH,
            cause=Cause.MIGRATION if incoming else Cause.STARTED_PAUSED,
            takes=takes,
        )
        process = self._opened(process, incoming=incoming)
        self.clock.set(self.clock())
        self._write(process)
        return process

    def load(self, name: str, guest: Process) -> None:
        """Give a process that waits the state of a guest that was frozen."""
        waiting = self.process(name)
        if waiting is not None:
            # What it has run so far, it has run in another process.
            stood = 0.0 if guest.frozen is None else guest.frozen - waiting.started
            arrived = attrs.evolve(guest, pid=waiting.pid, started=waiting.started, since=self.clock(), stood=stood)
            tracked = waiting.checkpoints
            arrived = attrs.evolve(arrived, events_before=waiting.events_before, stopping=False, clients=())
            self._write(attrs.evolve(arrived, checkpoints=tracked))

    def resume(self, name: str) -> None:
        """Let the guest run. Without a process, nothing happens: so it is after a lie."""
        process = self.process(name)
        if process is not None:
            self._write(guest.thaw(process, self.clock()))
            self.events.append(name, "RESUME")

    def pause(self, name: str) -> None:
        """Stop the guest's virtual CPUs."""
        process = self._living(name)
        self._write(guest.freeze(process, self.clock(), InstanceState.PAUSED, Cause.HOST_PAUSE))
        self.events.append(name, "STOP")

    def reset(self, name: str) -> None:
        """Press the reset button; a guest that did not run waits before its first instruction, as in QEMU.

        Devices that it has been asked for are gone after it, as in QEMU too.
        """
        process = self._living(name)
        wanted = [device.ident for device in process.attached if device.asked is not None]
        for ident in wanted:
            self.events.append(name, "DEVICE_DELETED", device=ident)
        process = yielding.without(process, *wanted)
        now = self.clock()
        pressed = attrs.evolve(process, resets=process.resets + 1, since=now)
        if process.state is InstanceState.RUNNING:
            again = guest.boot(pressed, now)
        else:
            again = attrs.evolve(
                pressed,
                state=InstanceState.PRELAUNCH,
                cause=Cause.STARTED_PAUSED,
                booted=None,
                powers_off=None,
                panics=None,
                asked=False,
                frozen=None,
            )
        self._write(again)
        self.events.append(name, "RESET", guest=False, reason="host-qmp-system-reset")

    def press(self, name: str) -> None:
        """Press the power button and remember that somebody waits."""
        process = self.process(name)
        if process is not None and process.answering:
            self._write(attrs.evolve(guest.press(process, self.clock()), stopping=True))
            self.events.append(name, "POWERDOWN")

    def forget_press(self, name: str) -> None:
        """Nobody waits any longer; the guest may power off all the same."""
        process = self.process(name)
        if process is not None and process.stopping:
            self._write(attrs.evolve(process, stopping=False))

    def quit(self, name: str) -> None:
        """End the process, as the driver does."""
        process = self.process(name)
        if process is not None:
            self.events.append(name, "SHUTDOWN", guest=False, reason="host-qmp-quit")
            self._closed(process)

    def wait_for_end(self, name: str, seconds: float) -> bool:
        """Let time pass until a process has ended, at most so long; says whether it has."""
        self._pass(self.clock() + seconds, lambda: self.process(name) is None)
        return self.process(name) is None

    def wait_for_event(self, cursor: str | None, seconds: float) -> EventBatch:
        """The events after a cursor; when there are none, let time pass until a guest makes one, if one will."""
        with self.store.locked():
            batch = self.events.after(cursor)
            if not batch.events and any(due <= self.clock() + seconds for due in self._due()):
                self._pass(min(self._due()), lambda: False)
                batch = self.events.after(cursor)
        return batch

    def wait_for_phase(self, name: str, seconds: float) -> None:
        """Let time pass until the migration of an instance is in another phase, at most so long."""
        before = self._phase(name)
        self._pass(self.clock() + seconds, lambda: self._phase(name) is not before)

    def wait_for_leave(self, name: str, ident: str, seconds: float) -> None:
        """Let time pass until the guest has let go of a device or refused to, at most so long."""

        def answered() -> bool:
            process = self.process(name)
            device = None if process is None else process.device(ident)
            return device is None or device.refused

        self._pass(self.clock() + seconds, answered)

    def wait_for_memory(self, name: str, seconds: float) -> None:
        """Let time pass until the guest has the memory it is to have, at most so long."""
        process = self.process(name)
        needed = None if process is None else yielding.time_to_reach(process, self.clock())
        self._pass(self.clock() + (seconds if needed is None else min(needed, seconds)), lambda: False)

    def note_powercycle(self) -> None:
        """The driver was asked to restart the host."""
        with self.store.locked():
            self.store.write(_POWERCYCLES, Counter(count=self.powercycles + 1))

    # Time

    def _due(self) -> list[float]:
        return [doing[0] for process in self.processes() if (doing := _next_doing(process)) is not None]

    def _pass(self, until: float, enough: Callable[[], bool]) -> None:
        with self.store.locked():
            while not enough():
                coming = [(doing, p) for p in self.processes() if (doing := _next_doing(p)) is not None]
                first = min(coming, key=lambda entry: (entry[0], entry[1].name), default=None)
                if first is None or first[0][0] > until:
                    self.clock.set(until)
                    return
                (at, what), process = first
                self.clock.set(at)
                if what == "migration":
                    self._migrate(process)
                elif what == "unplug":
                    self._let_go(process, at)
                elif what == "panic":
                    self._panic(process)
                else:
                    self._power_off(process, asked=process.asked)

    def _power_off(self, process: Process, *, asked: bool) -> None:
        self.events.append(process.name, "SHUTDOWN", guest=True, reason="guest-shutdown", asked=asked)
        self._closed(process)

    def _panic(self, process: Process) -> None:
        ends = process.behaviour.on_panic == "shutdown"
        self.events.append(process.name, "GUEST_PANICKED", action="poweroff" if ends else "pause")
        if ends:
            self.events.append(process.name, "SHUTDOWN", guest=True, reason="guest-panic")
            self._closed(process)
        else:
            self._write(guest.freeze(process, self.clock(), InstanceState.PANICKED, Cause.GUEST_PANIC))


def _next_doing(process: Process) -> tuple[float, str] | None:
    """When something will next happen to a process by itself, and what."""
    moving = (math.inf if process.sending is None else next_phase(process, process.sending), "migration")
    doing = guest.next_doing(process)
    return min(doing or moving, moving) if moving[0] < math.inf else doing
