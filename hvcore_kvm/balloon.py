"""The balloon of a running instance: how much memory its guest has."""

from __future__ import annotations

from hvcore import (
    BalloonResult,
    Deadline,
    Finding,
    FindingSet,
    HypervisorRefused,
    InvalidParameters,
    OutcomeUnknown,
    Size,
    UnsupportedOperation,
    format_size,
)
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.hotplug.monitor import Monitor, connect

_MIB = 2**20
_RESERVE = 1.0
"""Seconds of the deadline that are kept for the last question to QEMU."""
_LOOK = 0.25
"""QEMU reports at most one change of the balloon a second; in between it is asked."""


def balloon_memory(
    directory: InstanceDirectory, memory: int, least: Size | None, most: Size, deadline: Deadline
) -> BalloonResult:
    """Tell the guest's balloon how much memory to leave, and wait until it has.

    Args:
        directory: the instance's directory. The caller holds its lock.
        memory: bytes the guest should have.
        least: bytes it must have by its definition, if that says so.
        most: bytes it was started with.
        deadline: how long to wait for the guest. One that lags goes on after it.

    Raises:
        InvalidParameters: it is outside the limits; nothing was touched.
        UnsupportedOperation: the instance has no balloon.
        OutcomeUnknown: QEMU took the request and did not answer.
    """
    findings = []
    floor = least or _MIB
    if memory % _MIB:
        message = f"{memory} bytes is not a whole number of MiB"
        findings.append(Finding(code="invalid-value", path="memory", message=message))
    if not floor <= memory <= most:
        lowest = f"params.memory_min {format_size(floor)}" if least else format_size(floor)
        message = f"{format_size(memory)} is not between {lowest} and memory {format_size(most)}"
        findings.append(Finding(code="out-of-range", path="memory", message=message))
    if findings:
        raise InvalidParameters("the guest cannot have that much memory", FindingSet(findings))
    guest = deadline.sooner(max(0.0, deadline.timeout() - min(_RESERVE, deadline.timeout() / 4)))
    with connect(directory, deadline) as monitor:
        try:
            reached = _actual(monitor)
            if reached != memory:
                monitor.execute("balloon", {"value": memory})
        except HypervisorRefused as error:
            if error.error_class != "DeviceNotActive":
                raise
            raise UnsupportedOperation(
                "it has no balloon", hint="set params.balloon = true and start it again", instance=directory.name
            ) from error
        while reached != memory and not guest.expired:
            monitor.wait_event(lambda event: event["event"] == "BALLOON_CHANGE", guest.sooner(_LOOK))
            reached = _actual(monitor)
    return BalloonResult(requested=memory, reached=reached)


def _actual(monitor: Monitor) -> int:
    answer = monitor.execute("query-balloon")
    actual = answer.get("actual") if isinstance(answer, dict) else None
    if type(actual) is not int:
        raise OutcomeUnknown("QEMU does not say how much memory the guest has", hint="look with 'hv info'")
    return actual
