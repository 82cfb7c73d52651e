"""The checks of family plugins, by the record that the plugin yields; each for one sentence of the contract."""

from __future__ import annotations

from hvcore.conformance import Check, checks_of
from hvcore_kvm.conformance.checks import consoles, life, nics, plans, records, security

_ALL = (*checks_of(records), *checks_of(plans), *checks_of(life))
_BACK = "FA-11"
"""About steps: a console type has none."""

CHECKS: dict[str, tuple[Check, ...]] = {
    "NicMode": (*_ALL, *checks_of(nics)),
    "SecurityModel": (*_ALL, *checks_of(security)),
    "ConsoleType": (*(check for check in _ALL if check.requirement != _BACK), *checks_of(consoles)),
}
"""The checks of each family."""
