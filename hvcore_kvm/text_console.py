"""What text consoles have in common: a log, and, on a UNIX socket, who holds it and how to take it over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Console, Size, checks, console_holder, param
from hvcore_kvm.command_line import Option, keyed
from hvcore_kvm.families import ConsoleContext, EndpointContext

LOG_SUFFIX = ".log"


@attrs.frozen(kw_only=True)
class TextConsoleParameters:
    """Parameters of a text console."""

    log: bool = param(default=True, summary="Keep what the guest writes, whether or not somebody is attached.")
    log_size: Size = param(
        default=Size(2**20),
        checks=(checks.between(2**16, 2**40),),
        summary="How much of it is kept, from the newest; the file is held to it at each operation on the instance.",
    )


def plan_socket(context: ConsoleContext, name: str) -> Option:
    """The character device of a text console, on a listening socket, with a log if its parameters want one.

    Args:
        context: what the console type got to plan with; its parameters are `TextConsoleParameters`.
        name: of the socket, and id of the character device.
    """
    values = {"id": name, "fd": context.listen(name), "server": True, "wait": False, **plan_log(context, name)}
    return keyed("chardev", "socket", values, origin="consoles")


def plan_log(context: ConsoleContext, name: str) -> Mapping[str, object]:
    """The properties of a character device that give it a log, if the parameters want one."""
    given: TextConsoleParameters = context.parameters
    if not given.log:
        return {}
    return {"logfile": context.log(f"{name}{LOG_SUFFIX}", given.log_size), "logappend": True}


def describe_log(context: EndpointContext, name: str) -> Mapping[str, Any]:
    """The fields of a `Console` that say how to read along."""
    if not context.parameters.log:
        return {}
    path = context.socket_path(f"{name}{LOG_SUFFIX}")
    return {"log_path": path, "watch": ("tail", "-n", "100", "-F", path)}


def describe_socket(context: EndpointContext, kind: str, name: str) -> Console:
    """How a text console on a socket is reached, watched, and who holds it.

    Args:
        context: what the console type got; its parameters are `TextConsoleParameters`.
        kind: name of the console type.
        name: of the socket.
    """
    path = context.socket_path(name)
    return Console(
        instance=context.name,
        kind=kind,
        socket_path=path,
        command=("socat", "STDIO,raw,echo=0,escape=0x1d", f"UNIX-CONNECT:{path}"),
        holder=console_holder(path),
        message="One client at a time; Ctrl-] leaves.",
        **describe_log(context, name),
    )


def disconnect_socket(context: EndpointContext, name: str) -> None:
    """Close the connection of a text console; QEMU goes on listening.

    Args:
        context: what the console type got.
        name: of the socket.
    """
    # QEMU's "yank" is meant for connections that hang: it shuts the socket down, whoever is at its other end.
    context.ask("yank", {"instances": [{"type": "chardev", "id": name}]})
