"""The one hook every operation passes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.operation import OperationCall


@hookspec(firstresult=True)
def hv_operation(call: OperationCall) -> object:
    """Carry out one operation; wrapped by extensions, implemented by hvcore itself.

    An extension marks its implementation ``@hvcore.hookimpl(wrapper=True)``, yields once, and returns what the
    operation returned. Whatever it raises before the yield refuses the operation; nothing was touched then. The
    first extension in the host's list is outermost.

    Args:
        call: name, instance, arguments and deadline of the operation.

    Returns:
        The record the driver's own hook returned.

    Errors:
        Whatever the operation raises; `PolicyDenied` from an extension that refuses.

    Capability: none. Since: 0.1.
    """
