"""Who a driver is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.capabilities import DriverDescription


@hookspec(firstresult=True)
def hv_describe_driver() -> DriverDescription:
    """Say who the driver is and what it can do.

    Called once, when the driver is loaded, and whenever a host asks. It touches nothing but what a probe of the host
    needs to read, and starts no process.

    Returns:
        Name, version, hook API, claims.

    Errors: none.

    Capability: none (every driver). Since: 0.1.
    """
