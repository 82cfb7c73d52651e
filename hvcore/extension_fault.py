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
    frames = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    named = "hvcore"
    if manager is not None:
        for implementation in manager.hook.hv_operation.get_hookimpls():
            code = getattr(implementation.function, "__code__", None)
            if implementation.wrapper and code in frames:
                named = f"extension {implementation.plugin_name}"
    return DriverFault(
        f"{named} raised {type(error).__name__} around {operation}: {error}",
        hint="this is a defect; report it with the traceback",
    )
