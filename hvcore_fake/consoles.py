"""Consoles of modelled instances: who is attached, and passwords, of which nothing is kept."""

from __future__ import annotations

import attrs

from hvcore import (
    Console,
    ConsoleHolder,
    Finding,
    FindingSet,
    InvalidParameters,
    NotRunning,
    PasswordResult,
    UnsupportedOperation,
)
from hvcore_fake.parameters import CONSOLE_TYPES, PASSWORD_CONSOLES
from hvcore_fake.queries import known
from hvcore_fake.recovery import settle
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.world import World, process_key


def console(world: World, name: str, kind: str | None) -> Console:
    """A modelled console: everything a client needs to know, and nothing to connect to."""
    account = known(world, name)
    process = account.process
    if process is None:
        raise NotRunning("it is not running", instance=name, hint="start it first")
    definition = account.definition
    offered = CONSOLE_TYPES[:1] if definition is None else definition.consoles
    if kind is None and offered:
        kind = offered[0]
    if kind is None or kind not in offered:
        message = f"it offers {', '.join(offered) or 'no console'}, not {kind or 'any'}"
        finding = Finding(code="unknown-console", path="kind", message=message)
        raise InvalidParameters("there is no such console", FindingSet([finding]), instance=name)
    first = next((client for client in process.clients if client.kind == kind), None)
    holder = None if first is None or kind in PASSWORD_CONSOLES else ConsoleHolder(program=first.program)
    words = "a modelled console: there is nothing to connect to"
    authentication = "password" if kind in PASSWORD_CONSOLES else "none"
    return Console(instance=name, kind=kind, message=words, holder=holder, authentication=authentication)


def disconnect(call: Call, name: str, kind: str | None) -> Console:
    """Make whoever is attached go; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = console(world, name, kind)
        if before.kind in PASSWORD_CONSOLES:
            raise UnsupportedOperation(f"clients of console type {before.kind} do not keep others out", instance=name)
        if before.holder is not None:
            with transaction(call, name) as effects:
                effects.effect("disconnect", lambda: world.disconnect(name, before.kind), files=(process_key(name),))
    return before


def set_password(call: Call, name: str, kind: str, password: str, expires: float | None) -> PasswordResult:
    """Set a password; see the hook of the same name. Nobody can connect, so nobody is ever asked for it."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        offered = console(world, name, kind)
        if offered.kind not in PASSWORD_CONSOLES:
            message = f"console type {kind} knows no passwords"
            finding = Finding(code="no-password", path="kind", message=message)
            raise InvalidParameters(message, FindingSet([finding]), instance=name)
        with transaction(call, name) as effects:
            effects.effect("password", lambda: None)
    until = None if expires is None or not password else world.clock() + expires
    return attrs.evolve(PasswordResult(kind=kind), expires=until)
