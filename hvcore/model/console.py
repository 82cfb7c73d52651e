"""How to reach an instance's console."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ConsoleHolder:
    """The process that is attached to a console which takes one client at a time.

    Attributes:
        pid: its process id; ``None`` when it belongs to a user whose processes the caller may not see.
        user: whom it runs as: a name, or a number without one.
        program: what it calls itself.
        since: when it began, in seconds since the epoch; it has not been attached longer.
    """

    pid: int | None = None
    user: str = ""
    program: str = ""
    since: float | None = None


@attrs.frozen(kw_only=True)
class Console:
    """What a client needs to attach to one console.

    Attributes:
        instance: name of the instance.
        kind: console type, for example ``serial`` or ``vnc``.
        socket_path: UNIX socket to connect to, if it is one.
        address: IP address a client can connect to, if it is a network console; resolved, never ``0.0.0.0``.
        port: TCP port for ``address``.
        tls: the connection has to use TLS.
        authentication: how a client proves who it is: ``none``, ``password``, ``ticket`` or ``x509``.
        command: a ready argument list of a client that attaches; empty if there is none.
        log_path: file that keeps what the guest wrote, if there is one.
        message: what a person should know, for example why there is no console.
        device_path: terminal device to open, if it is one.
        websocket: TCP port on ``address`` for clients in browsers, if there is one.
        holder: who is attached, where one client at a time is; others wait until it has gone. `disconnect_console`
            makes it go.
        watch: a ready argument list that shows what the guest writes, beside whoever is attached; empty if there is
            none. The file is ``log_path``, whose front may be a hole: begin at its first data, or at its end.
    """

    instance: str
    kind: str
    socket_path: str | None = None
    address: str | None = None
    port: int | None = None
    tls: bool = False
    authentication: str = "none"
    command: tuple[str, ...] = ()
    log_path: str | None = None
    message: str = ""
    device_path: str | None = None
    websocket: int | None = None
    holder: ConsoleHolder | None = None
    watch: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class PasswordResult:
    """A console password was set.

    Attributes:
        kind: the console type.
        expires: when it expires, in seconds since the epoch; ``None`` for never.
    """

    kind: str
    expires: float | None = None


@attrs.frozen(kw_only=True)
class Screenshot:
    """The picture on an instance's display.

    Attributes:
        media_type: for example ``image/png``.
        data: the encoded picture.
    """

    media_type: str
    data: bytes
