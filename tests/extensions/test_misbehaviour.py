"""Extensions that break their contract: each is a typed error that names it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import DeadlineExceeded, DriverFault, Metrics, OperationCall, hookimpl

Load = Callable[..., hvcore.Driver]


class Rubbish:
    """Returns something else."""

    def __init__(self, result: object) -> None:
        self.result = result

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Any:
        yield
        return self.result


class Swallowing:
    """Keeps errors to itself."""

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Any:
        try:
            return (yield)
        except hvcore.HypervisorError:
            return None


class Slow:
    """Takes its time before the driver is reached."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Any:
        time.sleep(self.seconds)
        return (yield)


class YieldingNever:
    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Any:
        if call.name != "list_instances":
            yield
        return 5


class YieldingTwice:
    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Any:
        yield
        return (yield)


@pytest.mark.parametrize("result", [None, 5, "done", hvcore.FindingSet(())])
def test_an_extension_that_returns_rubbish_is_named(load: Load, result: Any) -> None:
    """What is not the record of the operation never reaches the caller."""
    with pytest.raises(DriverFault, match=rf"extension Rubbish #1 returned {type(result).__name__} from list") as found:
        load(Rubbish(result)).list_instances()
    assert (found.value.driver, found.value.operation) == ("told", "list_instances")


def test_among_several_each_is_named(load: Load) -> None:
    """The outermost first."""
    with pytest.raises(DriverFault, match="one of the extensions Metrics #1, Rubbish #2 returned int"):
        load(Metrics(), Rubbish(5)).list_instances()


def test_an_extension_that_swallows_an_error_is_named(load: Load) -> None:
    """An error that an extension keeps to itself is no result."""
    with pytest.raises(DriverFault, match="extension Swallowing #1 returned NoneType"):
        load(Swallowing(), answers={"stop_instance": hvcore.NotRunning("x")}).stop_instance("web1")


def test_another_record_of_the_right_type_is_an_extensions_right(load: Load) -> None:
    """Extensions may change results."""
    other = hvcore.InstanceListing(instances=(hvcore.InstanceName(name="x", alive=False),))
    assert load(Rubbish(other)).list_instances() is other


@pytest.mark.parametrize("extension", [YieldingNever(), YieldingTwice()])
def test_an_extension_that_does_not_yield_once_is_named(load: Load, extension: object) -> None:
    """Never or twice is a fault of the extension, not of hvcore."""
    with pytest.raises(DriverFault, match=f"extension {type(extension).__name__} #2 raised RuntimeError"):
        load(Metrics(), extension).list_instances()


def test_an_extension_that_eats_the_deadline_is_named(load: Load) -> None:
    """The driver is not reached any more, so nothing was touched."""
    reached: list[str] = []
    driver = load(Metrics(), Slow(0.05), answers={"list_instances": lambda: reached.append("x")})
    with pytest.raises(
        DeadlineExceeded, match="before the driver was reached: extension Metrics #1 or Slow #2"
    ) as found:
        driver.list_instances(timeout=0.01)
    assert found.value.retryable
    assert reached == []


@pytest.mark.parametrize("extensions", [[], [Metrics()], [Slow(0.01)]])
def test_an_operation_without_time_is_the_drivers(load: Load, extensions: list[object]) -> None:
    """A timeout of zero means a look; extensions have not eaten what was not there."""
    assert load(*extensions).list_instances(timeout=0).instances == ()


def test_what_an_extension_may_ask(load: Load) -> None:
    """The driver's parameters and instances, typed, past the extensions."""
    seen: list[Any] = []

    class Asking:
        @hookimpl(wrapper=True)
        def hv_operation(self, call: OperationCall) -> Any:
            seen.append((call.name, call.view.parameters(), call.view.list_instances(call.deadline)))
            assert call.begun <= call.deadline.at
            return (yield)

    load(Asking()).stop_instance("web1")
    ((name, table, listing),) = seen
    assert name == "stop_instance"
    assert isinstance(table, hvcore.ParameterTable)
    assert isinstance(listing, hvcore.InstanceListing)


def test_what_an_extension_asks_fails_as_an_operation_does(load: Load) -> None:
    """A driver that breaks its contract there is named."""

    class Asking:
        @hookimpl(wrapper=True)
        def hv_operation(self, call: OperationCall) -> Any:
            call.view.parameters()
            return (yield)

    with pytest.raises(DriverFault, match=r"told-hv 1\.0.*returned int from hv_parameters"):
        load(Asking(), answers={"parameters": 5}).list_instances()
