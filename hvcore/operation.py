"""Every operation is one call: what it carries, and the innermost implementation that reaches the driver."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

import hvcore
from hvcore.deadline import Deadline
from hvcore.errors import DeadlineExceeded, DriverFault, HypervisorError
from hvcore.extension_fault import extension_names
from hvcore.hookspecs.markers import hookimpl

if TYPE_CHECKING:
    from hvcore.model.state import InstanceListing
    from hvcore.params.declare import ParameterTable

DISPATCHER = "hvcore dispatcher"
"""Name under which the `Dispatcher` is registered."""


@attrs.frozen(kw_only=True)
class OperationCall:
    """One operation, as extensions see it.

    Attributes:
        name: name of the operation, for example ``start_instance``.
        driver: name of the driver.
        instance: name of the instance it is about, ``None`` for those that are about none.
        arguments: the arguments of the driver's hook, by name.
        deadline: by when it must be done.
        begun: when the outermost extension was called, on the deadline's clock.
        view: what an extension may ask the driver meanwhile.
    """

    name: str
    driver: str
    instance: str | None
    arguments: Mapping[str, Any]
    deadline: Deadline
    begun: float
    view: DriverView


class DriverView:
    """What an extension may ask the driver: past all extensions, changing nothing, taking no lock."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._table: ParameterTable | None = None

    def parameters(self) -> ParameterTable:
        """Every parameter of the driver and its family plugins; the driver is asked once."""
        if self._table is None:
            self._table = self._dispatcher.reach("parameters", {})
        return self._table

    def list_instances(self, deadline: Deadline) -> InstanceListing:
        """The instances that hold something on this host."""
        listing: InstanceListing = self._dispatcher.reach("list_instances", {"deadline": deadline})
        return listing


class Dispatcher:
    """The innermost `hv_operation`: calls the driver's own hook and holds it to its contract."""

    def __init__(self, manager: pluggy.PluginManager, driver: str, plugin: str) -> None:
        self._manager = manager
        self._hook = manager.hook
        self._driver = driver
        self._plugin = plugin
        self._found: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}

    @hookimpl
    def hv_operation(self, call: OperationCall) -> object:
        """Call the hook of the same name."""
        # One that had no time from the start is the driver's to answer: it may be just a look.
        if call.begun < call.deadline.at <= call.deadline.clock() and (names := extension_names(self._manager)):
            raise DeadlineExceeded(
                f"the deadline passed before the driver was reached: extension {' or '.join(names)} took the time",
                hint="nothing was touched; see what the extension waits for",
            )
        return self.reach(call.name, call.arguments)

    def reach(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call one of the driver's own hooks and check what it returns."""
        try:
            function, wanted = self._found.get(name) or self._find(name, arguments)
            result = function(*[arguments[argument] for argument in wanted])
        except HypervisorError:
            raise
        except Exception as error:
            raise DriverFault(
                f"{self._plugin} raised {type(error).__name__} in hv_{name}: {error}",
                hint="this is a defect of the driver; report it with the traceback",
            ) from error
        expected = result_type(name)
        if not isinstance(result, expected):
            raise DriverFault(
                f"{self._plugin} returned {type(result).__name__} from hv_{name}; "
                f"its specification asks for {expected.__name__}"
            )
        return result

    def _find(self, name: str, arguments: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[str, ...]]:
        """The driver's own function and the arguments it takes: all pluggy would add to them is 2 us a call."""
        hook = getattr(self._hook, f"hv_{name}")
        implementations = hook.get_hookimpls()
        if len(implementations) != 1 or implementations[0].wrapper:
            return lambda *values: hook(**dict(zip(arguments, values, strict=True))), tuple(arguments)
        found = self._found[name] = implementations[0].function, tuple(implementations[0].argnames)
        return found


@functools.cache
def result_type(name: str) -> type:
    """The type of record that an operation returns, from its hook specification."""
    from hvcore.hookspecs.table import OPERATION, SPECIFICATIONS

    operation = OPERATION[name]
    module = next(m for m in SPECIFICATIONS if m.__name__.endswith("." + operation.topic))
    # By name, so that only the records that are used are ever imported; every one of them is public.
    found: type = getattr(hvcore, getattr(module, operation.hook).__annotations__["return"])
    return found
