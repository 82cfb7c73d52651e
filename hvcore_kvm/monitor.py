"""QEMU's monitor for operations: a deadline for all that is done over a connection, refusals in QEMU's own words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from hvcore import Deadline, DeadlineExceeded, HypervisorRefused, NotRunning, OutcomeUnknown
from hvcore_kvm import process
from hvcore_kvm.directory import CONTROL, InstanceDirectory
from hvcore_kvm.qmp import QmpClient, QmpConnectError, QmpError, QmpRefused, QmpTimeout
from hvcore_kvm.runtime import ProcessRecord

_UNDO_PATIENCE = 5.0
_MOMENT = 0.02


class Monitor:
    """A connection to a monitor, with a deadline for all that is done over it.

    What is done over it for one purpose is a subclass: it knows what to do about a refusal, and where to look when
    there is no answer.

    Args:
        client: the connection.
        deadline: by when to be done.
    """

    unanswered = "look at the instance; 'hv recover' completes what was begun"
    """What to do when QEMU took a command and did not answer."""

    def __init__(self, client: QmpClient, deadline: Deadline) -> None:
        self.client = client
        self.deadline = deadline

    @classmethod
    @contextlib.contextmanager
    def connected(
        cls,
        directory: InstanceDirectory,
        deadline: Deadline,
        running: ProcessRecord | None = None,
        name: str = CONTROL,
    ) -> Iterator[Self]:
        """Connect to a monitor of an instance.

        Args:
            directory: the instance's directory.
            deadline: by when to be done.
            running: its process, to tell an instance that has just ended from one that does not answer.
            name: which monitor.

        Raises:
            NotRunning: its process has just ended.
            DeadlineExceeded: QEMU does not answer; nothing was asked of it.
        """
        try:
            client = QmpClient.connect(directory.join(name), deadline)
        except QmpConnectError as error:
            if running is not None and not process.is_alive(running.identity):
                raise NotRunning("it has just ended", instance=directory.name) from error
            raise DeadlineExceeded(
                f"QEMU does not answer, nothing was asked of it: {error}", instance=directory.name
            ) from error
        with client:
            yield cls(client, deadline)

    def advice(self, text: str) -> str | None:
        """What to do about a refusal.

        Args:
            text: QEMU's own words.
        """
        del text
        return None

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, fds: tuple[int, ...] = ()) -> Any:
        """Carry out a command and return its answer.

        Args:
            command: for example ``query-status``.
            arguments: its arguments.
            fds: file descriptors to send with it.

        Raises:
            HypervisorRefused: QEMU's own words, and what to do about them.
            OutcomeUnknown: no answer.
        """
        try:
            return self.client.execute(command, arguments, deadline=self.deadline, fds=fds)
        except QmpRefused as error:
            hint = self.advice(error.text)
            raise HypervisorRefused(command, error.error_class, error.text, hint=hint) from error
        except QmpError as error:
            raise OutcomeUnknown(f"QEMU took {command} and did not answer: {error}", hint=self.unanswered) from error

    def attempt(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Carry out a command that may have nothing to do; that QEMU refuses it is no error."""
        with contextlib.suppress(HypervisorRefused):
            self.execute(command, arguments)

    def take_back(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Carry out a command that takes something back, with time of its own; what is not there is no error.

        Raises:
            OutcomeUnknown: no answer.
        """
        try:
            self.client.execute(command, arguments, deadline=Deadline.after(_UNDO_PATIENCE))
        except QmpRefused:
            return
        except QmpError as error:
            raise OutcomeUnknown(f"QEMU does not answer to {command}: {error}", hint=self.unanswered) from error

    def run_state(self) -> str:
        """QEMU's run state (``RunState`` of its schema)."""
        answer = self.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, Mapping) else ""

    def pause(self) -> None:
        """Let QEMU do something for a moment."""
        self.wait_event(lambda _: False, Deadline.after(_MOMENT))

    def wait_event(
        self, wanted: Callable[[Mapping[str, Any]], bool], sooner: Deadline | None = None
    ) -> Mapping[str, Any] | None:
        """Wait for an event, also among those that have come; ``None`` when it does not come in time.

        Args:
            wanted: says which.
            sooner: a deadline before the connection's.

        Raises:
            OutcomeUnknown: QEMU has gone.
        """
        try:
            return self.client.wait_event(wanted, sooner or self.deadline)
        except QmpTimeout:
            return None
        except QmpError as error:
            raise OutcomeUnknown(f"QEMU has gone: {error}", hint=self.unanswered) from error
