"""Three drivers that are wrong as a whole: the empty one, the yes-man and the liar."""

from __future__ import annotations

from breaking import breaks

from hvcore import (
    HOOK_API,
    Capability,
    Cause,
    Claim,
    Deadline,
    DriverContext,
    DriverDescription,
    FindingSet,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceListing,
    InstanceState,
    InstanceStats,
    NodeInfo,
    NotRunning,
    ParameterTable,
    Plan,
    StateReason,
    Transition,
    UnsupportedOperation,
    hookimpl,
)
from hvcore_fake import FakeDriver


class NoHooks:
    """Nothing at all: it does not even load."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context


@breaks("LC-01", "LC-08", "QU-04", "HO-01", "PA-10")
class EmptyDriver:
    """Has the hooks that every driver must have, and refuses in each."""

    def __init__(self, context: DriverContext) -> None:
        self._context = context

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        return DriverDescription(name="fake", version="0", hook_api=HOOK_API, summary="Nothing.")

    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        return ParameterTable(sections=())

    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        return FindingSet()

    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        return FindingSet()

    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        return FindingSet()

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        raise UnsupportedOperation("not done yet")

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        raise UnsupportedOperation("not done yet")

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        raise UnsupportedOperation("not done yet")

    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        return InstanceListing(instances=())

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        raise UnsupportedOperation("not done yet")

    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        return InstanceInfos(instances=())

    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        raise UnsupportedOperation("not done yet")

    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        return FindingSet()


@breaks("LC-01", "LC-03", "LC-08", "LC-21", "LC-27", "LC-28", "QU-01", "QU-04", "PA-07", "ER-03", "ER-09", "LK-01")
class YesMan(EmptyDriver):
    """Every operation succeeds, with a plausible record, and nothing is done."""

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        claims = tuple(Claim(capability=c) for c in (Capability.PLAN, Capability.PAUSE, Capability.REBOOT))
        return DriverDescription(name="fake", version="9", hook_api=HOOK_API, summary="Everything.", claims=claims)

    @hookimpl
    def hv_plan_start(self, instance: Instance, paused: bool, deadline: Deadline) -> Plan:
        return Plan(name=instance.name, program="/usr/bin/yes", options=())

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        return self._moved(instance.name, InstanceState.STOPPED, InstanceState.RUNNING)

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return self._moved(name, InstanceState.RUNNING, InstanceState.STOPPED)

    @hookimpl
    def hv_reboot_instance(
        self, name: str, instance: Instance | None, mode: str, grace: float, deadline: Deadline
    ) -> Transition:
        return self._moved(name, InstanceState.RUNNING, InstanceState.RUNNING)

    @hookimpl
    def hv_pause_instance(self, name: str, deadline: Deadline) -> Transition:
        return self._moved(name, InstanceState.RUNNING, InstanceState.PAUSED)

    @hookimpl
    def hv_resume_instance(self, name: str, deadline: Deadline) -> Transition:
        return self._moved(name, InstanceState.PAUSED, InstanceState.RUNNING)

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        return Transition(name=name, before=InstanceState.STOPPED, after=None, changed=True)

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        reason = StateReason(cause=Cause.STARTED)
        return InstanceInfo(name=name, state=InstanceState.RUNNING, reason=reason, pid=4711, memory=1 << 26)

    @staticmethod
    def _moved(name: str, before: InstanceState, after: InstanceState) -> Transition:
        return Transition(name=name, before=before, after=after, changed=True)


@breaks("ID-02", "LC-22", "ST-04", "QU-03")
class Liar(FakeDriver):
    """Says that it cannot count although it claims to, and tells what it saw first as if it were now."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._seen: dict[str, InstanceInfo] = {}

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        transition = super().hv_start_instance(instance, paused, deadline)
        self._seen[instance.name] = super().hv_get_instance_info(instance.name, deadline)
        return transition

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        return self._seen.get(name) or super().hv_get_instance_info(name, deadline)

    @hookimpl
    def hv_get_instance_stats(self, name: str, deadline: Deadline) -> InstanceStats:
        if name not in self._seen:
            raise NotRunning("it is not running")
        raise UnsupportedOperation("not done yet")
