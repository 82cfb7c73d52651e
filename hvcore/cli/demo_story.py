"""The story that ``hv demo`` tells: one instance from its check to the proof that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from hvcore.cli.demo_guest import DemoGuest
from hvcore.cli.migration_progress import short_size
from hvcore.cli.narrator import Narrator
from hvcore.cli.queries import info_rows
from hvcore.cli.serial_line import SerialLine, listens
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.migration import migrate
from hvcore.model.instance import Instance
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.state import InstanceInfo, InstanceState

NAME = "demo"

_SILENCE = 1.0
"""Seconds a paused guest is listened to."""

_GRACE = 20.0
"""Seconds the guest is given to power off."""

_END_SECONDS = 5.0


class StoryFailed(Exception):
    """Something was not as the story says."""


class Story:
    """Tells it once.

    Args:
        driver: a driver whose directories are the story's own.
        other: the same on other directories: to it, another host.
        guest: what is run.
        narrator: tells it.
        modelled: the driver has no real processes and consoles.
    """

    def __init__(self, driver: Driver, other: Driver, guest: DemoGuest, narrator: Narrator, *, modelled: bool) -> None:
        self._driver = driver
        self._drivers = (driver, other)
        self._guest = guest
        self._tell = narrator
        self._modelled = modelled
        self._processes: dict[int, int] = {}
        self._console_path: str | None = None

    def tell(self) -> None:
        """Tell it; whatever happens, the instance does not run afterwards.

        Raises:
            HypervisorError: an operation failed.
            GuestSilent: the guest did not say what was waited for.
            StoryFailed: something else was not as it should be.
        """
        definition = self._checked()
        try:
            self._first_life(definition)
            self._move()
            self._second_life()
            self._end()
        finally:
            self._make_sure()
            for pidfd in self._processes.values():
                os.close(pidfd)

    def _checked(self) -> Instance:
        definition = self._guest.definition(NAME)
        self._tell.step("Check its definition, all of it at once")
        findings = self._driver.validate_parameters(definition)
        for finding in findings:
            self._tell.say(str(finding))
        if not findings.ok:
            raise StoryFailed("this host cannot run the guest of the demo")
        self._tell.proof("no errors in its syntax, and nothing on this host against it")
        self._tell.step("Plan the start; nothing is touched yet")
        plan = self._driver.plan_start(definition, paused=True)
        for note in plan.notes:
            self._tell.say(note)
        words = [" ".join(option.words) for option in plan.options]
        self._tell.say(f"{plan.program} with {len(words)} options, among them")
        telling = [word for word in words if word.startswith(("-machine", "-accel", "-sandbox", "-m ", "-netdev"))]
        for word in telling or words[:5]:
            self._tell.quote(word)
        for step in plan.steps:
            self._tell.say(f"- {step}")
        return Instance(**definition)

    def _first_life(self, definition: Instance) -> None:
        self._tell.step("Start it, paused before its first instruction")
        self._driver.start_instance(definition, paused=True, timeout=30.0)
        info = self._expect(InstanceState.PRELAUNCH)
        self._tell.proof(f"it is {info.state.value}{f' in process {info.pid}' if info.pid else ''}")
        with self._line() as line:
            attached = "Attach to its serial console, then let it run: not a byte is missed"
            self._tell.step(attached if line is not None else "Let it run")
            self._driver.resume_instance(NAME)
            if line is not None:
                self._guest.wait_ready(line, from_start=True)
                self._tell.proof("the guest is up")
            self._tell.step("Ask what it is doing")
            info = self._expect(InstanceState.RUNNING)
            for name, value in info_rows(info):
                if value:
                    self._tell.say(f"{name:<12}{value}")
            self._pause(line)
            self._talk(line)

    def _pause(self, line: SerialLine | None) -> None:
        self._tell.step("Pause it")
        self._driver.pause_instance(NAME)
        self._expect(InstanceState.PAUSED)
        self._tell.proof("it is paused")
        if line is not None:
            line.forget()
            line.send(self._guest.probe)
            if not line.stays_silent(_SILENCE):
                raise StoryFailed("the guest answered although it is paused")
            self._tell.proof(f"it was asked something, and said nothing for {_SILENCE:g} s")
        self._tell.step("Resume it")
        self._driver.resume_instance(NAME)
        self._expect(InstanceState.RUNNING)
        if line is not None:
            self._guest.hear(line)
            self._tell.proof("it went on where it was, and answers what it was asked")

    def _talk(self, line: SerialLine | None) -> None:
        if line is None:
            return
        self._tell.step("Talk to it")
        self._guest.ask(line)
        self._tell.proof("it answers")

    def _move(self) -> None:
        source, destination = self._drivers
        self._tell.step("Move it to another host while it runs: here, one with directories of its own beside it")
        moved = migrate(source, destination, NAME, MigrationPolicy(tls=None), address="127.0.0.1")
        self._driver = destination
        info = self._expect(InstanceState.RUNNING)
        self._tell.proof(f"it runs there{f' in process {info.pid}' if info.pid else ''}")
        still = "" if moved.downtime is None else f"; it stood still for {moved.downtime * 1000:.0f} ms"
        self._tell.say(f"{short_size(moved.transferred)} were sent in {moved.total_time:.2f} s{still}")
        self._tell.say(f"The host it left says: {source.get_instance_info(NAME).reason.detail}.")
        source.cleanup_instance(NAME)
        if source.list_instances().instances:
            raise StoryFailed("the host it left still lists it")
        self._tell.proof("that host has nothing of it any more")
        with self._line() as line:
            if line is not None:
                line.send(self._guest.probe)
                self._guest.hear(line)
                self._tell.proof("it went on where it was, and answers what it was asked")

    def _second_life(self) -> None:
        self._tell.step("Reboot it: press the power button, wait for the guest to power off, start it again")
        with self._line() as old:
            done = self._driver.reboot_instance(NAME, mode="soft", timeout=_GRACE)
            if old is not None:
                old.finish(_END_SECONDS)
        self._tell.say(done.detail)
        info = self._expect(InstanceState.RUNNING)
        if info.pid and len(self._processes) > 1:
            self._tell.proof(f"a new process: {info.pid}")
        with self._line() as line:
            if line is not None:
                self._guest.wait_ready(line, from_start=False)
                self._tell.proof("the guest is up again")
            self._tell.step("Stop it: ask the guest, and wait")
            stopped = self._driver.stop_instance(NAME, timeout=_GRACE)
            if line is not None:
                line.finish(_END_SECONDS)
        self._tell.proof(stopped.detail)

    def _end(self) -> None:
        self._tell.step("Why did it end?")
        info = self._driver.get_instance_info(NAME)
        cause = info.reason.cause.value
        self._tell.say(f"{info.state.value}: {info.reason.detail or cause} ({cause})")
        self._driver.cleanup_instance(NAME)
        self._tell.step("Prove that nothing is left")
        for pid, pidfd in self._processes.items():
            if not select.select([pidfd], [], [], 0.0)[0]:
                raise StoryFailed(f"process {pid} still lives")
            self._tell.proof(f"process {pid} has ended")
        for driver in self._drivers:
            state, data = driver.directories.state, driver.directories.data
            # A driver may keep files about the host; what it keeps about an instance bears its name. A model keeps
            # its world beside its instances.
            left = instance_files(state) if self._modelled else left_files(state)
            if left := left + instance_files(data):
                raise StoryFailed("there is still " + ", ".join(left))
            self._tell.proof(f"no file and no socket of it in {state}, no record in {data}")
        if self._console_path is not None and listens(self._console_path):
            raise StoryFailed(f"somebody listens on {self._console_path}")
        if any(driver.list_instances().instances for driver in self._drivers):
            raise StoryFailed("a driver still lists it")
        self._tell.proof("'hv list' shows no instance")

    def _expect(self, state: InstanceState) -> InstanceInfo:
        info = self._driver.get_instance_info(NAME)
        if info.state is not state:
            raise StoryFailed(f"it is {info.state.value}, not {state.value}: {info.reason.detail}")
        if info.pid is not None and info.pid not in self._processes and not self._modelled:
            # Held while it lives: this descriptor can never come to mean another process.
            self._processes[info.pid] = os.pidfd_open(info.pid)
        return info

    @contextlib.contextmanager
    def _line(self) -> Iterator[SerialLine | None]:
        if self._modelled:
            yield None
            return
        self._console_path = self._driver.get_instance_console(NAME, "serial").socket_path
        if self._console_path is None:
            raise StoryFailed("the serial console has no socket")
        with SerialLine(self._console_path, self._tell.quote) as line:
            yield line

    def _make_sure(self) -> None:
        for driver in self._drivers:
            try:
                driver.stop_instance(NAME, force=True, timeout=_GRACE)
            except HypervisorError as error:
                self._tell.trouble(f"it could not be stopped by force: {error}")


def left_files(directory: str) -> list[str]:
    """Everything below a directory that is not a directory."""
    return [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]


def instance_files(directory: str) -> list[str]:
    """Those of them that bear the name of the instance."""
    return [path for path in left_files(directory) if NAME in os.path.relpath(path, directory)]
