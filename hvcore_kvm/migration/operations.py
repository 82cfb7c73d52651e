"""What the migration hooks of the driver do. Imported when the first of them is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    InvalidParameters,
    MigrationCompatibility,
    MigrationInfo,
    MigrationPolicy,
    MigrationStatus,
    MigrationTarget,
    NotRunning,
    RecordError,
    Transition,
    WrongState,
)
from hvcore_kvm.backup.recovery import refuse_backup
from hvcore_kvm.definition import Definition
from hvcore_kvm.directory import QUERY, InstanceDirectory
from hvcore_kvm.families import InterfaceEvent
from hvcore_kvm.images import Image
from hvcore_kvm.launch import Launch
from hvcore_kvm.launch_plan import Decisions, LaunchPlan, plan_launch
from hvcore_kvm.lifecycle import Control
from hvcore_kvm.migration.accepting import (
    Accepting,
    accept_again,
    check_address,
    check_agreement,
    compare_hosts,
    is_abandoned,
    is_interrupted,
    refuse,
    start_once_more,
)
from hvcore_kvm.migration.compatibility import compare_versions
from hvcore_kvm.migration.disk_places import Place, check_places, disks_to_copy, sent_images
from hvcore_kvm.migration.evidence import arriving_phase
from hvcore_kvm.migration.finalizing import Finalizing
from hvcore_kvm.migration.info import SCHEMA, Moving, Plugged, plain_definition, read_info, run_state_of
from hvcore_kvm.migration.monitor import Monitor, connect
from hvcore_kvm.migration.processor import Processor, expand, plugged_processors
from hvcore_kvm.migration.sending import Sending, refuse_changing, with_pause
from hvcore_kvm.observation import Observed, observe
from hvcore_kvm.runtime import PLACEMENT, Placement, RuntimeRecord
from hvcore_kvm.runtime import SCHEMA as RECORD_SCHEMA
from hvcore_kvm.snapshots.layers import refuse_overlays
from hvcore_kvm.snapshots.record import refuse_interrupted
from hvcore_kvm.support import check_support

_CHANCES = 5
"""How often a start is planned anew when something of the plan is taken meanwhile."""


@attrs.frozen(kw_only=True)
class Workings:
    """What the other operations of the driver are made of, too.

    Attributes:
        driver: name of the driver.
        start_timeout: seconds QEMU may take until its monitor answers.
        directory: the directory of an instance.
        control: what changes an instance.
        refuse_running: raises `hvcore.AlreadyRunning`.
        decide: resolves all that a start depends on, and finds what stands against it.
        announce: told of network interfaces that have come up.
        lead: leads to the guest of an instance that has arrived what reaches it by this host.
    """

    driver: str
    start_timeout: float
    directory: Callable[[str], InstanceDirectory]
    control: Callable[[InstanceDirectory], Control]
    refuse_running: Callable[[InstanceDirectory], None]
    decide: Callable[..., tuple[Decisions, list[Finding]]]
    announce: Callable[[InterfaceEvent], None]
    lead: Callable[[RuntimeRecord], None]


class MigrationOperations:
    """The migration operations of one loaded driver.

    Args:
        workings: shared with its other operations.
    """

    def __init__(self, workings: Workings) -> None:
        self._host = workings

    def versions_safe_for_migration(self, source: str, destination: str) -> MigrationCompatibility:
        """Whether two versions of QEMU can exchange an instance."""
        return compare_versions(source, destination)

    def migration_info(self, name: str, deadline: Deadline) -> MigrationInfo:
        """What the destination needs to know."""
        with self._host.directory(name) as directory:
            seen, record = self._running(directory)
            refuse_changing(seen)
            refuse_overlays(directory, "moved")
            with connect(directory, seen.process, deadline, QUERY) as monitor:
                self._refuse_unmovable(monitor, seen)
                state = monitor.run_state()
                run_state = run_state_of(state)
                if state == "postmigrate" and seen.migration is not None:
                    # It has gone over, and whoever moved it was killed: the destination is finished by the same info.
                    run_state = "running" if seen.migration.runs else "paused"
                if run_state is None:
                    raise WrongState(
                        f"it cannot be moved: QEMU's run state is {state}", hint="resume or reset it first"
                    )
                processor = self._processor(monitor, record, directory, deadline)
                known = monitor.capabilities()
                plugged = plugged_processors(monitor)
                images = sent_images(monitor, record.instance)
            kept = directory.read(PLACEMENT, Placement, schema=RECORD_SCHEMA, data=True)
        moving = Moving(
            instance=plain_definition(record.instance),
            machine=record.machine,
            accelerator=record.accelerator,
            cpu_model=record.cpu_model,
            qemu_version=record.qemu_version,
            ports=record.ports,
            addresses={} if kept is None else dict(kept.addresses),
            run_state=run_state,
            plugged=tuple(Plugged(number=number, props=props) for number, props in plugged),
            images=images,
            expanded=processor is not None,
            vendor=processor.vendor if processor is not None else "",
            features=processor.features if processor is not None else (),
        )
        return MigrationInfo(
            schema=SCHEMA,
            driver=self._host.driver,
            instance=name,
            record=plain_definition(moving),
            capabilities=known,
        )

    def accept_instance(
        self, info: MigrationInfo, address: str, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationTarget:
        """Wait for it."""
        with self._host.directory(info.instance) as directory:
            moving, instance, findings = read_info(info, self._host.driver)
            findings += check_address(address)
            refuse(findings, info.instance)
            seen = observe(directory) if directory.exists else None
            if seen is not None and is_interrupted(seen, instance):
                if seen.alive and not is_abandoned(seen):
                    return accept_again(directory, seen, address, policy, deadline)
                self._host.control(directory).discard(deadline)
            self._host.refuse_running(directory)
            refuse_overlays(directory, "taken in")
            plan, places = self._plan(info, moving, directory, policy, deadline)
            self._host.control(directory).clear_leftovers(deadline)
            accepting = Accepting(directory, plan, moving, address, policy, deadline, places)

            def start() -> None:
                launch = Launch(
                    accepting.plan,
                    directory,
                    self._host.start_timeout,
                    self._host.announce,
                    accepting.arrival(),
                )
                launch.run(deadline)

            def again() -> None:
                accepting.plan, accepting.places = self._plan(info, moving, directory, policy, deadline)

            start_once_more(start, again, deadline, _CHANCES)
            return accepting.target()

    def migrate_instance(
        self, name: str, target: MigrationTarget, policy: MigrationPolicy, deadline: Deadline
    ) -> MigrationStatus:
        """Begin to send it."""
        with self._host.directory(name) as directory:
            seen, record = self._running(directory)
            refuse_interrupted(directory)
            refuse_overlays(directory, "moved")
            return Sending(directory, seen, deadline).begin(target, policy, record)

    def get_migration_status(self, name: str, deadline: Deadline) -> MigrationStatus:
        """How far it is."""
        with self._host.directory(name) as directory:
            seen = self._alive(directory)
            if seen.migration is not None and seen.migration.role == "destination":
                return MigrationStatus(phase=arriving_phase(seen.migration, seen.events))
            with connect(directory, seen.process, deadline, QUERY) as monitor:
                found = monitor.sent(seen.migration)
            return found if seen.migration is None else with_pause(directory, seen.migration, found)

    def continue_migration(self, name: str, switch_over: bool, wait: float, deadline: Deadline) -> MigrationStatus:
        """Do what is due."""
        with self._host.directory(name) as directory:
            return Sending(directory, self._alive(directory), deadline).proceed(switch_over, wait)

    def cancel_migration(self, name: str, deadline: Deadline) -> MigrationStatus:
        """Take it back."""
        with self._host.directory(name) as directory:
            seen = self._alive(directory)
            if seen.migration is not None and seen.migration.role == "destination":
                raise WrongState("it is arriving on this host", hint="cancel it on the source")
            return Sending(directory, seen, deadline).cancel()

    def finalize_migration_source(self, name: str, success: bool, deadline: Deadline) -> Transition:
        """Finish on the source."""
        with self._host.directory(name) as directory:
            return Finalizing(directory, self._host.control(directory), deadline, self._host.lead).source(success)

    def finalize_migration_dst(self, info: MigrationInfo, success: bool, deadline: Deadline) -> Transition:
        """Finish on the destination."""
        _, instance, findings = read_info(info, self._host.driver)
        refuse(findings, info.instance)
        with self._host.directory(info.instance) as directory:
            finalizing = Finalizing(directory, self._host.control(directory), deadline, self._host.lead)
            return finalizing.destination(instance.uuid or "", success)

    def _running(self, directory: InstanceDirectory) -> tuple[Observed, RuntimeRecord]:
        seen = self._alive(directory)
        if seen.record is None:
            raise RecordError("there is no record of its devices", hint="restart it", instance=directory.name)
        refuse_backup(directory)
        return seen, seen.record

    def _alive(self, directory: InstanceDirectory) -> Observed:
        seen = self._host.control(directory).require_alive()
        if seen.starter is not None:
            raise NotRunning(f"it is being started by process {seen.starter}", instance=directory.name)
        return seen

    def _refuse_unmovable(self, monitor: Monitor, seen: Observed) -> None:
        if seen.migration is not None and seen.migration.role == "destination":
            raise WrongState("it is arriving on this host", hint="finish that migration first")
        answer = monitor.execute("query-migrate")
        reasons = answer.get("blocked-reasons") if isinstance(answer, dict) else None
        if isinstance(reasons, list) and reasons:
            raise WrongState("it cannot be moved: " + "; ".join(str(reason)[:300] for reason in reasons))
        phase = monitor.status().phase
        if not phase.is_final:
            raise WrongState(f"a migration is under way: {phase.value}", hint="wait for it, or cancel it")

    def _processor(
        self, monitor: Monitor, record: RuntimeRecord, directory: InstanceDirectory, deadline: Deadline
    ) -> Processor | None:
        decisions, _ = self._host.decide(record.instance, directory, deadline)
        return expand(monitor.client, attrs.evolve(decisions, machine=record.machine), deadline)

    def _plan(
        self,
        info: MigrationInfo,
        moving: Moving,
        directory: InstanceDirectory,
        policy: MigrationPolicy,
        deadline: Deadline,
    ) -> tuple[LaunchPlan, tuple[Place, ...]]:
        """Plan the start, once everything that the two hosts must have in common has been compared.

        Returns:
            The plan, and where the disks that are copied go.

        Raises:
            InvalidParameters: everything that stands against it.
        """
        _, instance, _ = read_info(info, self._host.driver)
        # Devices have as many queues as there were virtual CPUs at the start.
        instance = attrs.evolve(instance, vcpus=instance.vcpus - len(moving.plugged))
        places: tuple[Place, ...] = ()
        problems: list[Finding] = []

        def images_to_be(parsed: Definition) -> Mapping[str, Image | None]:
            nonlocal places, problems
            places, problems = check_places(policy, parsed, moving.images)
            made = {place.uuid: place.image for place in places}
            copied = [disk.uuid or "" for disk in disks_to_copy(policy, parsed.instance)]
            return {uuid: made.get(uuid.lower()) for uuid in copied}

        try:
            decisions, findings = self._host.decide(instance, directory, deadline, images_to_be=images_to_be)
        except InvalidParameters as error:
            raise InvalidParameters(
                "it cannot move to this host",
                FindingSet([*error.findings]).below("record.instance"),
                instance=info.instance,
            ) from error
        found = [*FindingSet(findings).below("record.instance"), *problems]
        decisions = attrs.evolve(
            decisions, machine=moving.machine, kept=moving.placement, ports=moving.ports, arriving=True
        )
        decisions, differences = compare_hosts(moving, decisions, deadline)
        found += differences
        found += check_agreement(info, policy, decisions)
        refuse(found, info.instance)
        plan, problems = plan_launch(decisions, directory, paused=True)
        problems += check_support(plan.options, decisions.capabilities)
        refuse(FindingSet(problems).below("record.instance"), info.instance)
        return plan, places
