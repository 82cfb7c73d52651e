"""Console type ``spice``: the guest's screen, sound and clipboard, on a UNIX socket or on an address of the host."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import Console, Finding, HostError, Instance, Severity, checks, param
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    FdRequest,
    Option,
    hookimpl,
    json_option,
    keyed,
)

SOCKETS = "display"
"""Directory of the sockets that QEMU makes itself, in the instance's directory."""

_ORIGIN = "params.spice"
_CERTIFICATES = (
    # QEMU's option, file
    ("x509-cacert-file", "ca-cert.pem"),
    ("x509-cert-file", "server-cert.pem"),
    ("x509-key-file", "server-key.pem"),
)
_WAN = ("auto", "never", "always")


def _bind_address(value: str) -> str | None:
    if _version(value) or _is_interface_name(value):
        return None
    return f"{value[:60]!r} is neither an IP address nor the name of a network interface"


@attrs.frozen(kw_only=True)
class SpiceParameters:
    """Parameters of console type ``spice``."""

    bind_address: str | None = param(
        default=None,
        checks=(_bind_address,),
        aliases=("spice_bind",),
        summary="IPv4 or IPv6 address to listen on, or the interface whose first address it is; without it, a UNIX "
        "socket in the instance's directory.",
    )
    port: int | None = param(default=None, checks=(checks.port_number,), summary="TCP port on bind_address.")
    ip_version: str = param(
        default="any",
        choices=("any", "ipv4", "ipv6"),
        aliases=("spice_ip_version",),
        summary="Kind of address of an interface; with any the first IPv4 address, else the first IPv6 address.",
    )
    tls: bool = param(default=False, aliases=("spice_use_tls",), summary="The port takes encrypted connections only.")
    x509_path: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        summary="Directory with ca-cert.pem, server-cert.pem and server-key.pem.",
    )
    tls_ciphers: str | None = param(
        default=None,
        checks=(checks.no_control_characters,),
        aliases=("spice_tls_ciphers",),
        summary="Ciphers, in OpenSSL's words; those of the SPICE server when not given.",
    )
    password_file: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("spice_password_file",),
        summary="File whose one line is the password.",
    )
    image_compression: str | None = param(
        default=None,
        choices=("auto_glz", "auto_lz", "quic", "glz", "lz", "off"),
        aliases=("spice_image_compression",),
        summary="Lossless compression of pictures; auto_glz when not given.",
    )
    jpeg_wan_compression: str | None = param(
        default=None,
        choices=_WAN,
        aliases=("spice_jpeg_wan_compression",),
        summary="Lossy compression on slow connections; auto when not given.",
    )
    zlib_glz_wan_compression: str | None = param(
        default=None,
        choices=_WAN,
        aliases=("spice_zlib_glz_wan_compression",),
        summary="Further lossless compression on slow connections; auto when not given.",
    )
    streaming_video: str | None = param(
        default=None,
        choices=("off", "all", "filter"),
        aliases=("spice_streaming_video",),
        summary="Which moving parts of the screen are sent as video; off when not given.",
    )
    playback_compression: bool = param(
        default=True, aliases=("spice_playback_compression",), summary="Compress sound (CELT, Opus)."
    )
    agent: bool = param(
        default=True,
        aliases=("spice_use_vdagent",),
        summary="Offer the channel of the SPICE agent in the guest: clipboard, screen size, mouse without capture.",
    )
    seamless_migration: bool = param(default=False, summary="Clients stay connected through a migration.")


def spice_rules(spice: SpiceParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    if spice.bind_address is None:
        for name, unset in (
            ("port", None),
            ("ip_version", "any"),
            ("tls", False),
            ("x509_path", None),
            ("tls_ciphers", None),
            ("password_file", None),
        ):
            if getattr(spice, name) != unset:
                message = "needs bind_address; the UNIX socket is reached by its owner only, and has none of it"
                yield Finding(code="incomplete", path=name, message=message, hint="set params.spice.bind_address")
        return
    if spice.port is None:
        message = "is needed with bind_address"
        yield Finding(code="incomplete", path="port", message=message, hint="one for each instance")
    version = _version(spice.bind_address)
    if version and spice.ip_version not in ("any", version):
        message = f"is {spice.ip_version}, and bind_address {spice.bind_address} is an address of {version}"
        yield Finding(code="contradiction", path="ip_version", message=message, hint="leave it out")
    if spice.tls and spice.x509_path is None:
        yield Finding(code="incomplete", path="x509_path", message="tls needs the directory of its certificates")
    for name in ("x509_path", "tls_ciphers"):
        if getattr(spice, name) is not None and not spice.tls:
            message = "goes with tls, which is off"
            yield Finding(code="contradiction", path=name, message=message, hint="set params.spice.tls = true")


class SpiceConsole:
    """Plans ``-spice``."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Everything that can be wrong is wrong with the parameters alone; see `spice_rules`."""
        return ()

    def check_host(self, instance: Instance, parameters: SpiceParameters) -> Iterator[Finding]:
        """The interface has an address, the files are there."""
        if parameters.bind_address is not None and _resolve(parameters) is None:
            kind = "" if parameters.ip_version == "any" else f"{parameters.ip_version} "
            message = f"there is no interface {parameters.bind_address} with an {kind}address"
            hint = f"this host has {', '.join(sorted(_interfaces())) or 'none'}"
            yield Finding(code="no-such-interface", path=f"{_ORIGIN}.bind_address", message=message, hint=hint)
        if parameters.password_file is not None:
            yield from _readable(parameters.password_file, f"{_ORIGIN}.password_file")
        if parameters.x509_path is not None:
            for _, name in _CERTIFICATES:
                yield from _readable(os.path.join(parameters.x509_path, name), f"{_ORIGIN}.x509_path")

    def assess(self, instance: Instance, parameters: SpiceParameters) -> Iterator[Finding]:
        """What is legal but unwise; reads only."""
        address = _resolve(parameters) if parameters.bind_address is not None else None
        if address is None or ipaddress.ip_address(address).is_loopback:
            return
        if not parameters.tls:
            message, hint = "what is typed and shown crosses the network readable by all", "set params.spice.tls = true"
            yield Finding(
                code="unencrypted", path=f"{_ORIGIN}.tls", message=message, hint=hint, severity=Severity.ADVICE
            )
        if parameters.password_file is None:
            message = f"whoever reaches {address} can use the guest's screen and keyboard"
            where = f"{_ORIGIN}.password_file"
            yield Finding(code="unprotected", path=where, message=message, severity=Severity.WARNING)

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """The server, what it authenticates and encrypts with, and the agent's channel."""
        given: SpiceParameters = context.parameters
        values: dict[str, object] = {}
        if given.bind_address is None:
            number = context.fd(_sockets(context.directory))
            values |= {"unix": True, "addr": f"/proc/self/fd/{number}/spice"}
        else:
            values["addr"] = _resolve(given) or given.bind_address
            if given.ip_version != "any":
                values[given.ip_version] = True
            values["tls-port" if given.tls else "port"] = given.port
        if given.tls and given.x509_path is not None:
            for option, name in _CERTIFICATES:
                values[option] = f"/proc/self/fd/{context.fd(_copy(os.path.join(given.x509_path, name)))}"
            values["tls-ciphers"] = given.tls_ciphers
        if given.password_file is None:
            values["disable-ticketing"] = True
        else:
            context.secret("spice-password", given.password_file, f"{_ORIGIN}.password_file")
            values["password-secret"] = "spice-password"
        values |= {
            "image-compression": given.image_compression,
            "jpeg-wan-compression": given.jpeg_wan_compression,
            "zlib-glz-wan-compression": given.zlib_glz_wan_compression,
            "streaming-video": given.streaming_video,
            "playback-compression": given.playback_compression,
            "agent-mouse": given.agent,
            "seamless-migration": given.seamless_migration,
        }
        options = [keyed("spice", None, values, origin=_ORIGIN)]
        return ConsolePlan(options=(*options, *(_agent(context) if given.agent else ())))

    def endpoint(self, context: EndpointContext) -> Console:
        """The socket or the address."""
        given: SpiceParameters = context.parameters
        if given.bind_address is None:
            path = context.socket_path(f"{SOCKETS}/spice")
            command = ("remote-viewer", f"spice+unix://{path}")
            return Console(instance=context.name, kind="spice", socket_path=path, command=command)
        address = _reachable(given)
        if address is None:
            message = f"interface {given.bind_address} has lost its address"
            return Console(instance=context.name, kind="spice", port=given.port, message=message)
        host = f"[{address}]" if ":" in address else address
        return Console(
            instance=context.name,
            kind="spice",
            address=address,
            port=given.port,
            tls=given.tls,
            authentication="none" if given.password_file is None else "password",
            command=("remote-viewer", f"spice://{host}{'?tls-port=' if given.tls else ':'}{given.port}"),
        )


def _agent(context: ConsoleContext) -> tuple[Option, Option]:
    origin = f"{_ORIGIN}.agent"
    port = {
        "driver": "virtserialport",
        "id": "spice-agent0",
        "bus": context.virtio_serial(),
        "chardev": "spice-agent",
        "name": "com.redhat.spice.0",
    }
    chardev = keyed("chardev", "spicevmc", {"id": "spice-agent", "name": "vdagent"}, origin=origin)
    return chardev, json_option("device", port, origin=origin)


def _sockets(directory: str) -> FdRequest:
    """The directory in which QEMU makes its socket, however long the path and whoever QEMU runs as."""

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


def _copy(path: str) -> FdRequest:
    """A copy of a file in memory, which QEMU can read whoever it runs as."""
    name = os.path.basename(path)
    return FdRequest(name=name, purpose=f"copy of {path}", open=functools.partial(_copy_to_memory, path, name))


def _copy_to_memory(path: str, name: str) -> int:
    try:
        with open(path, "rb") as file:
            content = file.read()
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.write(fd, content)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", code="file-unusable") from error
    return fd


def _version(address: str) -> str:
    """``ipv4`` or ``ipv6``; empty for what is no IP address."""
    try:
        return f"ipv{ipaddress.ip_address(address).version}"
    except ValueError:
        return ""


def _is_interface_name(value: str) -> bool:
    """What the kernel takes as a name (``dev_valid_name``), printable ASCII only."""
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) < 16 and printable and not set(value) & set("/: ") and value not in (".", "..")


def _interfaces() -> dict[str, list[str]]:
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


def _resolve(spice: SpiceParameters) -> str | None:
    """The address to listen on; ``None`` for an interface that has none of that kind."""
    wanted = spice.bind_address or ""
    if _version(wanted):
        return wanted
    addresses = _interfaces().get(wanted, ())
    return next((a for a in addresses if spice.ip_version in ("any", _version(a))), None)


def _reachable(spice: SpiceParameters) -> str | None:
    """An address a client can connect to: one of this host's for the one that stands for all of them."""
    address = _resolve(spice)
    if address is None or not ipaddress.ip_address(address).is_unspecified:
        return address
    own = [found for addresses in _interfaces().values() for found in addresses]
    fit = [found for found in own if _version(found) == _version(address) and "%" not in found]
    outward = (found for found in fit if not ipaddress.ip_address(found).is_loopback)
    return next(outward, "127.0.0.1" if _version(address) == "ipv4" else "::1")


def _readable(path: str, where: str) -> Iterator[Finding]:
    if not os.path.isfile(path):
        yield Finding(code="file-unusable", path=where, message=f"there is no file {path}")
    elif not os.access(path, os.R_OK):
        yield Finding(code="file-unusable", path=where, message=f"{path} cannot be read by this user")


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="spice",
        summary="Screen, keyboard, mouse, sound and clipboard for SPICE clients.",
        backend=SpiceConsole(),
        parameters=SpiceParameters,
        rules=(spice_rules,),
        display_device="qxl",
    )
