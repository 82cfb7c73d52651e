"""QEMU as another user: without capabilities, and without a way to get any."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from hvcore import Finding, Instance

KVM = "/dev/kvm"
_PRLIMIT = "/usr/bin/prlimit"
_SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")


def unprivileged_launcher(instance: Instance, uid: str, gid: str) -> tuple[str, ...]:
    """Words before QEMU's own: setpriv (util-linux) becomes the user and then executes the rest.

    Args:
        instance: the definition; one that certainly runs without KVM gets no group for it.
        uid: user id; what is no number is refused by setpriv, so that QEMU never runs as root by mistake.
        gid: group id, likewise.
    """
    return launcher(instance, uid, gid, None if instance.params.get("accel") == "tcg" else kvm_group())


def launcher(
    instance: Instance, uid: str, gid: str, group: int | None = None, limits: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """The same with one supplementary group, or none, and limits of the process by the words of prlimit(1)."""
    words = [f"--{name}={value}:{value}" for name, value in (limits or {}).items()]
    if instance.params.get("memory_lock") is True or instance.params.get("pci_passthrough"):
        words.append("--memlock=unlimited:unlimited")
    return (
        # Set before it becomes somebody who may not set them.
        *((_PRLIMIT, *words, "--") if words else ()),
        setpriv() or _SETPRIV[0],
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups" if group is None else f"--groups={group}",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--",
    )


def setpriv() -> str | None:
    """Path of the program; ``None`` if it is not installed."""
    return next((path for path in _SETPRIV if os.access(path, os.X_OK)), None)


def kvm_group() -> int | None:
    """The group that has KVM, if one has; never that of root."""
    try:
        found = os.stat(KVM)
    except OSError:
        return None
    return found.st_gid if found.st_mode & 0o060 == 0o060 and found.st_gid != 0 else None


def may_use_kvm(uid: int | None = None) -> bool:
    """Whether a user without privileges can open KVM, with the help of its group."""
    try:
        found = os.stat(KVM)
    except OSError:
        return False
    everybody = found.st_mode & 0o006 == 0o006
    owner = found.st_uid == uid and found.st_mode & stat.S_IRUSR and found.st_mode & stat.S_IWUSR
    return everybody or bool(owner) or kvm_group() is not None


def check_unprivileged(instance: Instance, model: str) -> Iterator[Finding]:
    """What a definition must not ask for; pure."""
    if instance.params.get("chroot") is True:
        message = f"QEMU changes its root directory as root only, and security model {model} has it run as another user"
        yield Finding(code="contradiction", path="params.chroot", message=message, hint="leave it out")


def check_host_unprivileged() -> Iterator[Finding]:
    """What the host lacks for running QEMU as another user; reads only."""
    if os.geteuid() != 0:
        message = "only root may run QEMU as another user"
        yield Finding(code="needs-root", path="security_model", message=message, hint='use "none"')
    if setpriv() is None:
        message = "the program setpriv is not installed"
        yield Finding(code="no-program", path="security_model", message=message, hint="apt-get install util-linux")


def kvm_finding(who: str, where: str) -> Finding:
    """The finding for somebody who cannot open KVM."""
    hint = f"let a group have it: chgrp kvm {KVM}; chmod 660 {KVM}; as udev does"
    return Finding(code="kvm-unusable", path=where, message=f"{who} cannot open {KVM}", hint=hint)
