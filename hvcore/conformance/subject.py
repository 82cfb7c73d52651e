"""The driver under test, behind a facade that remembers every instance and driver, and puts everything away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.census import take_census
from hvcore.conformance.failure import ConformanceFailure
from hvcore.conformance.profile import ConformanceProfile
from hvcore.driver import Driver
from hvcore.errors import HypervisorError, InstanceNotFound
from hvcore.model.instance import Disk, Instance
from hvcore.model.state import InstanceInfo, InstanceState
from hvcore.qcow2_image import make_qcow2

Loader = Callable[[Mapping[str, Any], Sequence[object]], Driver]
"""Loads the driver under test with these settings and extensions."""

PATIENCE = 30.0
"""Seconds after which what should happen is taken not to happen; no check is faster or slower for it."""


def loader_of(load: Callable[..., Driver], name: str) -> Loader:
    """A loader from `hvcore.load_driver` and the name of the driver."""

    def load_one(settings: Mapping[str, Any], extensions: Sequence[object]) -> Driver:
        return load(name, settings, extensions=extensions)

    return load_one


class Subject:
    """A driver on directories of its own.

    Args:
        load: loads the driver.
        profile: how to test it.
        directory: an empty directory for everything of this check.
        cache: a directory for what can be made again; many checks may share one.

    Attributes:
        driver: the driver, loaded.
        profile: how to test it.
        directory: the directory.
    """

    def __init__(self, load: Loader, profile: ConformanceProfile, directory: str, cache: str) -> None:
        self._load = load
        self.profile = profile
        self.directory = directory
        self._roots = {kind: os.path.join(directory, kind) for kind in ("state", "data")}
        self._cache = cache
        self._names: list[str] = []
        self._logs: set[str] = set()
        self._drivers: list[Driver] = []
        self._others: list[Driver] = []
        self._before = take_census(None, profile)
        self.driver = self.load()

    # Making things

    def load(self, *extensions: object, **settings: Any) -> Driver:
        """Load the driver once more on the same directories: another host application."""
        roots = {f"{kind}_directory": path for kind, path in (*self._roots.items(), ("cache", self._cache))}
        driver = self._load({**roots, **self.profile.settings, **settings}, extensions)
        self._drivers.append(driver)
        return driver

    def other_host(self) -> Driver:
        """Load the driver on directories of their own, as another host would have; what it runs is put away too."""
        roots = {f"{kind}_directory": os.path.join(self.directory, "other", kind) for kind in self._roots}
        settings = {**roots, "cache_directory": self._cache, **self.profile.settings}
        driver = self._load(settings, ())
        self._drivers.append(driver)
        self._others.append(driver)
        return driver

    def restart(self, between: Callable[[], object]) -> None:
        """End every host application, let something happen, and load the driver again."""
        for driver in self._drivers:
            driver.close()
        between()
        self.driver = self.load()

    def name(self) -> str:
        """A name that no instance has had."""
        self._names.append(f"conformance{len(self._names) + 1}")
        return self._names[-1]

    def definition(self, name: str | None = None, **changes: Any) -> Instance:
        """A definition the driver can run."""
        return attrs.evolve(self.profile.definition(name or self.name(), self.directory), **changes)

    def start(self, *, ready: bool = False, deaf: bool = False, paused: bool = False, **changes: Any) -> str:
        """Start an instance and return its name.

        Args:
            ready: wait until its guest heeds the power button.
            deaf: its guest does not heed the power button.
            paused: leave the guest paused.
            **changes: of the definition.
        """
        definition = self.definition(**changes)
        self.driver.start_instance(definition, paused=paused)
        if self.driver.description.claim(Capability.CONSOLE).offered:
            self._logs.add(self.driver.get_instance_console(definition.name).log_path or "")
        if ready or deaf:
            self.wait_ready(definition.name)
        if deaf:
            self.provoke("deafen", definition.name)
        return definition.name

    def raw_disk(self, name: str = "disk.raw", size: int = 1 << 20) -> Disk:
        """A raw disk that is there, of zeros."""
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.truncate(size)
        return Disk(path=path, format="raw")

    def qcow2_disk(self, name: str = "disk.qcow2", size: int = 1 << 20) -> Disk:
        """A qcow2 disk that is there and holds nothing; it can hold snapshots."""
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            make_qcow2(file.fileno(), size)
        return Disk(path=path, format="qcow2")

    def missing_disk(self, name: str = "missing.raw") -> Disk:
        """A raw disk that is not there."""
        return Disk(path=os.path.join(self.directory, name), format="raw")

    # Looking from outside

    def lives(self, name: str) -> bool:
        """A hypervisor process of the instance lives, whatever the driver says."""
        return self.profile.lives(self.driver, name)

    def provoke(self, what: str, name: str) -> None:
        """Make something happen to an instance; ``what`` is a field of `ConformanceProfile`."""
        getattr(self.profile, what)(self.driver, name)

    def wait_ready(self, name: str) -> None:
        """Return when the guest heeds the power button."""
        if self.profile.wait_ready is not None:
            self.profile.wait_ready(self.driver, name)

    def info(self, name: str, driver: Driver | None = None) -> InstanceInfo:
        """What the driver says of an instance."""
        return (driver or self.driver).get_instance_info(name)

    def state(self, name: str, driver: Driver | None = None) -> InstanceState | None:
        """The state the driver reports, ``None`` when it has no account of the instance."""
        try:
            return self.info(name, driver).state
        except InstanceNotFound:
            return None

    def files(self, driver: Driver | None = None) -> dict[str, bytes]:
        """The files in the driver's directories and what they hold; those of the other host with its driver.

        The locks are hvcore's, and what a guest says on its console comes when the guest says it: both are left out.
        """
        found = {}
        for kind, root in self._roots.items():
            root = root if driver is None else getattr(driver.directories, kind)
            for folder, _, names in os.walk(root):
                if os.path.basename(folder) == "locks":
                    continue
                for name in names:
                    path = os.path.join(folder, name)
                    if path not in self._logs:
                        found[f"{kind}{path.removeprefix(root)}"] = _content(path)
        return found

    def files_about(self, name: str) -> tuple[str, ...]:
        """Files and directories that are named after an instance, in the driver's directories."""
        found = []
        other = os.path.join(self.directory, "other")
        for root in (*self._roots.values(), *(os.path.join(other, kind) for kind in self._roots)):
            for folder, folders, names in os.walk(root):
                found += [os.path.join(folder, entry) for entry in (*folders, *names) if name in _words(entry)]
        return tuple(sorted(found))

    # Putting away

    def close(self) -> None:
        """Stop and forget every instance, and close every driver.

        Raises:
            ConformanceFailure: that did not succeed, or something is left.
        """
        hosts = (self.driver, *self._others)
        problems = [problem for name in self._names for driver in hosts for problem in self._put_away(driver, name)]
        for driver in self._drivers:
            driver.close()
        left = [path for name in self._names for path in self.files_about(name)]
        problems += [f"left after cleanup: {', '.join(left)}"] if left else []
        problems += self._before.grown(take_census(self._drivers[0] if self._drivers else None, self.profile))
        if problems:
            raise ConformanceFailure("; ".join(problems), "LC-07")

    def _put_away(self, driver: Driver, name: str) -> list[str]:
        problems = []
        if self.profile.answer_again is not None and self.profile.lives(driver, name):
            self.profile.answer_again(driver, name)
        operations: tuple[Callable[[], object], ...] = (
            lambda: driver.stop_instance(name, force=True),
            lambda: driver.cleanup_instance(name),
        )
        for operation in operations:
            try:
                operation()
            except HypervisorError as error:
                problems.append(f"{name} cannot be put away: {error}")
        if self.profile.lives(driver, name):
            problems.append(f"a process of {name} is left")
        return problems


def _words(entry: str) -> tuple[str, ...]:
    return (entry, entry.lstrip(".").partition(".")[0])


def _content(path: str) -> bytes:
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
