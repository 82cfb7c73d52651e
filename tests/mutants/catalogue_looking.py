"""Faulty drivers whose queries, states, checks of definitions or account of themselves are wrong."""

from __future__ import annotations

import os
import subprocess
import uuid

import attrs
from breaking import breaks

from hvcore import (
    AncillaryFile,
    AncillaryFiles,
    Capability,
    Cause,
    Claim,
    ClaimLevel,
    Console,
    Deadline,
    DeadlineExceeded,
    DriverContext,
    DriverDescription,
    EventBatch,
    Finding,
    FindingSet,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceListing,
    InstanceNotFound,
    InstanceState,
    InterruptedInstances,
    InvalidParameters,
    NodeInfo,
    ParameterSection,
    ParameterTable,
    Plan,
    PowercycleMethod,
    PowercycleResult,
    Severity,
    StateReason,
    Transition,
    hookimpl,
    param,
)
from hvcore.locks import instance_lock
from hvcore_fake import FakeDriver


@breaks("QU-01")
class ListsOnlyTheLiving(FakeDriver):
    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        rows = super().hv_list_instances(deadline).instances
        return InstanceListing(instances=tuple(row for row in rows if row.alive))


@breaks("QU-01")
class ListsBackwards(FakeDriver):
    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        return InstanceListing(instances=super().hv_list_instances(deadline).instances[::-1])


@breaks("QU-02")
class ListAsksEverybody(FakeDriver):
    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        if any(not process.answering for process in self._world.processes()):
            raise DeadlineExceeded("one of them did not answer")
        return super().hv_list_instances(deadline)


@breaks("QU-03")
class InformationOnWhatHangsIsAnError(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        process = self._world.process(name)
        if process is not None and not process.answering:
            raise DeadlineExceeded("it did not answer")
        return super().hv_get_instance_info(name, deadline)


@breaks("QU-04")
class KnowsEverybody(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        try:
            return super().hv_get_instance_info(name, deadline)
        except InstanceNotFound:
            return InstanceInfo(name=name, state=InstanceState.STOPPED, reason=StateReason(cause=Cause.OTHER))


@breaks("QU-05")
class DescribesOnlyTheLiving(FakeDriver):
    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        infos = super().hv_get_all_instances_info(deadline).instances
        return InstanceInfos(instances=tuple(info for info in infos if info.pid is not None))


@breaks("QU-07")
class AlwaysFindsDrift(FakeDriver):
    @hookimpl
    def hv_verify_instance(self, name: str, deadline: Deadline) -> FindingSet:
        return FindingSet([Finding(code="drift", message="something may be wrong")])


@breaks("QU-08")
class NamesNobodyInterrupted(FakeDriver):
    @hookimpl
    def hv_list_interrupted(self, deadline: Deadline) -> InterruptedInstances:
        return InterruptedInstances()


@breaks("QU-08")
class TakesWhateverRunsForInterrupted(FakeDriver):
    @hookimpl
    def hv_list_interrupted(self, deadline: Deadline) -> InterruptedInstances:
        names = {*super().hv_list_interrupted(deadline).names, *(each.name for each in self._world.processes())}
        return InterruptedInstances(names=tuple(sorted(names)))


@breaks("QU-08")
class NamesTheInterruptedForEver(FakeDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._named: set[str] = set()

    @hookimpl
    def hv_list_interrupted(self, deadline: Deadline) -> InterruptedInstances:
        self._named.update(super().hv_list_interrupted(deadline).names)
        return InterruptedInstances(names=tuple(sorted(self._named)))


class Misreporting(FakeDriver):
    """Reports another state or cause for some of them."""

    states: dict[InstanceState, InstanceState] = {}
    causes: dict[Cause, Cause] = {}

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        info = super().hv_get_instance_info(name, deadline)
        cause = self.causes.get(info.reason.cause, info.reason.cause)
        state = self.states.get(info.state, info.state)
        return attrs.evolve(info, state=state, reason=attrs.evolve(info.reason, cause=cause))


@breaks("ST-01")
class RunningIsUnknown(Misreporting):
    states = {InstanceState.RUNNING: InstanceState.UNKNOWN}


@breaks("ST-02")
class UsersCannotShutDown(Misreporting):
    states = {InstanceState.SHUTDOWN_BY_USER: InstanceState.STOPPED}


@breaks("ST-03")
class WhatWasAskedForIsTheGuests(Misreporting):
    causes = {Cause.HOST_STOP: Cause.GUEST_SHUTDOWN}


@breaks("ST-04")
class ForceIsNotToldFromGrace(Misreporting):
    causes = {Cause.HOST_FORCE_STOP: Cause.HOST_STOP}


@breaks("ST-05")
class CrashIsAStop(Misreporting):
    states = {InstanceState.CRASHED: InstanceState.STOPPED}


@breaks("ST-06")
class PanicIsACrash(Misreporting):
    states = {InstanceState.PANICKED: InstanceState.CRASHED}


@breaks("ST-07")
class OnlyWhoWatchedKnows(FakeDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._watched: set[str] = set()

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        self._watched.add(instance.name)
        return super().hv_start_instance(instance, paused, deadline)

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        info = super().hv_get_instance_info(name, deadline)
        if info.pid is None and name not in self._watched:
            return attrs.evolve(info, state=InstanceState.CRASHED, reason=StateReason(cause=Cause.DIED))
        return info


@breaks("LK-04")
class QueryTakesTheLock(FakeDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._locks = os.path.join(context.directories.state, "locks")

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        with instance_lock(self._locks, name, "get_instance_info", Deadline.after(0)):
            return super().hv_get_instance_info(name, deadline)


@breaks("PU-06")
class QueryWritesDownThatItWasAsked(FakeDriver):
    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        with open(self._world.store.path("state/asked"), "ab") as file:
            file.write(b"!")
        return super().hv_list_instances(deadline)


@breaks("PA-01")
class FindsOneThingAtATime(FakeDriver):
    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        return FindingSet(super().hv_validate_parameters(instance, deadline)[:1])


@breaks("PA-02")
class FindsThingsNowhere(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        found = super().hv_check_parameter_syntax(instance)
        return FindingSet(attrs.evolve(finding, path="") for finding in found)


@breaks("PA-03")
class NamesNoNeighbour(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        found = super().hv_check_parameter_syntax(instance)
        return FindingSet(attrs.evolve(finding, message="is wrong", hint=None) for finding in found)


@breaks("PA-04")
class ConvertsTruth(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        params = {k: float(v) if v is True and k.endswith("time") else v for k, v in instance.params.items()}
        return super().hv_check_parameter_syntax(attrs.evolve(instance, params=params))


@breaks("PA-05")
class CannotReadStrangeValues(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        for value in instance.params.values():
            float(str(value).removesuffix("s") or 0) if isinstance(value, bytes) else None
        return super().hv_check_parameter_syntax(instance)


@breaks("PA-09")
class AdviceIsAnOrder(FakeDriver):
    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        found = super().hv_assess_parameters(instance, deadline)
        return FindingSet(attrs.evolve(finding, severity=Severity.ERROR) for finding in found)


@breaks("PA-10")
class AcceptsAnything(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        found = super().hv_check_parameter_syntax(instance)
        return FindingSet(finding for finding in found if finding.code != "unknown-parameter")


@attrs.frozen(kw_only=True)
class _Silent:
    speed: int = param(default=1, summary="")


@breaks("PA-11")
class ParameterWithoutASummary(FakeDriver):
    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        section = ParameterSection(title="Silent", place="instance", fields=_Silent)
        return ParameterTable(sections=(*super().hv_parameters().sections, section))


@breaks("PU-01")
class SyntaxCheckLooksAtTheHost(FakeDriver):
    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        os.listdir("/proc/self")
        return super().hv_check_parameter_syntax(instance)


@breaks("PU-02")
class ValidationWritesAFile(FakeDriver):
    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        self._world.store.make("state/validated/")
        with open(self._world.store.path("state/validated/names"), "a") as file:
            file.write(instance.name)
        return super().hv_validate_parameters(instance, deadline)


@breaks("PU-03")
class PlanMakesADirectory(FakeDriver):
    @hookimpl
    def hv_plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        self._world.store.make(f"state/plans-{uuid.uuid4()}/")
        return super().hv_plan_start(instance, paused, deadline)


@breaks("PU-04")
class PlansHaveNumbers(FakeDriver):
    @hookimpl
    def hv_plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        plan = super().hv_plan_start(instance, paused, deadline)
        return attrs.evolve(plan, notes=(*plan.notes, f"plan {uuid.uuid4()}"))


@breaks("ID-01")
class DescriptionAsksAProgram(FakeDriver):
    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        subprocess.run(["true"], check=True)
        return super().hv_describe_driver()


class Claiming(FakeDriver):
    """Claims something in another way."""

    claim = Claim(capability=Capability.PAUSE)

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        description = super().hv_describe_driver()
        kept = tuple(claim for claim in description.claims if claim.capability is not self.claim.capability)
        return attrs.evolve(description, claims=(*kept, self.claim))


@breaks("ID-03")
class ConditionWithoutAReason(Claiming):
    claim = Claim(capability=Capability.PAUSE, level=ClaimLevel.CONDITIONAL)


@breaks("ID-04")
class NewUuidAtEachLook(FakeDriver):
    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        return attrs.evolve(super().hv_get_instance_info(name, deadline), uuid=str(uuid.uuid4()))


@breaks("CO-01")
class ConsoleIsEverywhere(FakeDriver):
    @hookimpl
    def hv_get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        console = super().hv_get_instance_console(name, kind, deadline)
        return attrs.evolve(console, address="0.0.0.0", port=5900)


@breaks("CO-02")
class AnyConsoleIsTheFirst(FakeDriver):
    @hookimpl
    def hv_get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        try:
            return super().hv_get_instance_console(name, kind, deadline)
        except InvalidParameters:
            return super().hv_get_instance_console(name, None, deadline)


@breaks("HO-01")
class MemoryInKibibytes(FakeDriver):
    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        node = super().hv_get_node_info(deadline)
        return attrs.evolve(node, memory_total=node.memory_total // 1024)


@breaks("HO-02")
class ProblemsAreErrors(FakeDriver):
    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        found = super().hv_verify(deadline)
        if found:
            raise InvalidParameters("the host has problems", found)
        return found


@breaks("HO-03")
class AnybodyMayRestartTheHost(FakeDriver):
    @hookimpl
    def hv_powercycle_node(self, deadline: Deadline) -> PowercycleResult:
        self._world.note_powercycle()
        return PowercycleResult(method=PowercycleMethod.SYSRQ)


@breaks("HO-04")
class AncillaryFileWithoutADirectory(FakeDriver):
    @hookimpl
    def hv_get_ancillary_files(self) -> AncillaryFiles:
        return AncillaryFiles(files=(AncillaryFile(path="hooks.conf", required=False, purpose="hooks"),))


@breaks("HO-05")
class CursorStartsAnew(FakeDriver):
    @hookimpl
    def hv_events(self, cursor: str | None, deadline: Deadline) -> EventBatch:
        return super().hv_events(None, deadline)


@breaks("HO-06")
class EventsAreForThoseWhoListen(FakeDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._begin = str(self._world.events.last)

    @hookimpl
    def hv_events(self, cursor: str | None, deadline: Deadline) -> EventBatch:
        later = max(int(cursor or 0), int(self._begin))
        return super().hv_events(str(later), deadline)


@breaks("LD-05")
class AnySettingIsFine(FakeDriver):
    def __init__(self, context: DriverContext) -> None:
        super().__init__(attrs.evolve(context, settings={}))
