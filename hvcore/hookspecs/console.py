"""Reaching an instance's consoles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.model.console import Console, PasswordResult, Screenshot


@hookspec(firstresult=True)
def hv_get_instance_console(name: str, kind: str | None, deadline: Deadline) -> Console:
    """Say how to attach to a console of a running instance.

    Args:
        name: name of the instance.
        kind: console type; ``None`` for the first the instance offers.
        deadline: by when to be done.

    Returns:
        Everything a client needs, resolved.

    Errors: `InstanceNotFound`; `NotRunning`; `InvalidParameters` when it does not offer the type.

    Capability: ``console``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_disconnect_console(name: str, kind: str | None, deadline: Deadline) -> Console:
    """Make whoever is attached to a console go, so that another one can take its place.

    For a console that takes one client at a time. Who connects before the call waits, and is attached after it.

    Args:
        name: name of the instance.
        kind: console type; ``None`` for the first the instance offers.
        deadline: by when to be done.

    Returns:
        The console; its ``holder`` is whoever it was that had to go.

    Errors: `NotRunning`; `InvalidParameters` when it does not offer the type; `UnsupportedOperation` when clients of
    that type do not keep others out.

    Capability: ``console-disconnect``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_set_console_password(
    name: str, kind: str, password: str, expires: float | None, deadline: Deadline
) -> PasswordResult:
    """Set the password of a console of a running instance.

    Args:
        name: name of the instance.
        kind: console type.
        password: the new one; an empty one locks the console. It is never logged or recorded.
        expires: seconds from now after which it is no longer accepted; ``None`` for never.
        deadline: by when to be done.

    Returns:
        When it expires.

    Errors: `NotRunning`; `InvalidParameters`; `HypervisorRefused`.

    Capability: ``console-password``. Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_screenshot(name: str, deadline: Deadline) -> Screenshot:
    """Take a picture of the display of a running instance.

    Args:
        name: name of the instance.
        deadline: by when to be done.

    Returns:
        The picture.

    Errors: `NotRunning`; `HypervisorRefused` when it has no display.

    Capability: ``screenshot``. Since: 0.1.
    """
