"""`MadeUpDriver`: a driver that runs nothing, for the checks of how drivers are loaded and called."""

from __future__ import annotations

from hvcore.capabilities import DriverDescription
from hvcore.deadline import Deadline
from hvcore.errors import UnsupportedOperation
from hvcore.findings import FindingSet
from hvcore.hookspecs.markers import HOOK_API, hookimpl
from hvcore.model.host import NodeInfo
from hvcore.model.instance import Instance
from hvcore.model.state import InstanceInfo, InstanceInfos, InstanceListing, Transition
from hvcore.params.declare import ParameterTable
from hvcore.registry import DriverContext


class MadeUpDriver:
    """Has the hooks that every driver must have, and no instances.

    Attributes:
        called: names of the hooks that were called, in order, of all such drivers.
    """

    called: list[str] = []  # noqa: RUF012 - one for all, or a driver that was not loaded could not be asked

    def __init__(self, context: DriverContext) -> None:
        self.name = context.name

    def _nothing(self, hook: str) -> UnsupportedOperation:
        self.called.append(hook)
        return UnsupportedOperation("a made-up driver runs nothing")

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        """Say who it is."""
        self.called.append("hv_describe_driver")
        return DriverDescription(name=self.name, version="1.0", hook_api=HOOK_API, summary="Runs nothing.")

    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        """No parameters."""
        self.called.append("hv_parameters")
        return ParameterTable(sections=())

    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        """Nothing is wrong."""
        self.called.append("hv_check_parameter_syntax")
        return FindingSet()

    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Nothing is wrong."""
        self.called.append("hv_validate_parameters")
        return FindingSet()

    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        """Nothing is unwise."""
        self.called.append("hv_assess_parameters")
        return FindingSet()

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        """Refuse."""
        raise self._nothing("hv_start_instance")

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        """Refuse."""
        raise self._nothing("hv_stop_instance")

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        """Refuse."""
        raise self._nothing("hv_cleanup_instance")

    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        """There is none."""
        self.called.append("hv_list_instances")
        return InstanceListing(instances=())

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        """Refuse."""
        raise self._nothing("hv_get_instance_info")

    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        """There is none."""
        self.called.append("hv_get_all_instances_info")
        return InstanceInfos(instances=())

    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        """Refuse."""
        raise self._nothing("hv_get_node_info")

    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        """Nothing is wrong."""
        self.called.append("hv_verify")
        return FindingSet()
