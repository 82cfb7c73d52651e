"""QEMU's monitor as hotplug needs it: refusals with advice, and no change while an instance is on its way."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from hvcore import Deadline, DeadlineExceeded, HypervisorRefused, WrongState
from hvcore_kvm import monitor
from hvcore_kvm.directory import InstanceDirectory

_PERIPHERAL = "/machine/peripheral"
UNPLUG_REFUSED = ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")
"""Events by which a guest says that it keeps a device."""

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

    def wait_unplugged(self, ident: str, guest: Deadline) -> bool:
        """Wait until the guest has let go of a device it was asked for; false when it has not in time.

        Args:
            ident: the device.
            guest: how long to wait for the guest.

        Raises:
            HypervisorRefused: the guest says that it does not let go.
        """
        while (event := self.wait_event(functools.partial(_is_about, ident), guest)) is not None:
            if event["event"] in UNPLUG_REFUSED:
                raise HypervisorRefused("device_del", event["event"], "the guest does not let go of the device")
            # QEMU says it when the last part of a device is freed, which may be after one of the same name has come.
            if ident not in self.present():
                return True
        return False

    def wait_gone(self, ident: str) -> None:
        """Wait until QEMU has let go of a device that goes without asking the guest.

        Raises:
            DeadlineExceeded: it has not in time.
        """
        while ident in self.present():
            if self.deadline.expired:
                raise DeadlineExceeded(f"QEMU does not let go of the device {ident}")
            self.pause()

    def take_when_free(self, command: str, arguments: Mapping[str, Any], busy: str) -> None:
        """Take away what a device has used that is not seen any more; QEMU may still be letting go of it.

        What is not there is no error.

        Args:
            command: for example ``blockdev-del``.
            arguments: its arguments.
            busy: what QEMU says as long as it is used.
        """
        while True:
            try:
                self.execute(command, arguments)
            except HypervisorRefused as error:
                if busy not in str(error) or self.deadline.expired:
                    return
                self.pause()
            else:
                return


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


def _is_about(ident: str, message: Mapping[str, Any]) -> bool:
    # A virtio device sends the event for its inner part too, without an id.
    wanted = message["event"] == "DEVICE_DELETED" or message["event"] in UNPLUG_REFUSED
    return wanted and message.get("data", {}).get("device") == ident


_ADVICE = (
    ("does not support hotplugging", "the bus it is on is fixed; on q35 and virt set params.hotplug_ports above 0"),
    ("unplug request for not supported", "a guest lets go of virtual CPUs only when its system has taken them over"),
    ("not found", "it needs a controller or object that the instance was started without"),
    ("Cannot grow device files", "grow the block device first"),
    ("Cannot grow NBD nodes", "grow it at its server first"),
    ("No such file", "what it names is not there, or not visible to a confined QEMU"),
)
"""What QEMU says, and what to do about it."""
