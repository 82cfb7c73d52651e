"""Where a graphical console listens: an address, an interface, or a UNIX socket that QEMU makes by itself."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator

from hvcore import Finding, HostError
from hvcore_kvm.families import FdRequest

SOCKETS = "display"
"""Directory of the sockets that QEMU makes itself, in the instance's directory."""


def ip_version(address: str) -> str:
    """``ipv4`` or ``ipv6``; empty for what is no IP address."""
    try:
        return f"ipv{ipaddress.ip_address(address).version}"
    except ValueError:
        return ""


def check_bind_address(value: str) -> str | None:
    """An IP address, or a name of an interface: what the kernel takes (``dev_valid_name``), printable ASCII only."""
    printable = value.isascii() and value.isprintable()
    is_name = 0 < len(value) < 16 and printable and not set(value) & set("/: ") and value not in (".", "..")
    if ip_version(value) or is_name:
        return None
    return f"{value[:60]!r} is neither an IP address nor the name of a network interface"


def interfaces() -> dict[str, list[str]]:
    """Addresses of each interface that has any, IPv4 first, link-local IPv6 last."""
    import socket  # not before they are needed: loading a driver is quick

    import psutil

    found = {}
    for name, entries in psutil.net_if_addrs().items():
        four = [entry.address for entry in entries if entry.family == socket.AF_INET]
        six = [entry.address for entry in entries if entry.family == socket.AF_INET6]
        if four or six:
            found[name] = [*four, *sorted(six, key=lambda address: "%" in address)]
    return found


def resolve(bind_address: str, version: str = "any") -> str | None:
    """The address to listen on; ``None`` for an interface that has none of that version."""
    if ip_version(bind_address):
        return bind_address
    addresses = interfaces().get(bind_address, ())
    return next((address for address in addresses if version in ("any", ip_version(address))), None)


def reachable(bind_address: str, version: str = "any") -> str | None:
    """An address a client can connect to: one of this host's for the one that stands for all of them."""
    address = resolve(bind_address, version)
    if address is None or not ipaddress.ip_address(address).is_unspecified:
        return address
    own = [found for addresses in interfaces().values() for found in addresses]
    fit = [found for found in own if ip_version(found) == ip_version(address) and "%" not in found]
    outward = (found for found in fit if not ipaddress.ip_address(found).is_loopback)
    return next(outward, "127.0.0.1" if ip_version(address) == "ipv4" else "::1")


def check_interface(bind_address: str, where: str, version: str = "any") -> Iterator[Finding]:
    """An interface that has an address; reads only."""
    if resolve(bind_address, version) is None:
        kind = "address" if version == "any" else f"{version} address"
        message = f"there is no interface {bind_address} with an {kind}"
        hint = f"this host has {', '.join(sorted(interfaces())) or 'none'}"
        yield Finding(code="no-such-interface", path=where, message=message, hint=hint)


def socket_directory(directory: str) -> FdRequest:
    """A descriptor of a directory in which QEMU may make sockets, whoever it runs as and however long its path is.

    Args:
        directory: the instance's directory.
    """

    def make() -> int:
        path = os.path.join(directory, SOCKETS)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            # For everybody who holds a descriptor of it: nobody else gets past the directory it is in.
            os.fchmod(fd, 0o733)
        except OSError as error:
            raise HostError(f"cannot make the directory {path}: {error.strerror}") from error
        return fd

    return FdRequest(name=SOCKETS, purpose="directory in which QEMU makes its socket", open=make)


def check_readable(path: str, where: str) -> Iterator[Finding]:
    """A file that this user can read; reads only."""
    if not os.path.isfile(path):
        yield Finding(code="file-unusable", path=where, message=f"there is no file {path}")
    elif not os.access(path, os.R_OK):
        yield Finding(code="file-unusable", path=where, message=f"{path} cannot be read by this user")
