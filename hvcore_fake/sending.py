"""How a modelled migration proceeds: memory is sent at one speed and changed at another. Pure functions."""

from __future__ import annotations

import math

import attrs

from hvcore import MigrationPhase, MigrationPolicy, MigrationStatus
from hvcore_fake.record import Process, Sending

BANDWIDTH = float(2**30)
"""Bytes a second, without a limit."""

SETUP_TIME = 0.05
"""Seconds until the connection stands."""

_THROTTLED = 0.5


def begin(
    process: Process, target: str, policy: MigrationPolicy, now: float, disks: tuple[str, ...] = (), disk_bytes: int = 0
) -> Sending:
    """A migration that begins; with disks that are copied, it begins with them."""
    early = policy.going_over_early if policy.live else None
    return Sending(
        target=target,
        began=now,
        since=now,
        bandwidth=float(policy.max_bandwidth or BANDWIDTH),
        dirty_rate=float(process.behaviour.dirty_rate) if policy.live else 0.0,
        limit=policy.downtime_limit,
        limit_maximum=policy.longest_downtime,
        patience=policy.patience,
        on_no_convergence=policy.on_no_convergence,
        was=process.state,
        was_because=process.cause,
        disks=disks,
        disk_bytes=disk_bytes,
        phase=MigrationPhase.DISKS if disks else MigrationPhase.SETUP,
        memory=None if disks else now,
        early=early is not None,
        after_passes=None if early is None else early.after_passes,
    )


def disks_are_there(sending: Sending, now: float) -> bool:
    """All disks that are copied are the same on both sides, and will stay so."""
    return sending.phase is MigrationPhase.DISKS and now >= sending.began + sending.disk_bytes / sending.bandwidth


def with_memory(sending: Sending, now: float) -> Sending:
    """The same, when it is the turn of its memory."""
    return attrs.evolve(sending, phase=MigrationPhase.SETUP, since=now, memory=now)


def goes_over_early(process: Process, sending: Sending, now: float) -> bool:
    """It is time for the guest to go over, although not all of its memory has."""
    if sending.phase is not MigrationPhase.ACTIVE or not sending.early:
        return False
    if sending.after_passes is not None:
        passed = now - _began(sending) - SETUP_TIME
        return passed * sending.bandwidth >= sending.after_passes * process.memory
    late = now - _began(sending) >= sending.patience
    return late and sending.on_no_convergence == "postcopy"


def gone_over_early(process: Process, sending: Sending, now: float) -> Sending:
    """The same, when the guest has."""
    return attrs.evolve(at(sending, MigrationPhase.POSTCOPY, now), rest=remaining(process, sending, now), downtime=0.0)


def cut_off(process: Process, sending: Sending, now: float) -> Sending:
    """The same, when what follows a guest that has gone over is cut off."""
    left = remaining(process, sending, now)
    return attrs.evolve(at(sending, MigrationPhase.POSTCOPY_PAUSED, now, "the connection was cut"), rest=left)


def at(sending: Sending, phase: MigrationPhase, now: float, error: str = "") -> Sending:
    """The same, in another phase."""
    return attrs.evolve(sending, phase=phase, since=now, error=error)


def remaining(process: Process, sending: Sending, now: float) -> float:
    """Bytes that the destination does not have yet."""
    if sending.phase is MigrationPhase.SETUP:
        return float(process.memory)
    if sending.phase in (MigrationPhase.PRE_SWITCHOVER, MigrationPhase.DEVICE):
        return _left_over(process, sending, sending.since)
    if sending.phase is MigrationPhase.ACTIVE:
        return _left_over(process, sending, now)
    if sending.phase is MigrationPhase.POSTCOPY:
        return max(0.0, sending.rest - sending.bandwidth * (now - sending.since))
    if sending.phase is MigrationPhase.POSTCOPY_PAUSED:
        return sending.rest
    return 0.0


def next_phase(process: Process, sending: Sending) -> float:
    """When it enters its next phase by itself; infinite when it does not."""
    if sending.phase is MigrationPhase.SETUP:
        return _began(sending) + SETUP_TIME
    if sending.phase is MigrationPhase.ACTIVE:
        gain = sending.bandwidth - sending.dirty_rate
        excess = process.memory - sending.bandwidth * sending.limit
        if excess <= 0:
            return sending.since
        return _began(sending) + SETUP_TIME + excess / gain if gain > 0 else math.inf
    if sending.phase is MigrationPhase.POSTCOPY:
        return sending.since + sending.rest / sending.bandwidth
    if sending.phase is MigrationPhase.DEVICE:
        return sending.since + remaining(process, sending, sending.since) / sending.bandwidth
    return math.inf


def steered(sending: Sending, now: float) -> Sending:
    """What the policy wants of one that does not converge; one that does stays as it is."""
    if sending.phase is not MigrationPhase.ACTIVE or now - _began(sending) < sending.patience:
        return sending
    if sending.on_no_convergence == "raise-downtime":
        return attrs.evolve(sending, limit=sending.limit_maximum)
    if sending.on_no_convergence == "throttle":
        return attrs.evolve(sending, dirty_rate=sending.dirty_rate * _THROTTLED)
    return sending


def gives_up(sending: Sending, now: float) -> bool:
    """It does not converge, and the policy is to cancel it then."""
    late = sending.phase is MigrationPhase.ACTIVE and now - _began(sending) >= sending.patience
    return late and sending.on_no_convergence == "cancel"


def status(process: Process, now: float) -> MigrationStatus:
    """What the source says of it."""
    sending = process.sending
    if sending is None:
        return MigrationStatus(phase=MigrationPhase.NONE)
    if sending.phase is MigrationPhase.DISKS:
        return _status_of_disks(sending, now)
    left = remaining(process, sending, now)
    end = sending.since if sending.phase.is_final else now
    moving = sending.phase in (MigrationPhase.ACTIVE, MigrationPhase.DEVICE, MigrationPhase.POSTCOPY)
    return MigrationStatus(
        phase=sending.phase,
        transferred=int(process.memory - left),
        remaining=int(left),
        total=process.memory,
        rate=sending.bandwidth if moving else 0.0,
        dirty_rate=sending.dirty_rate if sending.phase is MigrationPhase.ACTIVE else 0.0,
        expected_downtime=left / sending.bandwidth,
        downtime=sending.downtime,
        total_time=end - sending.began,
        error=sending.error,
    )


def _status_of_disks(sending: Sending, now: float) -> MigrationStatus:
    done = min(sending.disk_bytes, int((now - sending.began) * sending.bandwidth))
    left = sending.disk_bytes - done
    rate = sending.bandwidth if left else 0.0
    return MigrationStatus(
        phase=sending.phase,
        transferred=done,
        remaining=left,
        total=sending.disk_bytes,
        rate=rate,
        total_time=now - sending.began,
    )


def _began(sending: Sending) -> float:
    return sending.began if sending.memory is None else sending.memory


def _left_over(process: Process, sending: Sending, now: float) -> float:
    passed = now - _began(sending) - SETUP_TIME
    least = min(float(process.memory), sending.bandwidth * sending.limit)
    return min(float(process.memory), max(least, process.memory - (sending.bandwidth - sending.dirty_rate) * passed))
