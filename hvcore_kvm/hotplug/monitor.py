"""QEMU's monitor as hotplug needs it: refusals with advice, and commands that take something back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hvcore import Deadline, DeadlineExceeded, HypervisorRefused, OutcomeUnknown, WrongState
from hvcore_kvm.directory import CONTROL, InstanceDirectory
from hvcore_kvm.qmp import QmpClient, QmpConnectError, QmpError, QmpRefused, QmpTimeout

_PERIPHERAL = "/machine/peripheral"
_MOVING = ("inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm")
_UNDO_PATIENCE = 5.0
_MOMENT = 0.02


class Monitor:
    """A connection to the monitor for commands, with a deadline for all of them.

    Args:
        client: the connection.
        deadline: by when to be done.
    """

    def __init__(self, client: QmpClient, deadline: Deadline) -> None:
        self._client = client
        self.deadline = deadline

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, fds: tuple[int, ...] = ()) -> Any:
        """Carry out a command and return its answer.

        Raises:
            HypervisorRefused: QEMU's own words, and what to do about them.
            OutcomeUnknown: no answer.
        """
        try:
            return self._client.execute(command, arguments, deadline=self.deadline, fds=fds)
        except QmpRefused as error:
            raise HypervisorRefused(command, error.error_class, error.text, hint=_advice(error.text)) from error
        except QmpError as error:
            raise OutcomeUnknown(
                f"QEMU took {command} and did not answer: {error}",
                hint="the next operation on its devices finds out what QEMU has",
            ) from error

    def take_back(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Carry out a command that takes something back; what is not there is no error.

        Raises:
            OutcomeUnknown: no answer.
        """
        try:
            self._client.execute(command, arguments, deadline=Deadline.after(_UNDO_PATIENCE))
        except QmpRefused:
            return
        except QmpError as error:
            raise OutcomeUnknown(f"QEMU does not answer to {command}: {error}") from error

    def present(self) -> frozenset[str]:
        """The ids of all devices QEMU has."""
        return frozenset(row["name"] for row in self.execute("qom-list", {"path": _PERIPHERAL}))

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
            return self._client.wait_event(wanted, sooner or self.deadline)
        except QmpTimeout:
            return None
        except QmpError as error:
            raise OutcomeUnknown(f"QEMU has gone: {error}") from error


@contextlib.contextmanager
def connect(directory: InstanceDirectory, deadline: Deadline) -> Iterator[Monitor]:
    """Connect to an instance whose devices can be changed.

    Raises:
        WrongState: it is being migrated or saved.
        DeadlineExceeded: QEMU does not answer; nothing was asked of it.
    """
    try:
        with QmpClient.connect(directory.join(CONTROL), deadline) as client:
            monitor = Monitor(client, deadline)
            status = monitor.execute("query-status")["status"]
            if status in _MOVING:
                raise WrongState(f"devices cannot be changed now: QEMU's run state is {status}")
            yield monitor
    except QmpConnectError as error:
        raise DeadlineExceeded(f"QEMU does not answer, nothing was asked of it: {error}") from error


def _advice(text: str) -> str | None:
    return next((advice for words, advice in _ADVICE if words in text), None)


_ADVICE = (
    ("does not support hotplugging", "the bus it is on is fixed; on q35 and virt set params.hotplug_ports above 0"),
    ("not found", "it needs a controller or object that the instance was started without"),
    ("Cannot grow device files", "grow the block device first"),
    ("Cannot grow NBD nodes", "grow it at its server first"),
    ("No such file", "what it names is not there, or not visible to a confined QEMU"),
)
"""What QEMU says, and what to do about it."""
