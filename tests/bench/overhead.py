"""What the facade, the hooks and extensions cost an operation, beside a direct call of the driver's method."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import hvcore
from hvcore import (
    HOOK_API,
    Cause,
    Deadline,
    Deny,
    DriverDescription,
    FindingSet,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceListing,
    InstanceState,
    Metrics,
    NodeInfo,
    ParameterTable,
    Policy,
    StateReason,
    Tracing,
    Transition,
    hookimpl,
)
from tests.bench.rows import Pair, Row, side_by_side

_INFO = InstanceInfo(name="web1", state=InstanceState.RUNNING, reason=StateReason(cause=Cause.STARTED))
_SAME = Transition(name="web1", before=None, after=None, changed=False)


class Trivial:
    """A driver in memory whose answers cost nothing."""

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        return DriverDescription(name="trivial", version="1", hook_api=HOOK_API, summary="", claims=())

    @hookimpl
    def hv_parameters(self) -> ParameterTable:
        return ParameterTable(sections=())

    @hookimpl
    def hv_check_parameter_syntax(self, instance: Instance) -> FindingSet:
        return FindingSet(())

    @hookimpl
    def hv_validate_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        return FindingSet(())

    @hookimpl
    def hv_assess_parameters(self, instance: Instance, deadline: Deadline) -> FindingSet:
        return FindingSet(())

    @hookimpl
    def hv_start_instance(self, instance: Instance, paused: bool, deadline: Deadline) -> Transition:
        return _SAME

    @hookimpl
    def hv_stop_instance(
        self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Deadline
    ) -> Transition:
        return _SAME

    @hookimpl
    def hv_cleanup_instance(self, name: str, deadline: Deadline) -> Transition:
        return _SAME

    @hookimpl
    def hv_list_instances(self, deadline: Deadline) -> InstanceListing:
        return InstanceListing(instances=())

    @hookimpl
    def hv_get_instance_info(self, name: str, deadline: Deadline) -> InstanceInfo:
        return _INFO

    @hookimpl
    def hv_get_all_instances_info(self, deadline: Deadline) -> InstanceInfos:
        return InstanceInfos(instances=())

    @hookimpl
    def hv_get_node_info(self, deadline: Deadline) -> NodeInfo:
        raise NotImplementedError

    @hookimpl
    def hv_verify(self, deadline: Deadline) -> FindingSet:
        return FindingSet(())


def measure(*, quick: bool) -> Iterator[Row]:
    """Rows of operations with and without extensions, and with the audit log."""
    count, calls = (3, 100) if quick else (31, 1000)
    with tempfile.TemporaryDirectory() as directory:
        three = [Metrics(), Tracing(lambda span: None), Policy([Deny("stop_instance", instance="db-*")])]
        kinds: list[tuple[str, Sequence[object], str]] = [
            ("without extensions", (), ""),
            ("with three extensions", three, "20 us"),
            ("with the audit log", [hvcore.AuditLog(f"{directory}/log")], ""),
        ]
        for name, extensions, budget in kinds:
            with _driver(directory, extensions) as driver:
                found = _compare(driver, count, calls)
            yield Row(
                name=f"operation over a direct call, {name}",
                unit="us of CPU",
                **found.excess(1e6 / calls),
                samples=count * calls,
                budget=budget,
            )


def _compare(driver: hvcore.Driver, count: int, calls: int) -> Pair:
    plugin = driver.plugin
    assert isinstance(plugin, Trivial)
    through = _repeated(lambda: driver.get_instance_info("web1"), calls)
    direct = _repeated(lambda: plugin.hv_get_instance_info(name="web1", deadline=_NEVER), calls)
    return side_by_side(through, direct, count)[0]


_NEVER = Deadline.after(None)


def _driver(directory: str, extensions: Sequence[object]) -> hvcore.Driver:
    directories = hvcore.Directories(state=directory, data=directory, cache=directory)
    context = hvcore.DriverContext(name="trivial", directories=directories, settings={}, host_id="bench")
    return hvcore.load_plugin(Trivial(), context, label="trivial", extensions=extensions)


def _repeated(call: Callable[[], object], times: int) -> Callable[[], tuple[float]]:
    def repeated() -> tuple[float]:
        # Of this thread: what else runs on the host is not the operation's.
        begun = time.thread_time()
        for _ in range(times):
            call()
        return (time.thread_time() - begun,)

    return repeated
