"""The destination: everything is compared before anything moves, then a paused QEMU waits for the guest."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from hvcore import (
    AlreadyRunning,
    Deadline,
    Finding,
    FindingSet,
    HypervisorError,
    Instance,
    InvalidParameters,
    MigrationInfo,
    MigrationPhase,
    MigrationPolicy,
    MigrationTarget,
    OperationFailed,
)
from hvcore_kvm import process
from hvcore_kvm.directory import EVENTS, InstanceDirectory
from hvcore_kvm.events import MIGRATION_EVENTS
from hvcore_kvm.launch import Arrival
from hvcore_kvm.launch_plan import Decisions, LaunchPlan
from hvcore_kvm.migration.credentials import add_credentials, check_credentials
from hvcore_kvm.migration.disk_files import DiskFiles
from hvcore_kvm.migration.disk_places import Place
from hvcore_kvm.migration.encrypted_image import make_encrypted
from hvcore_kvm.migration.evidence import arriving_phase
from hvcore_kvm.migration.exporting import export_disks
from hvcore_kvm.migration.info import Moving
from hvcore_kvm.migration.monitor import Monitor, connect
from hvcore_kvm.migration.negotiation import check_policy, negotiate
from hvcore_kvm.migration.processor import compare, plug_processors, probe_processor
from hvcore_kvm.observation import Observed
from hvcore_kvm.qmp import QmpClient
from hvcore_kvm.runtime import MIGRATION, RECORD, SCHEMA, DiskFile, MigrationRecord, RuntimeRecord

_USERFAULTFD = "/proc/sys/vm/unprivileged_userfaultfd"


def check_address(address: object) -> Iterator[Finding]:
    """An address that the source can be told to connect to."""
    try:
        found = ipaddress.ip_address(address) if type(address) is str else None
    except ValueError:
        found = None
    message = ""
    if found is None:
        message = f"{str(address)[:60]!r} is not an IP address"
    elif found.is_unspecified or found.is_multicast or (isinstance(found, ipaddress.IPv6Address) and found.scope_id):
        message = f"{found} is no address that another host can connect to"
    if message:
        yield Finding(code="invalid-value", path="address", message=message, hint="one address of this host")


def compare_hosts(moving: Moving, decisions: Decisions, deadline: Deadline) -> tuple[Decisions, list[Finding]]:
    """Compare what the guest has had with what it would have here.

    Args:
        moving: what the source has sent.
        decisions: what a start of it here comes to.
        deadline: by when to be done.

    Returns:
        The decisions, with what the guest must not see switched off, and everything that differs.
    """
    findings = []
    if decisions.capabilities.machine(moving.machine) is None:
        message = f"machine type {moving.machine} is unknown to QEMU {decisions.capabilities.version_text}"
        findings.append(Finding(code="unknown-machine", path="record.machine", message=message))
    if decisions.choice.accelerator.value != moving.accelerator:
        message = f"it runs with {moving.accelerator}, here it would run with {decisions.choice.accelerator.value}"
        hint = f"{decisions.choice.reason}; params.accel decides"
        findings.append(Finding(code="accelerator-differs", path="record.accelerator", message=message, hint=hint))
    if decisions.cpu_model != moving.cpu_model:
        message = f"its CPU model is {moving.cpu_model}, here it would be {decisions.cpu_model}"
        findings.append(Finding(code="cpu-differs", path="record.cpu_model", message=message))
    if findings or moving.processor is None:
        return decisions, findings
    here = probe_processor(decisions, deadline)
    findings += compare(moving.processor, here)
    if here is not None:
        known = set(decisions.capabilities.cpu_features)
        more = (name for name in here.features if name not in moving.processor.features and name in known)
        decisions = attrs.evolve(decisions, cpu_without=tuple(more))
    return decisions, findings


def check_agreement(info: MigrationInfo, policy: MigrationPolicy, decisions: Decisions) -> Iterator[Finding]:
    """Find what of the policy one of the two sides cannot do."""
    here = decisions.capabilities
    yield from check_policy(policy, here.migration_capabilities, f"QEMU {here.version_text} of this host")
    yield from check_policy(policy, info.capabilities, "the source's QEMU")
    if policy.tls is not None:
        yield from check_credentials(policy.tls, "server")
    model = decisions.definition.security_model
    if policy.live and policy.going_over_early is not None and model is not None and model.name != "none":
        yield from _check_postcopy(model.name)


def _check_postcopy(model: str) -> Iterator[Finding]:
    """Who is not root may not handle the page faults of the kernel (userfaultfd(2), vm.unprivileged_userfaultfd)."""
    try:
        with open(_USERFAULTFD, encoding="ascii") as file:
            allowed = file.read().strip() != "0"
    except OSError:
        allowed = True  # Linux before 5.2, which asks nobody
    if not allowed:
        message = f"QEMU cannot fetch memory as it is needed under security model {model} on this host"
        hint = 'sysctl vm.unprivileged_userfaultfd=1, or security_model = "none"'
        yield Finding(code="no-userfaultfd", path="policy.postcopy", message=message, hint=hint)


class Accepting:
    """Starts the QEMU that waits. Use it once.

    Args:
        directory: the instance's directory; it need not exist.
        plan: what to start; may be replaced by a newer plan.
        moving: what the source has sent.
        address: where to listen.
        policy: how the migration should go.
        deadline: by when to be done.
        places: where the disks go that are copied; may be replaced together with the plan.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        plan: LaunchPlan,
        moving: Moving,
        address: str,
        policy: MigrationPolicy,
        deadline: Deadline,
        places: tuple[Place, ...] = (),
    ) -> None:
        self._directory = directory
        self.plan = plan
        self.places = places
        self._moving = moving
        self._address = ipaddress.ip_address(address)
        self._policy = policy
        self._deadline = deadline
        self._port = 0
        self._disks_port: int | None = None

    def arrival(self) -> Arrival:
        """What its start has more than another."""
        now = time.time()
        record = MigrationRecord(
            role="destination",
            runs=self._moving.runs,
            policy=self._policy,
            owner=process.identify(os.getpid()),
            began=now,
            downtime_limit=self._policy.downtime_limit,
            raised=now,
            disks=tuple(place.uuid for place in self.places),
        )

        def keep(files: tuple[DiskFile, ...]) -> None:
            self._directory.write(MIGRATION, attrs.evolve(record, files=files), schema=SCHEMA)

        def encrypt(fd: int, kind: str, size: int, secret_file: str) -> None:
            make_encrypted(self.plan.decisions.capabilities.path, fd, kind, size, secret_file, self._deadline)

        files = DiskFiles(self.places, keep, encrypt) if self.places else None
        return Arrival(record=record, listen=self._listen, files=files)

    def target(self) -> MigrationTarget:
        """Where it listens, once it does."""
        tls = self._policy.tls
        name = None if tls is None else tls.hostname or str(self._address)
        return MigrationTarget(
            address=str(self._address), port=self._port, tls_hostname=name, disks_port=self._disks_port
        )

    def _listen(self, client: QmpClient, pid: int) -> None:
        monitor = Monitor(client, self._deadline)
        self._directory.reserve(EVENTS, MIGRATION_EVENTS)
        self._plug(monitor)
        known = self.plan.decisions.capabilities.migration_capabilities
        # A guest that is to run takes its disks when it is let run: until then the source can take it back.
        negotiate(monitor, self._policy, known, late=self._moving.runs)
        security: dict[str, Any] = {}
        if self._policy.tls is not None:
            security = add_credentials(monitor, self._directory, self._policy.tls, "server", pid)
            monitor.execute("migrate-set-parameters", security)
        self._port = listen(monitor, self._address, self._policy)
        if self.places:
            disks = [place.uuid for place in self.places]
            self._disks_port = export_disks(monitor, self._address, self._policy, disks, security)

    def _plug(self, monitor: Monitor) -> None:
        plugged = self._moving.plugged
        if not plugged:
            return
        plug_processors(monitor, ((cpu.number, cpu.props) for cpu in plugged))
        record = self._directory.read(RECORD, RuntimeRecord, schema=SCHEMA)
        if record is not None:
            instance = attrs.evolve(record.instance, vcpus=record.instance.vcpus + len(plugged))
            self._directory.write(RECORD, attrs.evolve(record, instance=instance), schema=SCHEMA)


def listen(
    monitor: Monitor,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    policy: MigrationPolicy,
    command: str = "migrate-incoming",
) -> int:
    """Make QEMU listen on a free port of those the policy allows; returns the port.

    Raises:
        HypervisorRefused: QEMU's own words, such as that none is free.
    """
    host = f"[{address}]" if address.version == 6 else str(address)
    monitor.execute(command, {"uri": f"tcp:{host}:{policy.first_port},to={policy.last_port}"})
    try:
        return int(monitor.execute("query-migrate")["socket-address"][0]["port"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise OperationFailed("QEMU does not say where it listens") from error


def is_interrupted(seen: Observed, instance: Instance) -> bool:
    """Whether an instance is arriving here already: then it can only be its connection that is to be made anew."""
    record = seen.record
    mine = record is not None and (record.instance.uuid or "").lower() == (instance.uuid or "").lower()
    return mine and seen.started and seen.migration is not None and seen.migration.role == "destination"


def is_abandoned(seen: Observed) -> bool:
    """Whether nobody has sent an instance that is waited for here, and whoever waited for it has ended."""
    record = seen.migration
    if record is None or record.over or process.is_alive(record.owner):
        return False
    return arriving_phase(record, seen.events) in (MigrationPhase.NONE, MigrationPhase.SETUP)


def accept_again(
    directory: InstanceDirectory, seen: Observed, address: str, policy: MigrationPolicy, deadline: Deadline
) -> MigrationTarget:
    """Listen again for the rest of a guest that has gone over by post-copy, and whose connection broke.

    Raises:
        AlreadyRunning: its connection has not broken.
        HypervisorRefused: QEMU's own words.
    """
    with connect(directory, seen.process, deadline) as monitor:
        phase = MigrationPhase.NONE if seen.migration is None else arriving_phase(seen.migration, seen.events)
        if phase is not MigrationPhase.POSTCOPY_PAUSED:
            raise AlreadyRunning(
                f"it is arriving already: {phase.value}",
                instance=directory.name,
                hint="let that migration end; if nobody is left to do so, put it in order with recover",
            )
        here = ipaddress.ip_address(address)
        port = listen(monitor, here, policy, "migrate-recover")
    name = None if policy.tls is None else policy.tls.hostname or str(here)
    return MigrationTarget(address=str(here), port=port, tls_hostname=name)


def refuse(findings: Iterable[Finding], instance: str) -> None:
    """Refuse what has findings.

    Raises:
        InvalidParameters: there are some.
    """
    found = list(findings)
    if found:
        raise InvalidParameters("it cannot move to this host", FindingSet(found), instance=instance)


def start_once_more(start: Callable[[], None], again: Callable[[], None], deadline: Deadline, chances: int) -> None:
    """Start, and plan and start anew where what was planned with has just been taken by somebody else."""
    for left in reversed(range(chances)):
        try:
            return start()
        except HypervisorError as error:
            if not error.retryable or not left or deadline.expired:
                raise
        again()
    return None
