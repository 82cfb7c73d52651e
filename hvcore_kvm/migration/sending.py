"""The source: beginning to send, doing what becomes due on the way, and taking it back."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Iterator

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    HypervisorError,
    HypervisorRefused,
    InvalidParameters,
    MigrationPhase,
    MigrationPolicy,
    MigrationStatus,
    MigrationTarget,
    OperationFailed,
    OutcomeUnknown,
    WrongState,
)
from hvcore_kvm import process
from hvcore_kvm.directory import EVENTS, InstanceDirectory
from hvcore_kvm.events import MIGRATION_EVENTS, read_events
from hvcore_kvm.migration.credentials import (
    CREDENTIALS,
    add_credentials,
    check_credentials,
    remove_copies,
    remove_credentials,
)
from hvcore_kvm.migration.disk_places import check_choice, disks_to_copy, sent_images
from hvcore_kvm.migration.disk_progress import all_ready, broken_mirror
from hvcore_kvm.migration.evidence import stopped_at
from hvcore_kvm.migration.info import run_state_of
from hvcore_kvm.migration.mirroring import finish_mirrors, remove_mirrors, start_mirrors
from hvcore_kvm.migration.monitor import Monitor, connect
from hvcore_kvm.migration.negotiation import check_policy, negotiate, switch
from hvcore_kvm.migration.status import passes_of
from hvcore_kvm.observation import Observed
from hvcore_kvm.runtime import MIGRATION, SCHEMA, MigrationRecord, RuntimeRecord

OVER = (MigrationPhase.POSTCOPY, MigrationPhase.POSTCOPY_PAUSED, MigrationPhase.COMPLETED)
"""Phases in which the guest is on the other side."""

_STOPPED = (MigrationPhase.PRE_SWITCHOVER, MigrationPhase.DEVICE, *OVER)
_UNDER_WAY = 30.0
_HELD_UP = 0.05
"""Seconds after which an answer is late: QEMU was sending the last of the guest."""

_MOMENT = 0.5
"""Seconds in which it is done then."""

_GRACE = 10.0
"""Seconds a cancelled migration may take to end."""

_RAISE_AGAIN = 4
"""The pause that is aimed at is raised, to twice as much at least, after each such part of the policy's patience."""


def check_target(target: MigrationTarget, policy: MigrationPolicy) -> Iterator[Finding]:
    """Find what is wrong with where a destination says that it listens."""
    try:
        address = ipaddress.ip_address(target.address) if type(target.address) is str else None
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast:
        message = f"{str(target.address)[:60]!r} is no address to connect to"
        yield Finding(code="invalid-value", path="target.address", message=message)
    if type(target.port) is not int or not 0 < target.port < 65536:
        message = f"{str(target.port)[:20]} is no port"
        yield Finding(code="invalid-value", path="target.port", message=message)
    wanted = None if policy.tls is None else policy.tls.hostname or str(target.address)
    if target.tls_hostname != wanted:
        told = "no TLS" if target.tls_hostname is None else f"a certificate for {str(target.tls_hostname)[:60]!r}"
        message = f"the destination has {told}, and the policy wants {'none' if wanted is None else wanted}"
        hint = "give both sides the same policy"
        yield Finding(code="contradiction", path="target.tls_hostname", message=message, hint=hint)


def _check_disks_port(target: MigrationTarget, disks: tuple[str, ...]) -> Iterator[Finding]:
    port = target.disks_port
    if (port is None) == bool(disks):
        told = f"takes {'no disks' if port is None else 'disks'}"
        message = f"the destination {told}, and the policy has {len(disks)} copied"
        yield Finding(
            code="contradiction", path="target.disks_port", message=message, hint="give both sides the same policy"
        )
    elif port is not None and (type(port) is not int or not 0 < port < 65536):
        yield Finding(code="invalid-value", path="target.disks_port", message=f"{str(port)[:20]} is no port")


class Sending:
    """Moves one instance away.

    Args:
        directory: the instance's directory.
        seen: the instance, which is alive.
        deadline: by when to be done.
    """

    def __init__(self, directory: InstanceDirectory, seen: Observed, deadline: Deadline) -> None:
        self._directory = directory
        self._seen = seen
        self._deadline = deadline

    def begin(self, target: MigrationTarget, policy: MigrationPolicy, running: RuntimeRecord) -> MigrationStatus:
        """Begin to send it: its disks, where they are copied, else itself.

        Args:
            target: where the destination listens.
            policy: how it should go.
            running: what it runs with.

        Raises:
            InvalidParameters: everything wrong with the target, and what QEMU lacks for the policy.
            WrongState: one is under way, or the guest is in no state to be moved.
            HypervisorRefused: QEMU's own words; nothing has changed.
            OutcomeUnknown: it may have begun.
        """
        refuse_changing(self._seen)
        instance, version = running.instance, running.qemu_version
        with connect(self._directory, self._seen.process, self._deadline) as monitor:
            again = self._refuse_under_way(monitor)
            # Of the QEMU that runs: the program on disk may be a newer one.
            known = monitor.capabilities()
            findings = [*check_target(target, policy), *check_policy(policy, known, f"QEMU {version}")]
            findings += check_choice(policy, instance)
            disks = tuple((disk.uuid or "").lower() for disk in disks_to_copy(policy, instance))
            findings += _check_disks_port(target, disks)
            if policy.tls is not None:
                findings += check_credentials(policy.tls, "client")
            if findings:
                raise InvalidParameters("it cannot be sent there", FindingSet(findings))
            if again:
                monitor.execute("migrate", {"uri": _uri(target), "resume": True})
                return monitor.status()
            state = run_state_of(monitor.run_state())
            if state is None:
                raise WrongState(
                    f"it cannot be moved: QEMU's run state is {monitor.run_state()}", hint="resume or reset it first"
                )
            sizes = (
                {image.uuid.lower(): image.bytes_to_copy for image in sent_images(monitor, instance)} if disks else {}
            )
            now = time.time()
            record = MigrationRecord(
                role="source",
                runs=state == "running",
                policy=policy,
                owner=process.identify(os.getpid()),
                began=now,
                downtime_limit=policy.downtime_limit,
                raised=now,
                disks=disks,
                sizes=tuple(sizes.get(uuid, 0) for uuid in disks),
                target=target,
            )
            self._directory.reserve(EVENTS, MIGRATION_EVENTS)
            self._write(record)
            try:
                self._prepare(monitor, target, policy, known)
                if disks:
                    start_mirrors(monitor, target, policy, disks, None if policy.tls is None else CREDENTIALS)
                else:
                    self._send(monitor, record)
            except OutcomeUnknown:
                raise  # the record stays: whoever looks next asks QEMU
            except HypervisorError:
                put_back(monitor, record)
                tidy(monitor, self._directory)
                raise
            # A small one may be over already; nobody would look again.
            return with_pause(self._directory, record, self._status(monitor))

    def proceed(self, switch_over: bool, wait: float) -> MigrationStatus:
        """Do what is due; see the hook ``hv_continue_migration``.

        Raises:
            HypervisorRefused: QEMU's own words.
            OutcomeUnknown: QEMU has gone, or does not answer.
        """
        until = self._deadline.sooner(max(0.0, wait))
        with connect(self._directory, self._seen.process, self._deadline) as monitor:
            until = self._a_moment_more(until, wait)
            first = self._status(monitor)
            status = first
            held_up = False
            while True:
                record = self._seen.migration
                if record is None or record.role != "source":
                    return status
                if status.phase.is_final:
                    return with_pause(self._directory, record, status)
                if self._keep_disks(monitor, record, status):
                    status = self._status(monitor)
                    continue
                if status.phase is MigrationPhase.PRE_SWITCHOVER and switch_over:
                    self._let_over(monitor, record)
                    status = self._status(monitor)
                    continue
                self._keep_policy(monitor, record, status)
                if status.phase is not first.phase or until.expired:
                    return with_pause(self._directory, record, status)
                monitor.wait_report(until.sooner(_next_look(record, status)))
                asked = time.monotonic()
                status = self._status(monitor)
                if not held_up and time.monotonic() - asked > _HELD_UP:
                    until, held_up = self._a_moment_more(until, wait), True

    def _a_moment_more(self, until: Deadline, wait: float) -> Deadline:
        """When to stop waiting, at a QEMU that has just answered: one that answers late is about to be done."""
        if self._deadline.remaining() < 2 * _MOMENT:
            return until
        later = self._deadline.sooner(min(max(0.0, wait), _MOMENT))
        return later if later.at > until.at else until

    def cancel(self) -> MigrationStatus:
        """Take it back; once the guest has gone over nothing happens.

        Raises:
            OutcomeUnknown: QEMU has gone, or does not answer.
        """
        with connect(self._directory, self._seen.process, self._deadline) as monitor:
            record = self._seen.migration
            if record is None and (before := monitor.sent(record)).phase.is_final:
                return before
            if record is not None and record.role == "source" and not record.copying:
                phase = monitor.status().phase
                if not phase.is_final and phase not in OVER:
                    record = attrs.evolve(record, cancelled=True)
                    self._write(record)
            status = cancel(monitor, record)
            if record is not None and record.role == "source" and status.phase not in OVER and status.phase.is_final:
                put_back(monitor, record)
                tidy(monitor, self._directory)
                # Whoever asks later hears how it ended, from QEMU, which knows nothing of what it had not begun.
                known = monitor.status() if record.memory is not None or not record.disks else status
                return attrs.evolve(known, phase=status.phase, error=status.error)
            return status

    def _refuse_under_way(self, monitor: Monitor) -> bool:
        """Refuse an instance that is moving already; true if all it lacks is the connection, after post-copy."""
        record = self._seen.migration
        if record is not None and record.role == "destination":
            raise WrongState("it is arriving on this host", hint="finish that migration first")
        phase = monitor.status().phase
        if record is not None and phase is MigrationPhase.POSTCOPY_PAUSED:
            return True
        if not phase.is_final:
            raise WrongState(f"a migration is under way: {phase.value}", hint="wait for it, or cancel it")
        if phase is MigrationPhase.COMPLETED and record is not None:
            raise WrongState("it has been sent to another host", hint="finalize that migration")
        return False

    def _prepare(
        self, monitor: Monitor, target: MigrationTarget, policy: MigrationPolicy, known: tuple[str, ...]
    ) -> None:
        negotiate(monitor, policy, known)
        if policy.tls is not None and self._seen.process is not None:
            pid = self._seen.process.identity.pid
            parameters = add_credentials(monitor, self._directory, policy.tls, "client", pid)
            monitor.execute("migrate-set-parameters", {**parameters, "tls-hostname": target.tls_hostname})

    def _send(self, monitor: Monitor, record: MigrationRecord) -> None:
        """Begin to send the guest itself."""
        assert record.target is not None  # noqa: S101 - written with it
        if not record.policy.live:
            monitor.execute("stop")
        monitor.execute("migrate", {"uri": _uri(record.target)})

    def _status(self, monitor: Monitor) -> MigrationStatus:
        return monitor.sent(self._seen.migration)

    def _keep_disks(self, monitor: Monitor, record: MigrationRecord, status: MigrationStatus) -> bool:
        """See to the copy of the disks; true if something became of it."""
        moving = (MigrationPhase.DISKS, MigrationPhase.SETUP, MigrationPhase.ACTIVE)
        if not record.disks or status.phase not in moving:
            return False
        problem = broken_mirror(monitor, record)
        if problem:
            return self._fail(monitor, record, problem)
        if status.phase is MigrationPhase.DISKS and all_ready(monitor, record):
            now = time.time()
            # Written first: who finds it asks QEMU how far that is.
            self._write(attrs.evolve(record, memory=now, raised=now))
            try:
                self._send(monitor, attrs.evolve(record, memory=now))
            except HypervisorRefused as error:
                return self._fail(monitor, record, error.message)
            return True
        return False

    def _fail(self, monitor: Monitor, record: MigrationRecord, problem: str) -> bool:
        """End it because its disks cannot be copied, unless the guest has gone over."""
        if not record.copying:
            phase = cancel(monitor, record).phase
            if phase in OVER:
                return False
            if not phase.is_final:
                raise OutcomeUnknown(f"{problem}; and the migration does not end: {phase.value}", hint="call it again")
        put_back(monitor, record)
        remove_mirrors(monitor)
        self._write(attrs.evolve(record, ended="failed", error=problem))
        return True

    def _let_over(self, monitor: Monitor, record: MigrationRecord) -> None:
        if record.disks:
            try:
                finish_mirrors(monitor, record)
            except OperationFailed as error:
                self._fail(monitor, record, error.message)
                return
        self._write(attrs.evolve(record, over=True))
        # QEMU refuses it in any other phase, as after it was cancelled meanwhile.
        monitor.attempt("migrate-continue", {"state": "pre-switchover"})

    def _keep_policy(self, monitor: Monitor, record: MigrationRecord, status: MigrationStatus) -> None:
        policy, now = record.policy, time.time()
        monitor.help_cancelling(status)
        before = (MigrationPhase.DISKS, MigrationPhase.SETUP, MigrationPhase.ACTIVE, MigrationPhase.PRE_SWITCHOVER)
        if status.phase not in before:
            return
        if policy.deadline is not None and now - record.began >= policy.deadline:
            if record.copying:
                remove_mirrors(monitor)
                self._write(attrs.evolve(record, ended="cancelled"))
                monitor.attempt("migrate_cancel")
            else:
                self._cancel(monitor, record)
            return
        if status.phase is not MigrationPhase.ACTIVE or not policy.live:
            return
        early = policy.going_over_early
        impatient = now - record.sending_since >= policy.patience
        if early is not None and not record.over:
            passes = passes_of(monitor.execute("query-migrate"))
            enough = early.after_passes is not None and passes >= early.after_passes
            if enough or (impatient and policy.on_no_convergence == "postcopy"):
                self._write(attrs.evolve(record, over=True))
                monitor.attempt("migrate-start-postcopy")
                return
        if not impatient:
            return
        if policy.on_no_convergence == "cancel":
            self._cancel(monitor, record)
        elif policy.on_no_convergence == "raise-downtime":
            self._raise_downtime(monitor, record, now, status.expected_downtime or 0.0)

    def _cancel(self, monitor: Monitor, record: MigrationRecord) -> None:
        self._write(attrs.evolve(record, cancelled=True))
        monitor.attempt("migrate_cancel")

    def _raise_downtime(self, monitor: Monitor, record: MigrationRecord, now: float, expected: float) -> None:
        longest = record.policy.longest_downtime
        first = record.raised <= record.sending_since
        if record.downtime_limit >= longest or not (first or now - record.raised >= _interval(record.policy)):
            return
        limit = min(longest, max(record.downtime_limit * 2, expected))
        self._write(attrs.evolve(record, downtime_limit=limit, raised=now))
        monitor.execute("migrate-set-parameters", {"downtime-limit": max(1, round(limit * 1000))})

    def _write(self, record: MigrationRecord) -> None:
        self._directory.write(MIGRATION, record, schema=SCHEMA)
        self._seen = attrs.evolve(self._seen, migration=record)


def _uri(target: MigrationTarget) -> str:
    host = f"[{target.address}]" if ":" in target.address else target.address
    return f"tcp:{host}:{target.port}"


def refuse_changing(seen: Observed) -> None:
    """Refuse an instance whose devices are being changed: the other side would have others.

    Raises:
        WrongState: they are.
    """
    if seen.changes.pending:
        raise WrongState(
            "a device is being added or removed", hint="'hv hotplug list' shows it; wait until the guest has let go"
        )


def cancel(monitor: Monitor, record: MigrationRecord | None) -> MigrationStatus:
    """Take a migration back, unless the guest has gone over, and wait until that is done.

    Args:
        monitor: of the source.
        record: of the migration; without one only that of the guest itself is taken back.
    """
    if record is not None and record.copying:
        remove_mirrors(monitor)
        return MigrationStatus(phase=MigrationPhase.CANCELLED)
    status = monitor.status()
    if status.phase.is_final or status.phase in OVER:
        return status
    monitor.attempt("migrate_cancel")
    monitor.wait(lambda s: s.phase.is_final or s.phase in OVER, Deadline.after(_GRACE))
    return monitor.sent(record)


def put_back(monitor: Monitor, record: MigrationRecord) -> None:
    """Let a guest run again that ran before its migration, which has failed or was cancelled.

    Raises:
        HypervisorRefused: QEMU's own words.
    """
    if not record.runs:
        return
    # QEMU lets it run by itself, unless it had been stopped for a migration that is not live.
    if monitor.run_state() in ("paused", "postmigrate", "finish-migrate", "prelaunch"):
        monitor.execute("cont")


def tidy(monitor: Monitor, directory: InstanceDirectory) -> None:
    """Leave nothing of a migration that has ended: it would spoil the next one."""
    with contextlib.suppress(HypervisorError):
        remove_mirrors(monitor)
    with contextlib.suppress(HypervisorError):
        switch(monitor, monitor.capabilities())
    with contextlib.suppress(HypervisorError):
        remove_credentials(monitor)
    remove_copies(directory)
    directory.remove(MIGRATION)


def with_pause(directory: InstanceDirectory, record: MigrationRecord, status: MigrationStatus) -> MigrationStatus:
    """A status with when the guest was stopped, once it may have been."""
    if status.phase not in _STOPPED:
        return status
    return attrs.evolve(status, stopped=stopped_at(record, read_events(directory)))


def _interval(policy: MigrationPolicy) -> float:
    return max(1.0, policy.patience / _RAISE_AGAIN)


def _next_look(record: MigrationRecord, status: MigrationStatus) -> float:
    """Seconds until something of the policy may become due."""
    policy, now = record.policy, time.time()
    times = [record.sending_since + policy.patience, record.raised + _interval(policy)]
    if policy.deadline is not None:
        times.append(record.began + policy.deadline)
    return max(0.05, min([_UNDER_WAY, *(at - now for at in times if at > now)]))
