"""How a modelled guest behaves: what its time, the power button and a stopped CPU make of it. Pure functions.

What it does about devices and its balloon is in `hvcore_fake.yielding`.
"""

from __future__ import annotations

from typing import Literal

import attrs

from hvcore import Cause, InstanceState
from hvcore_fake import yielding
from hvcore_fake.record import Process

Doing = Literal["power-off", "panic", "unplug"]
"""What a guest may do by itself."""


def boot(process: Process, now: float) -> Process:
    """The guest begins anew: from its first instruction, or after a reset."""
    behaviour = process.behaviour
    return attrs.evolve(
        process,
        booted=now + behaviour.boot_time,
        powers_off=_later(now, behaviour.power_off_after),
        panics=_later(now, behaviour.panic_after),
        asked=False,
        frozen=None,
    )


def press(process: Process, now: float) -> Process:
    """The power button is pressed; the guest heeds it if it runs, has booted, and means to."""
    pressed = attrs.evolve(process, pressed=now)
    runs = process.state is InstanceState.RUNNING
    if not runs or process.booted is None or now < process.booted or process.behaviour.ignore_power_button:
        return pressed
    due = now + process.behaviour.shutdown_time
    if process.powers_off is not None and process.powers_off <= due:
        return pressed
    return attrs.evolve(pressed, powers_off=due, asked=True)


def freeze(process: Process, now: float, state: InstanceState, cause: Cause) -> Process:
    """The virtual CPUs stop: nothing of what the guest was about to do goes on."""
    return attrs.evolve(yielding.settled(process, now), state=state, cause=cause, since=now, frozen=now)


def hold(process: Process, now: float) -> Process:
    """The virtual CPUs stop so that what is left of the guest can be sent; one that is held stays so."""
    if process.state is InstanceState.MIGRATING:
        return process
    frozen = now if process.frozen is None else process.frozen
    still = yielding.settled(process, now)
    return attrs.evolve(still, state=InstanceState.MIGRATING, cause=Cause.MIGRATION, since=now, frozen=frozen)


def thaw(process: Process, now: float) -> Process:
    """The virtual CPUs run, for the first time or again; everything the guest was about to do comes later."""
    running = attrs.evolve(process, state=InstanceState.RUNNING, cause=Cause.STARTED, since=now, memory_at=now)
    if process.booted is None:
        return boot(attrs.evolve(running, stood=now - process.started), now)
    lost = 0.0 if process.frozen is None else now - process.frozen
    again = attrs.evolve(
        running,
        booted=process.booted + lost,
        powers_off=_shifted(process.powers_off, lost),
        panics=_shifted(process.panics, lost),
        frozen=None,
        stood=process.stood + lost,
    )
    return yielding.notice(yielding.later(again, lost), now)


def next_doing(process: Process) -> tuple[float, Doing] | None:
    """When the guest will next do something by itself, and what; ``None`` when nothing is due."""
    if process.state is not InstanceState.RUNNING:
        return None
    due: list[tuple[float, Doing]] = []
    if process.powers_off is not None:
        due.append((process.powers_off, "power-off"))
    if process.panics is not None:
        due.append((process.panics, "panic"))
    leaves = yielding.next_leave(process)
    if leaves is not None:
        due.append((leaves, "unplug"))
    return min(due, default=None)


def _later(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds


def _shifted(at: float | None, seconds: float) -> float | None:
    return None if at is None else at + seconds
