"""Attaching to consoles, making clients go, passwords, and pictures of the display."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hvcore import (
    Console,
    Deadline,
    FindingSet,
    InvalidParameters,
    NotRunning,
    PasswordResult,
    Screenshot,
    UnsupportedOperation,
)
from hvcore_kvm import definition, screen
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.families import ConsoleType, EndpointContext, Families, unknown_member
from hvcore_kvm.lifecycle import Control


class ConsoleOperations:
    """The operations on the consoles of one loaded driver's instances.

    Args:
        directory: opens the directory of an instance.
        control: changes the instance of a directory.
        families: the family plugins.
    """

    def __init__(
        self,
        directory: Callable[[str], InstanceDirectory],
        control: Callable[[InstanceDirectory], Control],
        families: Families,
    ) -> None:
        self._directory = directory
        self._control = control
        self._families = families

    def get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """How to attach."""
        with self._directory(name) as directory:
            console, context = self._endpoint(directory, kind, deadline)
            return console.backend.endpoint(context)

    def disconnect_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """Make whoever is attached go."""
        with self._directory(name) as directory:
            console, context = self._endpoint(directory, kind, deadline)
            disconnect = getattr(console.backend, "disconnect", None)
            if disconnect is None:
                raise UnsupportedOperation(f"clients of console type {console.name} do not keep others out")
            before = console.backend.endpoint(context)
            disconnect(context)
            return before

    def _endpoint(
        self, directory: InstanceDirectory, kind: str | None, deadline: Deadline
    ) -> tuple[ConsoleType, EndpointContext]:
        console, parameters = self._offered(directory, kind)
        return console, EndpointContext(
            name=directory.name,
            directory=directory.path,
            parameters=parameters,
            ask=functools.partial(screen.ask, directory, deadline),
        )

    def set_console_password(
        self, name: str, kind: str, password: str, expires: float | None, deadline: Deadline
    ) -> PasswordResult:
        """Set the password of a console."""
        with self._directory(name) as directory:
            self._offered(directory, kind)
            return screen.set_password(directory, kind, password, expires, deadline)

    def screenshot(self, name: str, deadline: Deadline) -> Screenshot:
        """Take a picture of the display."""
        with self._directory(name) as directory:
            self._control(directory).require_alive()
            return screen.take_screenshot(directory, deadline)

    def _offered(self, directory: InstanceDirectory, kind: str | None) -> tuple[ConsoleType, Any]:
        """A console of a running instance, the first when none is named.

        Raises:
            NotRunning: it does not run.
            InvalidParameters: it does not offer that one.
        """
        seen = self._control(directory).require_alive()
        if seen.record is None:
            raise NotRunning("there is no record of its consoles", instance=directory.name)
        parsed, _ = definition.read(seen.record.instance, self._families)
        offered = {console.name: (console, parameters) for console, parameters in parsed.consoles}
        if not offered or (kind is not None and kind not in offered):
            finding = unknown_member("console type", kind or "", offered, "kind")
            raise InvalidParameters("it does not offer that console", FindingSet([finding]), instance=directory.name)
        return offered[kind] if kind else next(iter(offered.values()))
