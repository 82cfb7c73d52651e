"""Console type ``vnc``: the guest's screen, on a UNIX socket of the instance or on an address of the host."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from hvcore import Console, Finding, Instance, Severity, checks, param
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    Option,
    hookimpl,
    json_option,
    keyed,
    listen_address,
)

PASSWORD_LIMIT = 8
"""Characters of a password that the protocol looks at (RFC 6143, 7.2.2)."""

_FIRST_PORT = 5900
_CERTIFICATES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
_ORIGIN = "params.vnc"


@attrs.frozen(kw_only=True)
class VncParameters:
    """Parameters of console type ``vnc``."""

    bind_address: str | None = param(
        default=None,
        checks=(listen_address.check_bind_address,),
        aliases=("vnc_bind_address",),
        summary="IPv4 or IPv6 address to listen on, or the interface whose first address it is; without it, a UNIX "
        "socket in the instance's directory.",
    )
    port: int | None = param(
        default=None,
        checks=(checks.between(_FIRST_PORT, 65535),),
        summary="TCP port on bind_address; display 0 is port 5900.",
    )
    websocket: int | None = param(
        default=None, checks=(checks.port_number,), summary="TCP port on bind_address for clients in browsers."
    )
    tls: str = param(
        default="none",
        choices=("none", "anon", "x509"),
        aliases=("vnc_tls",),
        summary="Encryption: none, without proof of who the server is, or with certificates.",
    )
    x509_path: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("vnc_x509_path",),
        summary="Directory with ca-cert.pem, server-cert.pem and server-key.pem, which the user QEMU runs as can read.",
    )
    x509_verify: bool = param(
        default=False, aliases=("vnc_x509_verify",), summary="Clients need a certificate of the same authority."
    )
    password_file: str | None = param(
        default=None,
        checks=(checks.absolute_path,),
        aliases=("vnc_password_file",),
        summary="File whose one line is the password; the protocol looks at 8 characters.",
    )
    share: str = param(
        default="allow-exclusive",
        choices=("allow-exclusive", "force-shared", "ignore"),
        summary="Whether a client may ask to be alone, which drops the others: yes, no, or all are let in whatever "
        "they ask.",
    )
    lossy: bool = param(default=False, summary="Compress with losses (JPEG), for slow connections.")
    power_control: bool = param(default=False, summary="Clients may switch the guest off and reset it.")


def vnc_rules(vnc: VncParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    if vnc.bind_address is None:
        for name, unset in (
            ("port", None),
            ("websocket", None),
            ("tls", "none"),
            ("x509_path", None),
            ("x509_verify", False),
            ("password_file", None),
        ):
            if getattr(vnc, name) != unset:
                message = "needs bind_address; the UNIX socket is reached by its owner only, and has none of it"
                yield Finding(code="incomplete", path=name, message=message, hint="set params.vnc.bind_address")
        return
    if vnc.port is None:
        message = "is needed with bind_address"
        yield Finding(code="incomplete", path="port", message=message, hint="one for each instance, from 5900")
    if vnc.websocket is not None and vnc.websocket == vnc.port:
        yield Finding(code="repeated-value", path="websocket", message=f"{vnc.websocket} is port too")
    if vnc.tls == "x509" and vnc.x509_path is None:
        message = "tls x509 needs the directory of its certificates"
        yield Finding(code="incomplete", path="x509_path", message=message)
    if vnc.tls != "x509":
        for name, given in (("x509_path", vnc.x509_path is not None), ("x509_verify", vnc.x509_verify)):
            if given:
                message = f"goes with tls x509, and it is {vnc.tls}"
                yield Finding(code="contradiction", path=name, message=message, hint='set params.vnc.tls = "x509"')
    elif vnc.x509_verify and vnc.x509_path is None:
        yield Finding(code="incomplete", path="x509_verify", message="needs x509_path")


class VncConsole:
    """Plans ``-vnc``."""

    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        """Everything that can be wrong is wrong with the parameters alone; see `vnc_rules`."""
        return ()

    def check_host(self, instance: Instance, parameters: VncParameters) -> Iterator[Finding]:
        """The interface has an address, the files are there."""
        if parameters.bind_address is not None:
            yield from listen_address.check_interface(parameters.bind_address, f"{_ORIGIN}.bind_address")
        if parameters.password_file is not None:
            yield from listen_address.check_readable(parameters.password_file, f"{_ORIGIN}.password_file")
        if parameters.x509_path is not None:
            for name in _CERTIFICATES:
                yield from listen_address.check_readable(
                    os.path.join(parameters.x509_path, name), f"{_ORIGIN}.x509_path"
                )

    def assess(self, instance: Instance, parameters: VncParameters) -> Iterator[Finding]:
        """What is legal but unwise; reads only."""
        address = listen_address.resolve(parameters.bind_address or "")
        if address is not None and not ipaddress.ip_address(address).is_loopback:
            if parameters.tls == "none":
                message = "what is typed and shown crosses the network readable by all"
                hint = 'set params.vnc.tls = "x509"'
                yield Finding(
                    code="unencrypted", path=f"{_ORIGIN}.tls", message=message, hint=hint, severity=Severity.ADVICE
                )
            if parameters.password_file is None and not parameters.x509_verify:
                message = f"whoever reaches {address} can use the guest's screen and keyboard"
                where, hint = f"{_ORIGIN}.password_file", "set it, or x509_verify"
                yield Finding(code="unprotected", path=where, message=message, hint=hint, severity=Severity.WARNING)
        if parameters.password_file is not None and os.path.isfile(parameters.password_file):
            with contextlib.suppress(OSError), open(parameters.password_file, "rb") as file:
                if len(file.readline(4096).rstrip(b"\n")) > PASSWORD_LIMIT:
                    message = f"is longer than {PASSWORD_LIMIT} characters, and the protocol ignores the rest"
                    where = f"{_ORIGIN}.password_file"
                    yield Finding(code="ineffective", path=where, message=message, severity=Severity.ADVICE)

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        """The server, and what it authenticates and encrypts with."""
        given: VncParameters = context.parameters
        options: list[Option] = []
        values: dict[str, object] = {}
        if given.bind_address is None:
            number = context.fd(listen_address.socket_directory(context.directory))
            where = f"unix:/proc/self/fd/{number}/vnc"
        else:
            host = _for_url(listen_address.resolve(given.bind_address) or given.bind_address)
            where = f"{host}:{(given.port or _FIRST_PORT) - _FIRST_PORT}"
            if given.websocket is not None:
                values["websocket"] = f"{host}:{given.websocket}"
        if given.tls != "none":
            credentials: dict[str, Any] = {"qom-type": f"tls-creds-{given.tls}", "id": "vnc-tls", "endpoint": "server"}
            if given.tls == "x509" and given.x509_path is not None:
                context.reads(given.x509_path)
                credentials |= {"dir": given.x509_path, "verify-peer": given.x509_verify}
            options.append(json_option("object", credentials, origin=f"{_ORIGIN}.tls"))
            values["tls-creds"] = "vnc-tls"
        if given.password_file is not None:
            context.secret("vnc-password", given.password_file, f"{_ORIGIN}.password_file")
            values["password-secret"] = "vnc-password"
        values |= {"share": given.share, "lossy": given.lossy, "power-control": given.power_control}
        options.append(keyed("vnc", where, values, origin=_ORIGIN))
        return ConsolePlan(options=tuple(options))

    def endpoint(self, context: EndpointContext) -> Console:
        """The socket or the address."""
        given: VncParameters = context.parameters
        if given.bind_address is None:
            path = context.socket_path(f"{listen_address.SOCKETS}/vnc")
            return Console(instance=context.name, kind="vnc", socket_path=path, command=("vncviewer", path))
        address = listen_address.reachable(given.bind_address)
        if address is None:
            message = f"interface {given.bind_address} has lost its address"
            return Console(instance=context.name, kind="vnc", port=given.port, message=message)
        asked = "x509" if given.x509_verify else "none"
        if given.password_file is not None:
            asked = "password"
        return Console(
            instance=context.name,
            kind="vnc",
            address=address,
            port=given.port,
            websocket=given.websocket,
            tls=given.tls != "none",
            authentication=asked,
            # Two colons: a port. After one, vncviewer takes small numbers for displays.
            command=("vncviewer", f"{_for_url(address)}::{given.port}"),
            message="Clients need a certificate." if given.x509_verify else "",
        )


def _for_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@hookimpl
def kvm_console_types() -> Iterator[ConsoleType]:
    """The type."""
    yield ConsoleType(
        name="vnc",
        summary="Screen, keyboard and mouse for VNC clients.",
        backend=VncConsole(),
        parameters=VncParameters,
        rules=(vnc_rules,),
        display_device="std",
    )
