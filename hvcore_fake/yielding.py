"""How a modelled guest gives things back: devices that it is asked for, and memory. Pure functions."""

from __future__ import annotations

import attrs

from hvcore import InstanceState
from hvcore_fake.record import Attached, Process


def ask(process: Process, ident: str, now: float) -> Process:
    """The guest is asked to let go of a device; it notices if it runs and has booted."""
    asked = [attrs.evolve(d, asked=now, refused=False) if d.ident == ident else d for d in process.attached]
    return notice(attrs.evolve(process, attached=tuple(asked)), now)


def notice(process: Process, now: float) -> Process:
    """The guest sees what it has been asked for, if it runs."""
    heeds = process.state is InstanceState.RUNNING and process.booted is not None and process.booted <= now
    if not heeds or process.behaviour.unplug == "ignore":
        return process
    return attrs.evolve(process, attached=tuple(_noticed(process, device, now) for device in process.attached))


def later(process: Process, seconds: float) -> Process:
    """What it was about to let go of comes so much later."""

    def shifted(device: Attached) -> Attached:
        return device if device.leaves is None else attrs.evolve(device, leaves=device.leaves + seconds)

    return attrs.evolve(process, attached=tuple(map(shifted, process.attached)))


def next_leave(process: Process) -> float | None:
    """When it will next let go of a device, ``None`` when it will not."""
    return min((device.leaves for device in process.attached if device.leaves is not None), default=None)


def without(process: Process, *idents: str) -> Process:
    """The same without some devices."""
    return attrs.evolve(process, attached=tuple(d for d in process.attached if d.ident not in idents))


def memory_now(process: Process, now: float) -> int:
    """Bytes of memory the guest has."""
    target, rate = process.memory_target, process.behaviour.balloon_rate
    if target is None or process.memory == target or process.state is not InstanceState.RUNNING:
        return process.memory
    if rate is None:
        return target
    moved = int(rate * max(0.0, now - process.memory_at))
    return max(target, process.memory - moved) if target < process.memory else min(target, process.memory + moved)


def settled(process: Process, now: float) -> Process:
    """The same, with the memory it has now written down: what comes begins there."""
    return attrs.evolve(process, memory=memory_now(process, now), memory_at=now)


def aim(process: Process, target: int, now: float) -> Process:
    """The balloon is told how much memory to leave."""
    return attrs.evolve(settled(process, now), memory_target=target)


def time_to_reach(process: Process, now: float) -> float | None:
    """Seconds until the guest has the memory it is to have, ``None`` when it never will as it is."""
    target, rate = process.memory_target, process.behaviour.balloon_rate
    missing = 0 if target is None else abs(target - memory_now(process, now))
    if not missing:
        return 0.0
    return missing / rate if rate and process.state is InstanceState.RUNNING else None


def time_run(process: Process, now: float) -> float:
    """Seconds for which its virtual CPUs have run."""
    if process.booted is None:
        return 0.0
    return max(0.0, (now if process.frozen is None else process.frozen) - process.started - process.stood)


def _noticed(process: Process, device: Attached, now: float) -> Attached:
    if device.asked is None or device.leaves is not None or device.refused:
        return device
    if process.behaviour.unplug == "refuse":
        return attrs.evolve(device, refused=True)
    return attrs.evolve(device, leaves=now + process.behaviour.unplug_time)
