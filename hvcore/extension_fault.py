"""Naming the extension that raised a foreign exception."""

from __future__ import annotations

import traceback

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
            for implementation in manager.hook.hv_operation.get_hookimpls()
            if implementation.wrapper
        }
        # The innermost: the exception passes through the frames of the extensions around it as well.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            named = f"extension {wrappers[frame.f_code]}" if frame.f_code in wrappers else named
    return DriverFault(
        f"{named} raised {type(error).__name__} around {operation}: {error}",
        hint="this is a defect; report it with the traceback",
    )
