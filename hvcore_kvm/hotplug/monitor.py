"""QEMU's monitor as hotplug needs it: refusals with advice, and no change while an instance is on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hvcore import Deadline, WrongState
from hvcore_kvm import monitor
from hvcore_kvm.directory import InstanceDirectory

_PERIPHERAL = "/machine/peripheral"
_MOVING = ("inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm")


class Monitor(monitor.Monitor):
    """A connection to the monitor of an instance whose devices are changed."""

    unanswered = "the next operation on its devices finds out what QEMU has"

    def advice(self, text: str) -> str | None:
        """What to do about a refusal."""
        return next((advice for words, advice in _ADVICE if words in text), None)

    def present(self) -> frozenset[str]:
        """The ids of all devices QEMU has."""
        return frozenset(row["name"] for row in self.execute("qom-list", {"path": _PERIPHERAL}))


@contextlib.contextmanager
def connect(directory: InstanceDirectory, deadline: Deadline) -> Iterator[Monitor]:
    """Connect to an instance whose devices can be changed.

    Raises:
        WrongState: it is being migrated or saved.
        DeadlineExceeded: QEMU does not answer; nothing was asked of it.
    """
    with Monitor.connected(directory, deadline) as connection:
        if (state := connection.run_state()) in _MOVING:
            raise WrongState(f"devices cannot be changed now: QEMU's run state is {state}")
        yield connection


_ADVICE = (
    ("does not support hotplugging", "the bus it is on is fixed; on q35 and virt set params.hotplug_ports above 0"),
    ("not found", "it needs a controller or object that the instance was started without"),
    ("Cannot grow device files", "grow the block device first"),
    ("Cannot grow NBD nodes", "grow it at its server first"),
    ("No such file", "what it names is not there, or not visible to a confined QEMU"),
)
"""What QEMU says, and what to do about it."""
