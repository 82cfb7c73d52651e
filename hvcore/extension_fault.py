"""Naming the extension that raised a foreign exception, or returned what is no result."""

from __future__ import annotations

import traceback
import types

import pluggy

from hvcore.errors import DriverFault


def extension_fault(error: Exception, operation: str, manager: pluggy.PluginManager | None) -> DriverFault:
    """The typed error for an exception that is not a `HypervisorError` and did not come out of the driver.

    Args:
        error: what was raised.
        operation: the operation it was raised in.
        manager: where the extensions are registered.
    """
    named = "hvcore"
    if manager is not None:
        wrappers = {
            getattr(implementation.function, "__code__", None): implementation.plugin_name
            for implementation in _wrappers(manager)
        }
        # The innermost: the exception passes through the frames of the extensions around it as well.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            named = f"extension {wrappers[frame.f_code]}" if frame.f_code in wrappers else named
        # pluggy's own complaint of a wrapper that yields never or twice: raised outside of it, it names its place.
        complaint = str(error) if isinstance(error, RuntimeError) else ""
        named = next((f"extension {name}" for code, name in wrappers.items() if _place(code) in complaint), named)
    return DriverFault(
        f"{named} raised {type(error).__name__} around {operation}: {error}",
        hint="this is a defect; report it with the traceback",
    )


def result_fault(result: object, expected: type, operation: str, manager: pluggy.PluginManager) -> DriverFault:
    """The typed error for an operation that came out of the driver well, and out of the extensions as rubbish.

    Args:
        result: what came out.
        expected: what it should be.
        operation: the operation.
        manager: where the extensions are registered.
    """
    names = extension_names(manager)
    who = f"extension {names[0]}" if len(names) == 1 else f"one of the extensions {', '.join(names)}"
    return DriverFault(
        f"{who} returned {type(result).__name__} from {operation}; the driver's {expected.__name__} was lost",
        hint="an extension has to return what its yield returned; the operation itself was carried out, "
        "or failed with an error that was lost as well",
    )


def extension_names(manager: pluggy.PluginManager) -> tuple[str, ...]:
    """Names of the extensions, the outermost first."""
    return tuple(implementation.plugin_name for implementation in reversed(_wrappers(manager)))


def _wrappers(manager: pluggy.PluginManager) -> list[pluggy.HookImpl]:
    """The implementations of extensions; pluggy calls the last first."""
    return [found for found in manager.hook.hv_operation.get_hookimpls() if found.wrapper]


def _place(code: types.CodeType | None) -> str:
    """Where a function is defined, as pluggy writes it."""
    return f"wrap_controller at {code.co_name!r} {code.co_filename}:{code.co_firstlineno} " if code else "nowhere"
