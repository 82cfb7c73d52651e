"""Security model ``none``: QEMU runs as the user of the host application, confined by nothing but its own sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hvcore import Finding, Instance
from hvcore_kvm import SecurityModel, SecurityPlan, hookimpl


class Unconfined:
    """Plans nothing."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing can be wrong."""
        return ()

    def check_host(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Nothing is needed."""
        return ()

    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        """No launcher, no option, no step."""
        return SecurityPlan()


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(name="none", summary="QEMU runs as the user of the host application.", backend=Unconfined())
