"""Security model ``confined``: what QEMU's own process can reach is what its guest was given, and nothing else."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import attrs

from hvcore import Finding, Instance, checks, param
from hvcore_kvm import PrivateRoot, SecurityModel, SecurityPlan, UidPool, hookimpl, uid_pool, unprivileged

_WHERE = "params.confined"
_THREADS = 512
_FILES = 4096


@attrs.frozen(kw_only=True)
class ConfinedParameters:
    """Parameters of security model ``confined``."""

    uids: str = param(
        default="2000000000-2000065535",
        checks=(uid_pool.check_uids,),
        summary="User ids that belong to instances and to nobody else on this host, such as 20000-20999,30000. Each is "
        "a group id too. They need not be in the user database.",
    )
    directory: str = param(
        default="/run/hvcore/uids",
        checks=(checks.absolute_path,),
        summary="Directory in which is written down who has which; one for all drivers on the host.",
    )
    paths: tuple[str, ...] = param(
        default=(),
        item_checks=(checks.absolute_path,),
        summary="Further files, directories and devices of the host that QEMU sees, such as what params.extra_args "
        "names, or where its program is if that is not below /usr.",
    )


class FullConfinement:
    """Plans all of it: user id, namespaces, root directory, limits."""

    def check(self, instance: Instance, parameters: ConfinedParameters) -> Iterator[Finding]:
        """What would take something of it away."""
        yield from unprivileged.check_unprivileged(instance, "confined")
        if instance.params.get("sandbox") is False:
            message = "security model confined has QEMU run in its sandbox"
            hint = 'leave it out, or use security_model = "pool"'
            yield Finding(code="contradiction", path="params.sandbox", message=message, hint=hint)
        for index, path in enumerate(parameters.paths):
            if os.path.normpath(path) in ("/", "/proc", "/sys", "/dev", "/etc", "/run", "/var", "/root", "/home"):
                message = f"{path} is more than one program should see"
                yield Finding(code="too-much", path=f"{_WHERE}.paths[{index}]", message=message, hint="name files")

    def check_host(self, instance: Instance, parameters: ConfinedParameters) -> Iterator[Finding]:
        """An id is free, and we may do what has to be done."""
        yield from unprivileged.check_host_unprivileged()
        yield from _pool(parameters).check_host(instance, _WHERE)
        for index, path in enumerate(parameters.paths):
            if not os.path.exists(path):
                yield Finding(code="no-such-file", path=f"{_WHERE}.paths[{index}]", message=f"there is no {path}")

    def plan(self, instance: Instance, parameters: ConfinedParameters) -> SecurityPlan:
        """The lease, the namespaces, and the program that becomes that user and then executes QEMU."""
        pool = _pool(parameters)
        uid = pool.choose(instance)
        # Without an id the step fails; should it not, setpriv refuses: never would QEMU run as root.
        who = "-" if uid is None else str(uid)
        return SecurityPlan(
            # KVM and other devices are nodes of its own, so that it needs no group.
            launcher=unprivileged.launcher(instance, who, who, limits=_limits(instance)),
            steps=(pool.lease(instance, uid),),
            namespaces=("mount", "uts", "ipc", "pid"),
            root=PrivateRoot(owner=-1 if uid is None else uid, paths=parameters.paths),
            pids_limit=_THREADS + instance.vcpus,
        )


def _limits(instance: Instance) -> dict[str, int]:
    """No core dumps, which would hold the guest's memory; never more than there is already."""
    wanted = {"core": 0, "nofile": _FILES, "nproc": _THREADS + instance.vcpus}
    found = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] for name in wanted}
    return {
        name: limit if found[name] == resource.RLIM_INFINITY else min(limit, found[name])
        for name, limit in wanted.items()
    }


def _pool(parameters: ConfinedParameters) -> UidPool:
    return UidPool(uids=parameters.uids, directory=parameters.directory)


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(
        name="confined",
        summary="QEMU runs under a user id of its own, has limits, and sees of the host what it was given.",
        backend=FullConfinement(),
        parameters=ConfinedParameters,
    )
