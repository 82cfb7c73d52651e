"""Certificates for a migration: given to a QEMU that runs, whoever it runs as and whatever it can see of the host.

QEMU reads them from files of a directory. It gets a descriptor of one that holds copies for it alone, and finds them by
``/proc/self/fd``; once it has read them they are removed.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from typing import Any, Literal

from hvcore import Finding, HostError, HypervisorRefused, MigrationTls
from hvcore_kvm import listen_address
from hvcore_kvm.directory import InstanceDirectory
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.monitor import Monitor as AnyMonitor

Endpoint = Literal["server", "client"]

CREDENTIALS = "migration-tls"
AUTHORISATION = "migration-authz"

_DIRECTORY = "tls"
_LIMIT = 1 << 20
_OPTIONAL = ("ca-crl.pem",)


def check_certificates(directory: str, endpoint: Endpoint, where: str) -> Iterator[Finding]:
    """Find what is missing of the certificates in a directory; reads only.

    Args:
        directory: the directory.
        endpoint: which side it is for.
        where: path of what names it, for findings.
    """
    for name in _names(endpoint):
        yield from listen_address.check_readable(os.path.join(directory, name), where)


def check_credentials(tls: MigrationTls, endpoint: Endpoint) -> Iterator[Finding]:
    """Find what is missing of the certificates of one side; reads only."""
    for finding in check_certificates(tls.directory, endpoint, "policy.tls.directory"):
        hint = "'hv tls init' makes certificates to try it out; tls = false sends the guest's memory readable by all"
        yield Finding(code=finding.code, path=finding.path, message=finding.message, hint=hint)


def add_credentials(
    monitor: Monitor, directory: InstanceDirectory, tls: MigrationTls, endpoint: Endpoint, pid: int
) -> dict[str, Any]:
    """Give QEMU the certificates of one side.

    Args:
        monitor: of the QEMU.
        directory: the instance's directory.
        tls: where the certificates are, and who the peer must be.
        endpoint: which side it is.
        pid: the QEMU's process.

    Returns:
        The arguments of ``migrate-set-parameters`` that switch them on.

    Raises:
        HostError: a file cannot be read or copied.
        HypervisorRefused: QEMU does not take them; its own words.
    """
    remove_credentials(monitor)
    give_certificates(monitor, directory, tls.directory, endpoint, pid, CREDENTIALS)
    parameters: dict[str, Any] = {"tls-creds": CREDENTIALS}
    if endpoint == "server" and tls.authz is not None:
        simple = {"qom-type": "authz-simple", "id": AUTHORISATION, "identity": tls.authz}
        monitor.execute("object-add", simple)
        parameters["tls-authz"] = AUTHORISATION
    return parameters


def give_certificates(
    monitor: AnyMonitor, directory: InstanceDirectory, source: str, endpoint: Endpoint, pid: int, ident: str
) -> None:
    """Give QEMU the certificates of a directory, for whatever it is to speak TLS with.

    Args:
        monitor: of the QEMU.
        directory: the instance's directory.
        source: where the certificates are.
        endpoint: which side it is.
        pid: the QEMU's process.
        ident: what the object in QEMU is called; there is none of that name yet.

    Raises:
        HostError: a file cannot be read or copied.
        HypervisorRefused: QEMU does not take them; its own words.
    """
    place = directory.join(_DIRECTORY)
    try:
        fd = _copy(place, source, endpoint, pid)
        try:
            added = monitor.execute("add-fd", {"opaque": ident}, (fd,))
        finally:
            os.close(fd)
        where = {"fdset-id": added["fdset-id"], "fd": added["fd"]}
        values = {"qom-type": "tls-creds-x509", "id": ident, "endpoint": endpoint, "verify-peer": True}
        try:
            monitor.execute("object-add", {**values, "dir": f"/proc/self/fd/{added['fd']}"})
        except HypervisorRefused as error:
            # QEMU names only what it was given.
            error.hint = f"it speaks of copies of the files in {source}"
            raise
        finally:
            monitor.attempt("remove-fd", where)
    finally:
        remove_copies(directory)


def remove_credentials(monitor: Monitor) -> None:
    """Take the certificates away again; not an error when there are none."""
    # Not tls-authz: an empty one lets nobody in, and only a destination has it, which is none a second time.
    monitor.attempt("migrate-set-parameters", {"tls-creds": "", "tls-hostname": ""})
    for ident in (CREDENTIALS, AUTHORISATION):
        monitor.attempt("object-del", {"id": ident})


def remove_copies(directory: InstanceDirectory) -> None:
    """Remove the copies; also those of a host application that was killed meanwhile."""
    shutil.rmtree(directory.join(_DIRECTORY), ignore_errors=True)


def _names(endpoint: Endpoint) -> tuple[str, ...]:
    return ("ca-cert.pem", f"{endpoint}-cert.pem", f"{endpoint}-key.pem")


def _copy(place: str, source: str, endpoint: Endpoint, pid: int) -> int:
    """Make the directory with the copies, which QEMU's user alone can read; returns a descriptor of it."""
    owner = _owner(pid)
    try:
        shutil.rmtree(place, ignore_errors=True)
        os.mkdir(place, 0o700)
        for name in (*_names(endpoint), *_OPTIONAL):
            path = os.path.join(source, name)
            if name in _OPTIONAL and not os.path.exists(path):
                continue
            fd = os.open(os.path.join(place, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                view = memoryview(_read(path))
                while view:
                    view = view[os.write(fd, view) :]
                if owner is not None:
                    os.fchown(fd, *owner)
            finally:
                os.close(fd)
        if owner is not None:
            os.chown(place, *owner)
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise HostError(f"cannot copy the certificates of {source}: {error.strerror}") from error


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise HostError(f"{path} is no file")
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise HostError(f"{path} is larger than a certificate")
    return data


def _owner(pid: int) -> tuple[int, int] | None:
    """Who QEMU runs as; ``None`` if that is who runs this."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        found = {line.split()[0]: line.split()[2] for line in file if line.startswith(("Uid:", "Gid:"))}
    user, group = int(found["Uid:"]), int(found["Gid:"])
    return None if user == os.geteuid() else (user, group)
