"""Console type ``spice``: the guest's screen, sound and clipboard, on a UNIX socket or on an address of the host."""

from __future__ import annotations

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
    listen_address,
)

_ORIGIN = "params.spice"
_CERTIFICATES = (
    # QEMU's option, file
    ("x509-cacert-file", "ca-cert.pem"),
    ("x509-cert-file", "server-cert.pem"),
    ("x509-key-file", "server-key.pem"),
)
_WAN = ("auto", "never", "always")


@attrs.frozen(kw_only=True)
class SpiceParameters:
    """Parameters of console type ``spice``."""

    bind_address: str | None = param(
        default=None,
        checks=(listen_address.check_bind_address,),
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
    version = listen_address.ip_version(spice.bind_address)
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
        if parameters.bind_address is not None:
            where = f"{_ORIGIN}.bind_address"
            yield from listen_address.check_interface(parameters.bind_address, where, parameters.ip_version)
        if parameters.password_file is not None:
            yield from listen_address.check_readable(parameters.password_file, f"{_ORIGIN}.password_file")
        if parameters.x509_path is not None:
            for _, name in _CERTIFICATES:
                yield from listen_address.check_readable(
                    os.path.join(parameters.x509_path, name), f"{_ORIGIN}.x509_path"
                )

    def assess(self, instance: Instance, parameters: SpiceParameters) -> Iterator[Finding]:
        """What is legal but unwise; reads only."""
        bind = parameters.bind_address
        address = listen_address.resolve(bind, parameters.ip_version) if bind is not None else None
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
            number = context.fd(listen_address.socket_directory(context.directory))
            values |= {"unix": True, "addr": f"/proc/self/fd/{number}/spice"}
        else:
            values["addr"] = listen_address.resolve(given.bind_address, given.ip_version) or given.bind_address
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
            path = context.socket_path(f"{listen_address.SOCKETS}/spice")
            command = ("remote-viewer", f"spice+unix://{path}")
            return Console(instance=context.name, kind="spice", socket_path=path, command=command)
        address = listen_address.reachable(given.bind_address, given.ip_version)
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
