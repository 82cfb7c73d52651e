"""Reading the file QEMU appends its events to, and saying from it how an instance ended.

QEMU writes each event as one JSON line, without a handshake and without a reader, to the log of a monitor on a null
character device. SIGKILL leaves no line: the end of the file and a dead process mean that it died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import attrs

from hvcore import Cause, Event, InstanceState, StateReason
from hvcore_kvm.directory import EVENTS, InstanceDirectory
from hvcore_kvm.ring_log import PAGE, SLACK, Segment
from hvcore_kvm.runtime import StopRequest

TAIL = 256 * 2**10
"""How much of the end of the file is read, in bytes. It is QEMU's: a guest that has taken it over may fill it."""

MIGRATION_EVENTS = 256 * 2**10
"""Bytes kept free for what QEMU reports while a guest moves: whether it has gone over must not get lost."""

LIMIT = TAIL - SLACK
"""How much of the file is kept, in bytes, besides the last of each of the telling events."""

ANSWER_WINDOW = 600.0
"""Seconds after our asking in which a power-off of the guest counts as the answer to it."""

TELLING = (
    "RESUME",
    "STOP",
    "SUSPEND",
    "WAKEUP",
    "RESET",
    "POWERDOWN",
    "WATCHDOG",
    "BLOCK_IO_ERROR",
    "GUEST_PANICKED",
    "MIGRATION",
    "SHUTDOWN",
)
"""Events that say what an instance is doing, or why it ended. The last of each stays in the file, however old."""

_CHUNK = 2**20

_ENDINGS: dict[str, tuple[InstanceState, Cause, str]] = {
    "guest-shutdown": (InstanceState.SHUTDOWN_BY_USER, Cause.GUEST_SHUTDOWN, "the guest powered itself off"),
    "guest-reset": (
        InstanceState.SHUTDOWN_BY_USER,
        Cause.GUEST_RESET,
        "the guest restarted, and on_reboot is shutdown",
    ),
    "guest-panic": (InstanceState.PANICKED, Cause.GUEST_PANIC, "the guest's kernel panicked"),
    "host-qmp-quit": (InstanceState.STOPPED, Cause.HOST_FORCE_STOP, "QEMU was told to quit"),
    "host-signal": (InstanceState.STOPPED, Cause.HOST_SIGNAL, "a signal from the host ended QEMU"),
    "host-error": (InstanceState.CRASHED, Cause.HYPERVISOR_ERROR, "QEMU ended after an error of its own"),
}


@attrs.frozen(kw_only=True)
class QemuEvent:
    """One line of the file: QEMU's name of the event, its data, and when, in seconds since the epoch."""

    name: str
    time: float
    data: dict[str, Any]

    def public(self, instance: str) -> Event:
        """The event as hvcore hands it out."""
        return Event(name=self.name, instance=instance, time=self.time, data=self.data)


def read_events(directory: InstanceDirectory) -> tuple[QemuEvent, ...]:
    """The events at the end of an instance's file; lines that are no events are passed over."""
    return parse_events(directory.tail(EVENTS, TAIL + 2 * PAGE * len(TELLING)))


def last_of_each(fd: int, pieces: Sequence[Segment]) -> Sequence[Segment]:
    """Where in some pieces of an open event file the last of each of the telling events stands."""
    found: dict[str, Segment] = {}
    for begin, end in pieces:
        for offset in range(begin, end, _CHUNK):
            # A line may begin in one chunk and end in the next, or behind the last of a piece.
            chunk = os.pread(fd, _CHUNK + PAGE, offset)
            for name in TELLING:
                at = chunk.rfind(f'"event": "{name}"'.encode(), 0, _CHUNK + len(name) + 16)
                if at >= 0:
                    line = chunk.rfind(b"\n", 0, at) + 1
                    after = chunk.find(b"\n", at)
                    cut_off = line == 0
                    found[name] = (
                        max(0, offset + line - (PAGE if cut_off else 0)),
                        offset + (after if after >= 0 else len(chunk)),
                    )
    return tuple(found.values())


def parse_events(text: str) -> tuple[QemuEvent, ...]:
    """The events in a piece of the file, whose first line may be cut off."""
    found = []
    for line in text.splitlines():
        try:
            message = json.loads(line)
            stamp = message["timestamp"]
            time = stamp["seconds"] + stamp["microseconds"] / 1e6
            data = message.get("data", {})
            if isinstance(message["event"], str) and isinstance(data, dict):
                found.append(QemuEvent(name=message["event"], time=float(time), data=data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return tuple(found)


def last(events: Sequence[QemuEvent], *names: str) -> QemuEvent | None:
    """The last event of some names."""
    return next((event for event in reversed(events) if event.name in names), None)


def ending(
    events: Sequence[QemuEvent], request: StopRequest | None, boot_id: str | None
) -> tuple[InstanceState, StateReason]:
    """How an instance whose process is dead has ended.

    Args:
        events: its events.
        request: the last time the guest was asked to power off.
        boot_id: boot of the host in which it ended, if that is known.
    """
    shutdown = last(events, "SHUTDOWN")
    if request is not None and request.forced and (shutdown is None or shutdown.data.get("reason") == "host-signal"):
        reason = StateReason(
            cause=Cause.HOST_FORCE_STOP, detail="the host stopped it by force", since=request.time, boot_id=boot_id
        )
        return InstanceState.STOPPED, reason
    if shutdown is None:
        panicked = last(events, "GUEST_PANICKED")
        words = "QEMU ended without a word: it was killed, or it crashed"
        if panicked is not None:
            words += "; the guest had panicked before"
        since = events[-1].time if events else None
        return InstanceState.CRASHED, StateReason(cause=Cause.DIED, detail=words, since=since, boot_id=boot_id)
    why = str(shutdown.data.get("reason", ""))
    state, cause, words = _ENDINGS.get(why, (InstanceState.CRASHED, Cause.OTHER, f"QEMU ended: {why[:60]}"))
    if cause is Cause.GUEST_SHUTDOWN and request is not None and shutdown.time <= request.time + ANSWER_WINDOW:
        state, cause = InstanceState.STOPPED, Cause.HOST_STOP
        words = "the guest powered off because the host asked it to"
    return state, StateReason(cause=cause, detail=words, since=shutdown.time, boot_id=boot_id)
