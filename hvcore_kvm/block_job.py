"""QEMU's jobs: how far they are, waiting for them, ending them. Source: QEMU QMP reference, "Background jobs".

A job is to be started with ``auto-dismiss`` false where QEMU allows it: it then stays until somebody has read how it
ended. What begins a job names it after what it is for, so that whoever comes after a crash can tell whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import attrs

from hvcore import DeadlineExceeded, OperationFailed, Progress
from hvcore_kvm.monitor import Monitor

_LOOK_AGAIN = 0.25
"""Seconds after which jobs are looked at again, although none has reported a change: how far they are is not told."""

_OVER = ("concluded", "null")
_STANDING = ("ready", "standby", "pending")
_JOB_EVENTS = ("JOB_STATUS_CHANGE", "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR", "BLOCK_JOB_CANCELLED")


@attrs.frozen(kw_only=True)
class JobState:
    """What QEMU says of a job.

    Attributes:
        id: its name.
        type: what it does (``JobType``), for example ``mirror``.
        status: ``JobStatus``, for example ``running``.
        done: how much is done, in the job's own unit; of a block job bytes.
        total: how much there is, as far as is known now.
        error: QEMU's own words, when it has failed.
    """

    id: str
    type: str
    status: str
    done: int = 0
    total: int = 0
    error: str = ""

    @property
    def over(self) -> bool:
        """It has ended, well or not, and waits to be dismissed."""
        return self.status in _OVER

    @property
    def ready(self) -> bool:
        """It has done its first round and waits for what comes next."""
        return self.status in _STANDING


def job_states(monitor: Monitor) -> dict[str, JobState]:
    """All jobs QEMU has, by id.

    Raises:
        OutcomeUnknown: no answer.
    """
    rows = monitor.execute("query-jobs")
    return {row["id"]: _state(row) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)}


def wait_jobs(
    monitor: Monitor,
    idents: Collection[str],
    *,
    until: Literal["ready", "pending", "concluded"] = "concluded",
    phase: str = "copying",
    on_progress: Callable[[Progress], object] | None = None,
) -> None:
    """Wait until all of some jobs are as far as is wanted. Those that are over stay until they are dismissed.

    Args:
        monitor: the connection; its deadline bounds the waiting.
        idents: which jobs.
        until: ``ready`` for jobs that go on afterwards, such as a mirror; ``pending`` for those that were begun with
            ``auto-finalize`` false and were told to complete; ``concluded`` for all others.
        phase: what progress is reported as.
        on_progress: told how far all of them together are, at least once.

    Raises:
        OperationFailed: one of them has failed, or is not there; QEMU's own words. The others go on.
        DeadlineExceeded: they are not as far in time. They go on.
        OutcomeUnknown: QEMU has gone, or does not answer.
    """
    while True:
        states = job_states(monitor)
        mine = [states[ident] for ident in idents if ident in states]
        _check(idents, mine)
        if on_progress is not None:
            done, total = sum(state.done for state in mine), sum(state.total for state in mine)
            on_progress(Progress(phase=phase, done=min(done, total), total=total))
        if all(state.over or (until == "ready" and state.ready) or state.status == until for state in mine):
            return
        if monitor.deadline.expired:
            late = ", ".join(f"{state.type} {state.status}" for state in mine if not state.over)
            raise DeadlineExceeded(f"QEMU was not done in time ({late})", hint="give it more time, or a faster disk")
        monitor.wait_event(_tells_of(idents), monitor.deadline.sooner(_LOOK_AGAIN))


def cancel_jobs(monitor: Monitor, idents: Iterable[str]) -> None:
    """Cancel jobs, wait until they are over and dismiss them; a job that is not there is no error.

    Args:
        monitor: the connection; its deadline bounds the waiting.
        idents: which jobs.

    Raises:
        DeadlineExceeded: one of them does not end.
        OutcomeUnknown: QEMU has gone, or does not answer.
    """
    wanted = tuple(idents)
    states = job_states(monitor)
    for ident in wanted:
        if ident in states and not states[ident].over:
            # By now it may be over; then there is nothing to cancel. Unlike block-job-cancel, this one ends a mirror
            # that is ready where it is.
            monitor.attempt("job-cancel", {"id": ident})
    while not all(state.over for ident, state in states.items() if ident in wanted):
        if monitor.deadline.expired:
            raise DeadlineExceeded("QEMU does not end what it was told to cancel", hint="try again, or stop it")
        monitor.wait_event(_tells_of(wanted), monitor.deadline.sooner(_LOOK_AGAIN))
        states = job_states(monitor)
    dismiss_jobs(monitor, wanted)


def dismiss_jobs(monitor: Monitor, idents: Iterable[str]) -> None:
    """Let QEMU forget jobs that are over; one that is not there is no error.

    Raises:
        OutcomeUnknown: QEMU has gone, or does not answer.
    """
    for ident in idents:
        monitor.attempt("job-dismiss", {"id": ident})


def _check(idents: Collection[str], mine: Collection[JobState]) -> None:
    failed = [state for state in mine if state.error]
    if failed:
        words = "; ".join(f"{state.type}: {state.error}" for state in failed)
        raise OperationFailed(f"QEMU could not do it: {words}", code="job-failed")
    missing = sorted(set(idents) - {state.id for state in mine})
    if missing:
        raise OperationFailed(
            f"QEMU no longer has the job {', '.join(missing)}", code="job-gone", hint="somebody else has ended it"
        )


def _tells_of(idents: Collection[str]) -> Callable[[Mapping[str, Any]], bool]:
    def wanted(event: Mapping[str, Any]) -> bool:
        data = event.get("data")
        return (
            event["event"] in _JOB_EVENTS
            and isinstance(data, Mapping)
            and (data.get("id") in idents or data.get("device") in idents)
        )

    return wanted


def _state(row: Mapping[str, Any]) -> JobState:
    return JobState(
        id=row["id"],
        type=str(row.get("type", "")),
        status=str(row.get("status", "")),
        done=_count(row.get("current-progress")),
        total=_count(row.get("total-progress")),
        error=str(row.get("error", "")),
    )


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
