"""Security model ``user``: QEMU runs as a user of the host, without any capability and without a way to get one."""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, Instance, param
from hvcore_kvm import SecurityModel, SecurityPlan, hookimpl

_WHERE = "params.user.name"
_KVM = "/dev/kvm"
_SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")
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
        if instance.params.get("chroot") is True:
            message = "QEMU changes its root directory as root only, and security model user has it run as another user"
            yield Finding(code="contradiction", path="params.chroot", message=message, hint="leave it out")

    def check_host(self, instance: Instance, parameters: UserParameters) -> Iterator[Finding]:
        """The user is there and can use KVM, and we may become another user."""
        if os.geteuid() != 0:
            message = "only root may run QEMU as another user"
            yield Finding(code="needs-root", path="security_model", message=message, hint='use "none"')
        if _setpriv() is None:
            message = "the program setpriv is not installed"
            yield Finding(code="no-program", path="security_model", message=message, hint="apt-get install util-linux")
        user = find_user(parameters.name or "")
        if user is None:
            yield Finding(code="no-such-user", path=_WHERE, message=f"this host has no user {parameters.name}")
        elif user.uid == 0:
            message = f"{parameters.name} is root, who is not confined"
            yield Finding(code="not-confined", path=_WHERE, message=message)
        elif instance.params.get("accel") == "kvm" and not _may_use_kvm(user):
            message = f"user {parameters.name} cannot open {_KVM}"
            hint = f"let a group have it: chgrp kvm {_KVM}; chmod 660 {_KVM}; as udev does"
            yield Finding(code="kvm-unusable", path=_WHERE, message=message, hint=hint)

    def plan(self, instance: Instance, parameters: UserParameters) -> SecurityPlan:
        """The program that becomes the user and then executes QEMU."""
        name = parameters.name or ""
        user = find_user(name)
        # A user who has vanished since the check stays a name, and setpriv refuses: never would QEMU run as root.
        uid, gid = (str(user.uid), str(user.gid)) if user is not None else (name, name)
        groups = None if instance.params.get("accel") == "tcg" else _kvm_group()
        return SecurityPlan(
            launcher=(
                _setpriv() or _SETPRIV[0],
                f"--reuid={uid}",
                f"--regid={gid}",
                "--clear-groups" if groups is None else f"--groups={groups}",
                "--no-new-privs",
                "--inh-caps=-all",
                "--bounding-set=-all",
                "--",
            )
        )


def _setpriv() -> str | None:
    return next((path for path in _SETPRIV if os.access(path, os.X_OK)), None)


def _kvm_group() -> int | None:
    """The group that has KVM, if one has; never that of root."""
    try:
        found = os.stat(_KVM)
    except OSError:
        return None
    return found.st_gid if found.st_mode & 0o060 == 0o060 and found.st_gid != 0 else None


def _may_use_kvm(user: Credentials) -> bool:
    try:
        found = os.stat(_KVM)
    except OSError:
        return False
    everybody = found.st_mode & 0o006 == 0o006
    owner = found.st_uid == user.uid and found.st_mode & stat.S_IRUSR and found.st_mode & stat.S_IWUSR
    return everybody or bool(owner) or _kvm_group() is not None


@hookimpl
def kvm_security_models() -> Iterator[SecurityModel]:
    """The model."""
    yield SecurityModel(
        name="user",
        summary="QEMU runs as a user of the host, without capabilities.",
        backend=UserConfinement(),
        parameters=UserParameters,
    )
