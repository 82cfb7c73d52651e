"""Every operation is one call: what it carries, and the innermost implementation that reaches the driver."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import pluggy

import hvcore
from hvcore.deadline import Deadline
from hvcore.errors import DriverFault, HypervisorError
from hvcore.hookspecs.markers import hookimpl


@attrs.frozen(kw_only=True)
class OperationCall:
    """One operation, as extensions see it.

    Attributes:
        name: name of the operation, for example ``start_instance``.
        driver: name of the driver.
        instance: name of the instance it is about, ``None`` for those that are about none.
        arguments: the arguments of the driver's hook, by name.
        deadline: by when it must be done.
    """

    name: str
    driver: str
    instance: str | None
    arguments: Mapping[str, Any]
    deadline: Deadline


class Dispatcher:
    """The innermost `hv_operation`: calls the driver's own hook and holds it to its contract."""

    def __init__(self, manager: pluggy.PluginManager, driver: str, plugin: str) -> None:
        self._hook = manager.hook
        self._driver = driver
        self._plugin = plugin

    @hookimpl
    def hv_operation(self, call: OperationCall) -> object:
        """Call the hook of the same name."""
        try:
            result = getattr(self._hook, f"hv_{call.name}")(**call.arguments)
        except HypervisorError:
            raise
        except Exception as error:
            raise DriverFault(
                f"{self._plugin} raised {type(error).__name__} in hv_{call.name}: {error}",
                hint="this is a defect of the driver; report it with the traceback",
            ) from error
        expected = result_type(call.name)
        if not isinstance(result, expected):
            raise DriverFault(
                f"{self._plugin} returned {type(result).__name__} from hv_{call.name}; "
                f"its specification asks for {expected.__name__}"
            )
        return result


@functools.cache
def result_type(name: str) -> type:
    """The type of record that an operation returns, from its hook specification."""
    from hvcore.hookspecs.table import OPERATION, SPECIFICATIONS

    operation = OPERATION[name]
    module = next(m for m in SPECIFICATIONS if m.__name__.endswith("." + operation.topic))
    # By name, so that only the records that are used are ever imported; every one of them is public.
    found: type = getattr(hvcore, getattr(module, operation.hook).__annotations__["return"])
    return found
