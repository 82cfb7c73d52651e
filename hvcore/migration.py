"""A whole migration over two drivers: prepare, send, look at both sides, and finish each by what really happened.

The guest runs on one side at most because of three things. The destination executes nothing before it is told to (MI-05
of the contract). It is told to only when the source can no longer run the guest: its state is ``postmigrate``, or its
process is gone. And the source is cleaned up last, so that a destination that dies has lost nothing but itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from hvcore.capabilities import Capability
from hvcore.errors import (
    DeadlineExceeded,
    HypervisorError,
    InvalidParameters,
    OperationFailed,
    OutcomeUnknown,
    Refused,
    WrongState,
)
from hvcore.findings import Finding, FindingSet
from hvcore.migration_evidence import Evidence, Side, Verdict, look, look_at_source, state_of, verdict
from hvcore.migration_policy import read_migration_policy
from hvcore.model.migration import MigrationPhase, MigrationResult, MigrationStatus
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.state import InstanceState
from hvcore.passage import checked_name

if TYPE_CHECKING:
    from hvcore.driver import Driver
    from hvcore.model.instance import Instance
    from hvcore.model.migration import MigrationInfo, MigrationTarget
    from hvcore.model.state import InstanceInfo, Transition

INTERVAL = 0.25
"""Seconds between two looks at the progress, when nothing changes."""

PATIENCE = 30.0
"""Seconds a side is given to say what became of a migration that has ended."""

STILL_THERE = 1.0
"""Seconds for which the destination is taken to be there that has answered. Asking costs it time while it loads."""

_LOOK_AGAIN = 0.05

Progress = Callable[[MigrationStatus], None]
"""Is told how it goes; what it raises cancels the migration."""


class HostFacts(Protocol):
    """What `migrate` needs to know of a host; a `NodeInfo` has it."""

    @property
    def hypervisor(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a program and its version."""


class MigrationDestination(Protocol):
    """What `migrate` needs of the host an instance goes to. A `Driver` has it; so has what stands for one elsewhere.

    When the other host cannot be reached, each method raises `OutcomeUnknown`.
    """

    def get_node_info(self) -> HostFacts:
        """Facts about the host; the version of its hypervisor is among them."""

    def accept_instance(self, info: MigrationInfo, address: str, policy: MigrationPolicy) -> MigrationTarget:
        """Prepare the host to receive an instance."""

    def get_instance_info(self, instance: str) -> InstanceInfo:
        """Say what an instance is doing there."""

    def finalize_migration_dst(self, info: MigrationInfo, success: bool) -> Transition:
        """Finish there."""


def migrate(
    source: Driver,
    destination: MigrationDestination,
    instance: Instance | str,
    policy: MigrationPolicy | Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    *,
    address: str,
    interval: float = INTERVAL,
    patience: float = PATIENCE,
) -> MigrationResult:
    """Move a running instance to another host.

    An instance that is in state ``postmigrate`` had gone over when an earlier call was killed: the same call again
    looks at both sides and finishes.

    Args:
        source: the driver that runs it.
        destination: the driver of the other host, or what stands for it.
        instance: the instance, or just its name.
        policy: how it should go; everything as usual when not given.
        on_progress: is called with each status.
        address: IP address of the destination at which it listens for the instance.
        interval: seconds between two looks at the progress.
        patience: seconds for each side to say what became of it once it has ended.

    Returns:
        What was measured; the instance runs on the destination, and the source holds nothing of it.

    Raises:
        InvalidParameters: the policy has errors, or the two hosts do not fit together; nothing was touched.
        DeadlineExceeded: the policy's deadline passed; it runs on at the source.
        OperationFailed: it failed or was cancelled, and the instance runs on at the source; or it is lost, which the
            message says then.
        OutcomeUnknown: nobody can tell where it is. It runs on one side at most; the message says what to do.
        KeyboardInterrupt: it was cancelled; a note says where the instance is.
    """
    name = checked_name(instance)
    agreed, findings = read_migration_policy(policy if policy is not None else MigrationPolicy())
    if findings:
        raise InvalidParameters("the migration policy has errors", FindingSet(findings).below("policy"), instance=name)
    run = _Run(source, destination, name, agreed, on_progress, interval, patience)
    try:
        return run.run(address)
    except HypervisorError as error:
        error.instance = error.instance or name
        raise


class _Run:
    def __init__(
        self,
        source: Driver,
        destination: MigrationDestination,
        name: str,
        policy: MigrationPolicy,
        on_progress: Progress | None,
        interval: float,
        patience: float,
    ) -> None:
        self._source = source
        self._destination = destination
        self._name = name
        self._policy = policy
        self._on_progress = on_progress
        self._interval = interval
        self._patience = patience
        self._steps = source.description.claim(Capability.MIGRATION_STEPS).offered
        self._began = time.monotonic()
        self._phases: list[tuple[MigrationPhase, float]] = []
        self._last = MigrationStatus(phase=MigrationPhase.NONE)
        self._went_over_early = False
        self._info: MigrationInfo | None = None
        self._note = ""
        self._paused: float | None = None
        self._answered = self._began

    def run(self, address: str) -> MigrationResult:
        """All of it."""
        before = state_of(self._source, self._name)
        self._note = self._compatible()
        info = self._info = self._source.migration_info(self._name)
        if before is InstanceState.POSTMIGRATE:
            self._last = self._source.get_migration_status(self._name)
            return self._settle(info, None)
        if not self._source.get_migration_status(self._name).phase.is_final:
            raise WrongState("it is being migrated already", hint="wait for it, or put it in order with recover")
        target = self._accepted(info, address)
        self._answered = time.monotonic()
        try:
            begun = self._source.migrate_instance(self._name, target, self._policy)
        except Refused as error:
            self._give_up_destination(info, error)
            raise
        except BaseException as error:
            self._cancel(error)
            return self._settle(info, error)
        try:
            self._send(begun)
        except BaseException as error:
            self._cancel(error)
            return self._settle(info, error)
        return self._settle(info, None)

    # Before

    def _compatible(self) -> str:
        """What there is to know about the two versions of the hypervisor.

        Raises:
            InvalidParameters: no instance can move between them.
        """
        here, there = (_version(node) for node in (self._source.get_node_info(), self._destination.get_node_info()))
        if not here or not there:
            return ""
        found = self._source.versions_safe_for_migration(here, there)
        if not found.safe:
            finding = Finding(code="versions-differ", path="destination", message=f"{here} to {there}: {found.reason}")
            raise InvalidParameters("an instance cannot move between these hosts", FindingSet([finding]))
        return found.reason

    def _accepted(self, info: MigrationInfo, address: str) -> MigrationTarget:
        try:
            return self._destination.accept_instance(info, address, self._policy)
        except HypervisorError as error:
            if isinstance(error, OutcomeUnknown):
                self._give_up_destination(info, error)
            raise
        except BaseException as error:
            self._give_up_destination(info, error)
            raise

    def _give_up_destination(self, info: MigrationInfo, cause: BaseException) -> None:
        """Nothing was sent: the source runs on as it was, and what the destination has prepared goes."""
        try:
            self._destination.finalize_migration_dst(info, False)
        except HypervisorError as error:
            cause.add_note(f"the instance runs on at the source; on the destination run recover: {error}")

    # While it is sent

    def _send(self, begun: MigrationStatus) -> None:
        """Until the source says that it has ended, or is gone."""
        self._seen(begun)
        silent = None
        while not self._last.phase.is_final:
            if not self._went_over_early and self._late():
                raise DeadlineExceeded(f"it was not done within {self._policy.deadline:g} s and was cancelled")
            self._still_there()
            try:
                status = self._next()
            except HypervisorError as error:
                # It may come back: only what it says counts, and the guest may run on meanwhile.
                silent = time.monotonic() if silent is None else silent
                gone = isinstance(error, Refused) and not error.retryable
                if gone or time.monotonic() - silent > self._patience:
                    return
                time.sleep(self._interval)
                continue
            silent = None
            self._seen(status)
            if status.phase is MigrationPhase.POSTCOPY_PAUSED:
                raise OutcomeUnknown("the connection broke after the guest had gone over")

    def _still_there(self) -> None:
        """Before the guest stops here, make sure that it can be told to run there."""
        if self._last.phase not in (MigrationPhase.DISKS, MigrationPhase.SETUP, MigrationPhase.ACTIVE):
            return
        if time.monotonic() - self._answered < STILL_THERE:
            return
        try:
            self._destination.get_instance_info(self._name)
        except OutcomeUnknown as error:
            message = f"the destination can no longer be asked, so it was cancelled: {error.message}"
            raise OperationFailed(message) from error
        except HypervisorError:
            pass  # it can be asked; if it has nothing any more, the source will notice
        self._answered = time.monotonic()

    def _late(self) -> bool:
        limit = self._policy.deadline
        return limit is not None and max(self._last.total_time, time.monotonic() - self._began) >= limit

    def _next(self) -> MigrationStatus:
        if self._steps:
            return self._source.continue_migration(self._name, switch_over=True, wait=self._interval)
        time.sleep(self._interval)
        return self._source.get_migration_status(self._name)

    def _seen(self, status: MigrationStatus) -> None:
        if not self._phases or self._phases[-1][0] is not status.phase:
            self._phases.append((status.phase, status.total_time))
        self._went_over_early = self._went_over_early or status.phase in _POSTCOPY
        self._last = status
        if status.phase is MigrationPhase.POSTCOPY:
            self._let_run_early()
        if self._on_progress is not None:
            self._on_progress(status)

    def _let_run_early(self) -> None:
        """It has gone over, and the rest of its memory follows: it must not wait for that."""
        if self._info is None:
            return
        info, self._info = self._info, None
        try:
            self._let_it_run(info)
        except OutcomeUnknown:
            self._info = info  # the next look tells it again
        except HypervisorError:
            return  # one that runs by itself; what became of it is found at the end

    def _cancel(self, cause: BaseException) -> None:
        if self._went_over_early:
            return  # the guest lives on both hosts: without one of them it is lost
        try:
            self._source.cancel_migration(self._name)
        except HypervisorError as error:
            cause.add_note(f"it could not be cancelled: {error}")

    # Afterwards

    def _settle(self, info: MigrationInfo, cause: BaseException | None) -> MigrationResult:
        """Look at both sides until they tell what happened, and finish both by it."""
        if cause is None and self._last.phase is MigrationPhase.COMPLETED:
            # The source says itself that it has let go of all of it; the guest pauses while one looks around.
            told = False
            with contextlib.suppress(HypervisorError):
                self._let_it_run(info)
                told = True
            # The destination has just said that it has it; of the rest of one that went over early it knows more later.
            if told and not self._went_over_early and look_at_source(self._source, self._name) is Side.LEFT:
                return self._left(None)
        begun = time.monotonic()
        while True:
            seen = look(self._source, self._destination, self._name)
            if seen.source is Side.GONE and self._went_over_early and seen.destination in _BEREFT:
                raise OutcomeUnknown(
                    "the source's hypervisor process died after the guest had gone over, and took some of its memory "
                    "along",
                    hint="the guest cannot go on: stop it on the destination, then start it again",
                ) from cause
            found = verdict(seen, patient=time.monotonic() - begun < self._patience)
            if found is not Verdict.WAIT:
                break
            if cause is None and seen.source is Side.MOVING and not self._went_over_early:
                # Nothing is wanted of it any more that it could still do.
                cause = OperationFailed("the source did not answer while it was sent")
                self._cancel(cause)
            self._wait(seen)
        if found is Verdict.ARRIVED:
            return self._arrived(info, cause)
        if found is Verdict.STAYED:
            raise self._stayed(info, cause)
        if found is Verdict.LOST:
            self._finish(info, cause)
            lost = OperationFailed(
                "the source's hypervisor process ended before the guest had gone over: it runs on neither side",
                hint="start it again on either host",
            )
            raise lost from cause
        if seen.destination is Side.GONE or (seen.destination, seen.source) == (Side.INCOMPLETE, Side.UNKNOWN):
            # What is there will never run, whatever the source is.
            self._finish(info, cause)
        if seen.source is Side.RUNS and seen.destination is Side.RUNS:
            self._stop_here()
        raise _unknown(seen) from cause

    def _wait(self, seen: Evidence) -> None:
        try:
            if seen.source is Side.MOVING:
                self._last = self._next()
                return
        except HypervisorError as error:
            self._last = attrs.evolve(self._last, error=error.message)
        time.sleep(min(self._interval, _LOOK_AGAIN))

    def _arrived(self, info: MigrationInfo, cause: BaseException | None) -> MigrationResult:
        """It is over there, complete, and cannot run here: let it run there, then let go of it here."""
        self._let_run(info)
        return self._left(cause)

    def _left(self, cause: BaseException | None) -> MigrationResult:
        """It runs over there: let go of it here."""
        status = self._last
        try:
            if status.phase is not MigrationPhase.COMPLETED:
                status = self._source.get_migration_status(self._name)
        except HypervisorError:
            status = self._last
        self._let_go()
        if cause is not None and not isinstance(cause, HypervisorError):
            cause.add_note("it was too late to cancel: the instance is on the destination")
            raise cause
        downtime = status.downtime if self._paused is None else self._paused
        return MigrationResult(
            instance=self._name,
            # The source is done before the guest runs over there.
            total_time=max(status.total_time, downtime or 0.0),
            downtime=downtime,
            transferred=status.transferred,
            phases=tuple(self._phases),
            note=self._note,
        )

    def _let_run(self, info: MigrationInfo) -> None:
        for again in (True, False):
            try:
                self._let_it_run(info)
            except HypervisorError as error:
                seen = look(self._source, self._destination, self._name)
                if seen.destination is Side.RUNS:
                    return
                if seen.destination is Side.ARRIVED and again:
                    continue  # the answer was lost, or the request was: the same once more is harmless
                if seen.destination is Side.GONE:
                    self._finish(info, error)
                raise _unknown(seen) from error
            return

    def _let_it_run(self, info: MigrationInfo) -> None:
        done = self._destination.finalize_migration_dst(info, True)
        if self._paused is None and self._last.stopped is not None and done.after is InstanceState.RUNNING:
            # Both by the clock of this host.
            self._paused = max(0.0, time.time() - self._last.stopped)

    def _let_go(self) -> None:
        for again in (True, False):
            try:
                self._source.finalize_migration_source(self._name, True)
            except HypervisorError as error:
                if again:
                    continue
                raise OutcomeUnknown(
                    f"it is on the destination; the source could not let go of it: {error.message}",
                    hint="on the source, put it in order with recover; it must not be resumed there",
                ) from error
            return

    def _stayed(self, info: MigrationInfo, cause: BaseException | None) -> BaseException:
        """The guest is here and nowhere else: let go of it there, then let it run here as it did."""
        if cause is None:
            cancelled = self._last.phase in (MigrationPhase.CANCELLED, MigrationPhase.CANCELLING)
            words = "it was cancelled" if cancelled else f"it failed: {self._last.error or 'the source gave no reason'}"
            cause = OperationFailed(f"{words}; the instance runs on at the source")
        finishers: tuple[tuple[str, Callable[[], Transition]], ...] = (
            ("destination", lambda: self._destination.finalize_migration_dst(info, False)),
            ("source", lambda: self._source.finalize_migration_source(self._name, False)),
        )
        for side, finish in finishers:
            try:
                said = finish().detail
            except HypervisorError as error:
                cause.add_note(f"on the {side} put it in order with recover: {error.message}")
                continue
            if side == "destination" and said:
                cause.add_note(f"the destination: {said}")
        cause.add_note("the instance is on the source, as before")
        return cause

    def _finish(self, info: MigrationInfo, cause: BaseException | None) -> None:
        """Let go of it on the destination, where it will never run."""
        try:
            self._destination.finalize_migration_dst(info, False)
        except HypervisorError as error:
            if cause is not None:
                cause.add_note(f"on the destination put it in order with recover: {error.message}")

    def _stop_here(self) -> None:
        """Against the contract of one of the drivers, it runs twice: stop the one that can be stopped from here."""
        stops: tuple[Callable[[], object], ...] = (
            lambda: self._source.pause_instance(self._name),
            lambda: self._source.stop_instance(self._name, force=True),
        )
        for stop in stops:
            try:
                stop()
            except HypervisorError:
                continue
            return


_BEREFT = (Side.RUNS, Side.ARRIVED, Side.UNKNOWN)
"""What a destination shows that has some of a guest's memory, and whose source had the rest."""

_POSTCOPY = (MigrationPhase.POSTCOPY, MigrationPhase.POSTCOPY_PAUSED)


def _version(node: HostFacts) -> str:
    return node.hypervisor[0][1] if node.hypervisor else ""


def _unknown(seen: Evidence) -> OutcomeUnknown:
    where = f"the source {seen.source_words}; the destination {seen.destination_words}"
    return OutcomeUnknown(f"nobody can tell where it is: {where}", hint=seen.advice)
