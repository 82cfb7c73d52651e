"""Security model ``user``: QEMU runs as a user of the host, without any capability and without a way to get one."""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, Instance, param
from hvcore_kvm import SecurityModel, SecurityPlan, hookimpl, unprivileged

_WHERE = "params.user.name"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_NUMBERS = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
# The largest one means "leave it as it is" to the kernel.
_LAST_ID = 2**32 - 2


def _user(value: str) -> str | None:
    if _NAME.fullmatch(value):
        return "is root, who is not confined" if value == "root" else None
    numbers = _NUMBERS.fullmatch(value)
    if numbers is None:
        return f"{value[:40]!r} is neither the name of a user nor UID or UID:GID"
    for number in numbers.groups():
        if number is not None and not 1 <= int(number) <= _LAST_ID:
            return f"{number} is not an id from 1 to {_LAST_ID}"
    return None


@attrs.frozen(kw_only=True)
class UserParameters:
    """Parameters of security model ``user``."""

    name: str | None = param(
        default=None,
        checks=(_user,),
        aliases=("security_domain",),
        summary="User QEMU runs as: a name, or UID or UID:GID, which need not be in the user database. It needs no "
        "access to disks, sockets and taps, which QEMU gets opened; to /dev/kvm its group has it.",
    )


@attrs.frozen(kw_only=True)
class Credentials:
    """Who a process runs as."""

    uid: int
    gid: int


def find_user(name: str) -> Credentials | None:
    """Who a name or a pair of numbers stands for; ``None`` if the host knows no such user."""
    numbers = _NUMBERS.fullmatch(name)
    try:
        if numbers is None:
            entry = pwd.getpwnam(name)
            return Credentials(uid=entry.pw_uid, gid=entry.pw_gid)
        uid = int(numbers[1])
        gid = int(numbers[2]) if numbers[2] is not None else _primary_group(uid)
        return Credentials(uid=uid, gid=gid)
    except (KeyError, OverflowError):
        return None


def _primary_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        # Nobody's number: a group of its own too.
        return uid


class UserConfinement:
    """Plans a change of user."""

    def check(self, instance: Instance, parameters: UserParameters) -> Iterator[Finding]:
        """A user has to be named, and only root may change QEMU's root directory."""
        given = instance.params.get("user")
        if not isinstance(given, Mapping) or given.get("name") is None:
            message = "security model user needs the user QEMU is to run as"
            yield Finding(code="missing-parameter", path=_WHERE, message=message, hint="make one: useradd -r guests")
        yield from unprivileged.check_unprivileged(instance, "user")

    def check_host(self, instance: Instance, parameters: UserParameters) -> Iterator[Finding]:
        """The user is there and can use KVM, and we may become another user."""
        yield from unprivileged.check_host_unprivileged()
        user = find_user(parameters.name or "")
        if user is None:
            yield Finding(code="no-such-user", path=_WHERE, message=f"this host has no user {parameters.name}")
        elif user.uid == 0:
            message = f"{parameters.name} is root, who is not confined"
            yield Finding(code="not-confined", path=_WHERE, message=message)
        elif instance.params.get("accel") == "kvm" and not unprivileged.may_use_kvm(user.uid):
            yield unprivileged.kvm_finding(f"user {parameters.name}", _WHERE)

    def plan(self, instance: Instance, parameters: UserParameters) -> SecurityPlan:
        """The program that becomes the user and then executes QEMU."""
        name = parameters.name or ""
        user = find_user(name)
        # A user who has vanished since the check stays a name, and setpriv refuses: never would QEMU run as root.
        uid, gid = (str(user.uid), str(user.gid)) if user is not None else (name, name)
        return SecurityPlan(launcher=unprivileged.unprivileged_launcher(instance, uid, gid))


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(
        name="user",
        summary="QEMU runs as a user of the host, without capabilities.",
        backend=UserConfinement(),
        parameters=UserParameters,
    )
