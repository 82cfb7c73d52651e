"""Security model ``pool``: each QEMU runs under a user id of its own, without any capability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, Instance, checks, param
from hvcore_kvm import SecurityModel, SecurityPlan, UidPool, hookimpl, uid_pool, unprivileged

_WHERE = "params.pool"


@attrs.frozen(kw_only=True)
class PoolParameters:
    """Parameters of security model ``pool``."""

    uids: str | None = param(
        default=None,
        checks=(uid_pool.check_uids,),
        summary="User ids that belong to instances and to nobody else on this host, such as 20000-20999,30000. Each is "
        "a group id too. They need not be in the user database.",
    )
    directory: str = param(
        default="/run/hvcore/uids",
        checks=(checks.absolute_path,),
        summary="Directory in which is written down who has which; one for all drivers on the host.",
    )


class PoolConfinement:
    """Plans a change to a user id of the instance's own."""

    def check(self, instance: Instance, parameters: PoolParameters) -> Iterator[Finding]:
        """The pool has to be given, and only root may change QEMU's root directory."""
        given = instance.params.get("pool")
        if not isinstance(given, Mapping) or given.get("uids") is None:
            message = "security model pool needs the user ids to choose from"
            yield Finding(
                code="missing-parameter", path=f"{_WHERE}.uids", message=message, hint='for example "20000-20999"'
            )
        yield from unprivileged.check_unprivileged(instance, "pool")

    def check_host(self, instance: Instance, parameters: PoolParameters) -> Iterator[Finding]:
        """An id is free and can use KVM, and we may become another user."""
        yield from unprivileged.check_host_unprivileged()
        yield from _pool(parameters).check_host(instance, _WHERE)
        if instance.params.get("accel") == "kvm" and not unprivileged.may_use_kvm():
            yield unprivileged.kvm_finding("user ids of the pool", f"{_WHERE}.uids")

    def plan(self, instance: Instance, parameters: PoolParameters) -> SecurityPlan:
        """The lease, and the program that becomes that user and then executes QEMU."""
        pool = _pool(parameters)
        uid = pool.choose(instance)
        # Without an id the step fails; should it not, setpriv refuses: never would QEMU run as root.
        who = "-" if uid is None else str(uid)
        launcher = unprivileged.unprivileged_launcher(instance, who, who)
        return SecurityPlan(launcher=launcher, steps=(pool.lease(instance, uid),))


def _pool(parameters: PoolParameters) -> UidPool:
    return UidPool(uids=parameters.uids or "", directory=parameters.directory)


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(
        name="pool",
        summary="Each QEMU runs under a user id of its own from a pool, without capabilities.",
        backend=PoolConfinement(),
        parameters=PoolParameters,
    )
